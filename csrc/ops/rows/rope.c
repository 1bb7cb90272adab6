/* Rotary positions: blocks of whole rows over the pool. The backward pass is the same with the sines negated. */
#include "../ops.h"

#define BLOCK 16384 /* elements per task, in whole rows */

typedef struct {
    const fa_kernels *kernels;
    stored *y;
    const stored *x;
    const real *cosine, *sine;
    const fa_index *position;
    fa_index rows, n, rows_per_task;
    int interleaved;
} rope_call;

static void rope_block(void *context, fa_index i, int worker)
{
    const rope_call *c = context;
    const fa_index first = i * c->rows_per_task, at = first * c->n;
    (void)worker;
    c->kernels->rope_rows(c->y + at, c->x + at, c->cosine, c->sine, c->position + first,
                          fa_min(c->rows_per_task, c->rows - first), c->n, c->interleaved);
}

fa_status OP(rope)(void *y, const void *x, const void *cosine, const void *sine, const fa_index *position, fa_index rows,
                   fa_index n, int interleaved)
{
    rope_call call = {.kernels = current_kernels(),
                      .y = y,
                      .x = x,
                      .cosine = cosine,
                      .sine = sine,
                      .position = position,
                      .rows = rows,
                      .n = n,
                      .rows_per_task = fa_max(1, BLOCK / fa_max(1, n)),
                      .interleaved = interleaved};
    if (n == 0) return FA_OK;
    fa_parallel_for(fa_ceil_div(rows, call.rows_per_task), fa_threads_for(2 * (double)rows * (double)n), rope_block, &call);
    return FA_OK;
}
