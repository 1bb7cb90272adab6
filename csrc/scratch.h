/* Working memory of one call. Taken as a whole at its start, given back at its end; blocks are kept warm between calls, because
   fresh pages cost more than short calls do: at most FA_SCRATCH_KEPT_BLOCKS blocks of at most FA_SCRATCH_KEPT_BYTES each. */
#ifndef FA_SCRATCH_H
#define FA_SCRATCH_H

#include "base.h"

#define FA_SCRATCH_KEPT_BLOCKS 4
#define FA_SCRATCH_KEPT_BYTES ((size_t)32 << 20)
#define FA_CACHE_LINE 64

typedef struct {
    char *base; /* 64-byte aligned */
    size_t size;
} fa_scratch;

/* 1 on success. Any thread, without waiting for another; contents undefined. */
int fa_scratch_take(fa_scratch *scratch, size_t size);
void fa_scratch_give(fa_scratch *scratch);

/* Bytes for n items, rounded up to whole cache lines so that neighbours share none; SIZE_MAX when that overflows, which no
   allocation grants. fa_scratch_sum adds with the same rule. */
FA_INLINE size_t fa_scratch_bytes(fa_index n, size_t item)
{
    size_t bytes;
    if (__builtin_mul_overflow((size_t)n, item, &bytes) || bytes > SIZE_MAX - FA_CACHE_LINE) return SIZE_MAX;
    return (bytes + FA_CACHE_LINE - 1) / FA_CACHE_LINE * FA_CACHE_LINE;
}

FA_INLINE size_t fa_scratch_sum(size_t a, size_t b)
{
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

/* Drops all kept blocks (tests; and memory-conscious callers through fa.config). */
void fa_scratch_trim(void);
void fa_scratch_init(void);

#endif
