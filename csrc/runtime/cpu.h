/* Which instruction sets this CPU and operating system allow. */
#ifndef FA_CPU_H
#define FA_CPU_H

#include "../base.h"

const char *fa_isa_name(fa_isa isa);

/* 1 when the CPU has the instructions and the operating system saves the registers. */
int fa_cpu_allows(fa_isa isa);

/* 0 for a set that the CPU has but is slower with: it is not chosen unless requested. */
int fa_cpu_prefers(fa_isa isa);

/* What the calling thread's matrix tiles are configured for (simd/amx.h); 0: for nothing. To configure them takes 200 cycles, so tasks of
   a loop leave that to the next one, and the loop releases them: a thread that has tiles in use is saved with 8 KB of them. */
extern FA_HIDDEN _Thread_local fa_index fa_rows_of_tiles;
void fa_release_tiles(void);

/* Text such as "fma avx2 avx512 avx512bf16": what was detected, for show_config. Static storage. */
const char *fa_cpu_features(void);

/* The CPU's own name, "" where it has none to tell. Static storage. */
const char *fa_cpu_brand(void);

#endif
