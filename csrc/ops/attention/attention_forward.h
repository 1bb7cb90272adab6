/* What the files of attention forward share: the blocks of queries and of keys, and the call. */
#ifndef FA_OPS_ATTENTION_FORWARD_H
#define FA_OPS_ATTENTION_FORWARD_H

#include "attention.h"

#define QUERY_BLOCK 96
#define GROUP_TILES 2 /* register tiles in a group */
#define FEW_TILES 4   /* so many tiles keep their state while blocks of keys pass by */

typedef struct {
    real *o, *sum, *shift;               /* of a tile: [QUERY_BLOCK, ldo], [QUERY_BLOCK] x 2 */
    unsigned char progress[QUERY_BLOCK]; /* of each group: group_progress */
    unsigned char attends[QUERY_BLOCK];  /* rows that took keys */
    real *queries;                       /* scaled, in slices of [QUERY_BLOCK, query_stride]; plain [QUERY_BLOCK, D] for BLAS */
    int large;                           /* values that it took may make sums overflow */
    int *overflowed;                     /* of its worker: SUMS_OVERFLOW, ROWS_UNSETTLED */
} tile_state;

typedef struct {
    real *keys, *values; /* of one block */
    int found;           /* VALUES_NOT_FINITE: attention_patch_values; VALUES_LARGE */
} key_block;

typedef struct {
    real *scores, *unmasked, *mask; /* of a group, or of a tile for BLAS */
    tile_state state[FEW_TILES];
    real *packed; /* of one block, or of a run */
} worker_scratch;

/* What a thread needs next, and how much of it is prefetched in each call of a kernel. */
#define UPCOMING 3 /* arrays: queries, keys, values */
typedef struct {
    prefetch_rows rows[UPCOMING];
    fa_index share;
} upcoming_rows;

typedef struct {
    double work; /* of a batch, pairs of a query and a key */
    fa_index batch;
} batch_work;

typedef struct {
    const fa_attention_arguments *a;
    const fa_kernels *kernels;
    batch_work *order;             /* [B], the longest first: what is left to the end is short */
    fa_index block, blocks;        /* keys per block, blocks per head */
    fa_index tiles;                /* tiles per head */
    fa_index group_rows;           /* most rows in a group; of BLAS a tile is one */
    fa_index group;                /* query heads per kv head */
    fa_index ldo, query_slice;     /* row stride of O; size of a slice of the scaled queries */
    fa_index key_size, value_size; /* packed sizes of a block */
    fa_index runs, kept;           /* second schedule: runs per head, packed blocks that are kept */
    int threads;                   /* threads: task i + threads comes after task i, about */
    real scale_high, scale_low;    /* of queries */
    real softmax_scale;            /* of scores, in the softmax */
    worker_scratch *worker;
    int *overflowed;          /* of each worker */
    unsigned char *unsettled; /* of each row, as in lse */
    /* third schedule: */
    fa_index first_head, heads;
    real *packed;
    int *found; /* of each packed block */
} attention_call;

/* Part `i`, [*first, *first + *part), when `size` is cut evenly into so many parts; or into parts of at most `most`. */
FA_INLINE void split_parts(fa_index size, fa_index parts, fa_index i, fa_index *first, fa_index *part)
{
    const fa_index base = size / parts, larger = size % parts;
    *first = i * base + fa_min(i, larger);
    *part = base + (i < larger);
}
FA_INLINE void split_evenly(fa_index size, fa_index most, fa_index i, fa_index *first, fa_index *part)
{
    split_parts(size, fa_max(1, fa_ceil_div(size, most)), i, first, part);
}

/* Tiles are whole groups, split evenly: but for a head's last one, no group then wastes a part of its products. BLAS gets tiles at
   fixed places: OpenBLAS gives the rows of a tile different kernels by their place in it, so a row has the same bits only at the same
   index. */
FA_INLINE void rows_of_query_block(const attention_call *c, fa_index b, fa_index tile, fa_index *first, fa_index *rows)
{
    const fa_index all = query_rows(c->a, b);
    split_evenly(fa_ceil_div(all, c->group_rows), QUERY_BLOCK / c->group_rows, tile, first, rows);
    *first *= c->group_rows;
    *rows = fa_min(*rows * c->group_rows, all - *first);
}

/* attention_tile.c: a block of keys and values packed; a tile begun, brought together with a block (the `last` one of the tile or
   another), and ended. */
void OP(attention_pack_block)(const attention_call *c, fa_index b, fa_index hk, fa_index j, real *dst, int *found);
void OP(attention_start_tile)(const attention_call *c, tile_state *s, fa_index b, fa_index h, fa_index tile);
void OP(attention_attend)(const attention_call *c, const worker_scratch *w, tile_state *s, const key_block *block, int last,
                          fa_index b, fa_index h, fa_index tile, fa_index j, upcoming_rows *next);
void OP(attention_finish_tile)(const attention_call *c, const tile_state *s, fa_index b, fa_index h, fa_index tile);

#endif
