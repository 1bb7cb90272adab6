/* Memory that is kept warm, because fresh pages cost more than short calls do.

   Scratch is the working memory of one call: taken as a whole at its start, given back at its end. At most FA_SCRATCH_KEPT_BLOCKS blocks
   of at most FA_SCRATCH_KEPT_BYTES each are kept between calls.

   Results are the memory of large output arrays, and of what a forward pass saves, given back when the array dies. Those given back last
   are kept, at most FA_RESULTS_KEPT_BLOCKS and FA_RESULTS_KEPT_BYTES together, for results of about their size; meanwhile the operating
   system may take their pages (MADV_FREE), which costs nothing unless it does. */
#ifndef FA_SCRATCH_H
#define FA_SCRATCH_H

#include "../base.h"

#define FA_SCRATCH_KEPT_BLOCKS 4
#define FA_SCRATCH_KEPT_BYTES ((size_t)32 << 20)
#define FA_RESULTS_KEPT_BLOCKS 16
#define FA_RESULTS_KEPT_BYTES ((size_t)256 << 20)
/* Below, the C library recycles memory itself: its largest threshold for mmap is 32 MB. */
#define FA_RESULT_LEAST_BYTES ((size_t)16 << 20)

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

/* The same for a result of size > 0. */
int fa_result_take(fa_scratch *result, size_t size);
void fa_result_give(fa_scratch *result);

/* Drops all kept blocks (tests; and memory-conscious callers through fa.config). */
void fa_scratch_trim(void);
void fa_scratch_init(void);

#endif
