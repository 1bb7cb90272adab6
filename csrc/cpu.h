/* Which instruction sets this CPU and operating system allow. */
#ifndef FA_CPU_H
#define FA_CPU_H

#include "base.h"

/* In rising order: a later one is preferred, and the environment can only lower the choice. */
typedef enum {
    FA_ISA_BASELINE = 0,
    FA_ISA_LEVEL_AVX2,
    FA_ISA_LEVEL_AVX512,
    FA_ISA_LEVEL_AVX512BF16,
    FA_ISA_LEVEL_AMXBF16,
    FA_ISA_COUNT
} fa_isa;

const char *fa_isa_name(fa_isa isa);

/* 1 when the CPU has the instructions and the operating system saves the registers. */
int fa_cpu_allows(fa_isa isa);

/* 0 for a set that the CPU has but is slower with: it is not chosen unless asked for. */
int fa_cpu_prefers(fa_isa isa);

/* Text such as "fma avx2 avx512 avx512bf16": what was detected, for show_config. Static storage. */
const char *fa_cpu_features(void);

/* The CPU's own name, "" where it has none to tell. Static storage. */
const char *fa_cpu_brand(void);

#endif
