/* What the files of attention backward share. */
#ifndef FA_OPS_ATTENTION_BACKWARD_H
#define FA_OPS_ATTENTION_BACKWARD_H

#include "attention.h"

#define GRADIENT_TILE 96 /* queries */

typedef struct {
    real *keys, *values, *columns;          /* of the block: panels of keys of k and v, panels of columns of k */
    real *dk, *dv;                          /* [block, ldk], [block, ldv]; or transposed: gradient_stride */
    real *queries, *gradients;              /* of a tile: scaled q and dout in slices */
    real *query_columns, *gradient_columns; /* q and dout in panels of columns */
    real *p, *ds, *ds_pairs, *products;     /* [GRADIENT_TILE, attention_stride]; products q k before a softcap */
    real *mask;                             /* a part of a mask whose keys are not contiguous */
    real *dmask, *dslopes;                  /* of a task: [heads of the group or 1, block] sums over rows; [heads of the group] */
} gradient_scratch;

typedef struct {
    const fa_attention_backward_arguments *arguments;
    const fa_attention_arguments *a; /* of the forward call */
    const fa_kernels *kernels;
    fa_index block, blocks, tiles, group;
    fa_index group_rows;        /* rows of a few register tiles */
    fa_index ldk, ldv;          /* rows of dk and dv: whole vectors */
    fa_index slice;             /* size of a slice of queries or dout */
    real scale_high, scale_low; /* of queries */
    real score_scale, scale;    /* the scale of gradients, a power of two of it for dS and the rest: scale_of_gradients */
    int early;                  /* dout carries score_scale already */
    gradient_scratch *worker;
    fa_index *row_keys;         /* [B, H, Lq, 2] where there is a mask: find_row_keys */
    fa_index first_head, heads; /* kv heads of all batches, taken so many at a time */
    fa_index whole;             /* the first of these are tasks of their own */
    real *dq;                   /* [heads, group, Lq, D] where arrays are no reals */
    real *delta;                /* of each row, as in lse */
    fa_progress *progress;      /* [blocks, heads]: how many steps a task has done, an extra one at its end */
    int mask_in_order;          /* elements of dmask are sums over several tasks: each task adds after the one before */
    real *slope_parts;          /* [B, H, blocks] */
    real *sink_parts;           /* [B, H] */
} backward_call;

/* One tile of queries: rows [i0, i0 + rows) of query head h, and a block of keys. */
typedef struct {
    fa_index b, h, hk, i0, rows, j0, keys;
    fa_index begin[GRADIENT_TILE], end[GRADIENT_TILE];
    int found_q, found_g; /* among q and dout: VALUES_NOT_FINITE */
} gradient_tile;

/* `rows` rows of the tile from row r on, of a block of scores or of what has come of them. */
FA_INLINE score_block block_of_tile(const gradient_tile *t, real *s, fa_index r, fa_index rows, real scale)
{
    fa_index *begin = (fa_index *)t->begin, *end = (fa_index *)t->end;
    return (score_block){s + r * ATTENTION_STRIDE, rows, t->keys, begin + r, end + r, scale};
}

FA_INLINE const stored *gradient_row(const fa_attention_backward_arguments *g, fa_index b, fa_index h, fa_index i)
{
    return (const stored *)g->dout + b * g->dout_stride[0] + h * g->dout_stride[1] +
           (query_start(&g->forward, b) + i) * g->dout_stride[2];
}

/* The keys [*begin, *end) between the first and the last that row i of head h attends to, mask included. */
FA_INLINE void attended_keys(const backward_call *c, fa_index b, fa_index h, fa_index i, fa_index *begin, fa_index *end)
{
    if (!c->row_keys) {
        keys_by_position(c->a, b, i, begin, end);
        return;
    }
    const fa_index *keys = c->row_keys + 2 * ((b * c->a->H + h) * c->a->Lq + i);
    *begin = keys[0], *end = keys[1];
}

/* attention_mask_backward.c: gradients of the mask, the slopes and the sinks, as far as they are wanted. What a call and its workers
   need of scratch; the start of a task, what a tile adds in it, and its end; and what is left when all tasks are done. `task` counts
   the tasks of the current heads; the steps of a tile of queries end at `step`. */
void OP(attention_plan_options)(backward_call *c, arena *plan);
void OP(attention_plan_option_parts)(const backward_call *c, gradient_scratch *w, arena *plan);
void OP(attention_begin_options)(const backward_call *c, const gradient_scratch *w);
void OP(attention_add_slopes)(const backward_call *c, const gradient_scratch *w, const gradient_tile *t, fa_index first,
                              fa_index rows);
void OP(attention_add_mask)(const backward_call *c, const gradient_scratch *w, const gradient_tile *t, fa_index task,
                            fa_index step, int attends);
void OP(attention_end_options)(const backward_call *c, const gradient_scratch *w, fa_index task, fa_index b, fa_index hk,
                               fa_index j, fa_index keys);
void OP(attention_finish_options)(const backward_call *c, int threads);

#endif
