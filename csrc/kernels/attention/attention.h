/* Sizes of the blocks of attention, by which ops/attention/attention.c makes its buffers, and what its kernels pass on. */
#ifndef FA_ATTENTION_H
#define FA_ATTENTION_H

#include "../../base.h"

/* Row stride of a block of scores, a compile-time constant so that tiles address its rows without arithmetic: the most keys in a
   block, and 16 to keep rows from falling on the same cache sets. */
#define ATTENTION_KEYS 512
#define ATTENTION_STRIDE (ATTENTION_KEYS + 16)

/* Sums over the keys of a block are chains of so many, which end at its multiples. */
#define CHAIN_KEYS ((fa_index)256 * FA_PACKED)

/* What is found among values, as bits: some that are not finite; some so large that sums of them, weighted, may overflow. The first
   look at them adds up products with LARGE_PROBE, of which one of those becomes infinite: beyond 2^96 in float, 2^992 in double, a
   third as much that nothing comes of a false alarm but a second look. */
#define VALUES_NOT_FINITE 1
#define VALUES_LARGE 2
#define LARGE_PROBE 0x1p33

/* Scaled queries lie in slices of so many dimensions, rows of a constant stride for the same reason. */
#define QUERY_SLICE 128
#define QUERY_STRIDE (QUERY_SLICE + 16)

/* What is done to the scores of a row in natural units: numbers of the real type; the mask, bytes (0: excluded) or numbers of the arrays'
   type, or neither, with the distance of its keys; the key on the row's diagonal. */
typedef struct {
    double scale, softcap, slope;
    const uint8_t *keep;
    const void *add;
    fa_index mask_step, diagonal;
} natural_options;

/* The largest score of a row so far, and the sum of e^(s - top). */
typedef struct {
    double top, sum;
} natural_state;

/* Rows in memory that are needed next: a kernel prefetches some of them with each tile. */
typedef struct prefetch_rows {
    const void *first;
    fa_index step, bytes, count;      /* from row to row; of a row; rows */
    const struct prefetch_rows *then; /* those that follow, or NULL */
} prefetch_rows;

#endif
