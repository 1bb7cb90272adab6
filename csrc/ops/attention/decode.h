/* What the files of attention with few queries share. */
#ifndef FA_OPS_DECODE_H
#define FA_OPS_DECODE_H

#include "attention.h"

#define DECODE_ROWS 48 /* rows of a part */

typedef struct {
    real *o, *sum, *shift; /* [rows, ldo], [rows] x 2 */
    real *queries;         /* scaled, in slices; not for a cache of bytes: */
    decode_digits digits;
    int begun;      /* O holds sums */
    int large;      /* so have values that may make sums overflow */
    int overflowed; /* one has, of this part or of another one of the worker: SUMS_OVERFLOW, ROWS_UNSETTLED */
} part_state;

typedef struct {
    real *scores;          /* [rows, stride] */
    real *o, *sum, *alpha; /* of the block alone, O with room for a second chain; alpha: what O and sum before it are scaled by */
    real *shift;           /* what its scores ask for (few parts); in force before it; in force after it */
    int large;             /* as of a part */
} block_state;

typedef struct {
    const fa_attention_arguments *a;
    const fa_cache_arguments *cache; /* or NULL */
    const fa_kernels *kernels;
    int bytes;                         /* keys and values are */
    fa_index block, blocks;            /* keys per block, blocks per head */
    fa_index group, heads_of_part;     /* query heads per kv head, and per part */
    fa_index parts;                    /* per kv head */
    fa_index rows;                     /* most rows of a part */
    fa_index stride, ldo, query_slice; /* row strides of scores and O; a slice of the scaled queries */
    real scale_high, scale_low;
    part_state *part;            /* of each worker, or of each part */
    block_state *state;          /* of each worker, or of each block of a round */
    real *mask;                  /* of each worker: [rows, stride] */
    real *unmasked;              /* of each worker: [rows, stride] */
    real *gathered;              /* of each worker: a vector of keys */
    unsigned char *unsettled;    /* of each row, as in lse */
    fa_index first_block, round; /* blocks of this round */
} decode_call;

/* What part `i` of the call is. */
typedef struct {
    fa_index b, hk, h, heads, i0, queries, rows; /* rows: head after head, query after query, from i0 on */
} part_place;

/* The keys of block j that each row attends to; those that any row does are [first, last), nothing if last is 0. */
typedef struct {
    fa_index j, first, last;
    fa_index begin[DECODE_ROWS], end[DECODE_ROWS];
} block_keys;

FA_INLINE score_block scores_of_part(const part_place *at, real *scores, block_keys *x, real scale)
{
    return (score_block){scores, at->rows, x->last, x->begin, x->end, scale};
}

/* decode_block.c: the rows of keys or values of block j of a kv head, `item` bytes per element; and those of scales. */
decode_rows OP(decode_rows_of)(const decode_call *c, const part_place *at, fa_index j, const void *x, const fa_index *stride,
                               size_t item);
#if FA_FLOAT_ARRAYS
decode_rows OP(decode_scales_of)(const decode_call *c, const part_place *at, fa_index j, const float *scales);
#endif

/* The scores of a block, masked; and from those, which become probabilities against block->shift, the one in force before, its O and
   sum. */
void OP(decode_block_scores)(const decode_call *c, const part_state *s, real *scores, int worker, const part_place *at,
                             block_keys *x);
void OP(decode_block_results)(const decode_call *c, const part_state *s, block_state *block, int worker, const part_place *at,
                              block_keys *x);

#endif
