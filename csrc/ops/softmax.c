/* softmax, log_softmax and their backward: blocks of whole rows over the pool. */
#include "ops.h"

/* Elements per task, in whole rows. */
#define BLOCK 16384
#define WORK_PER_ELEMENT 6.0

typedef struct {
    const fa_kernels *kernels;
    real *y;
    const real *x, *dy;
    fa_index ldy, ldx, rows, n, rows_per_task;
    real scale;
    int log;
} softmax_call;

static fa_index rows_per_task(fa_index n) { return fa_max(1, BLOCK / fa_max(1, n)); }

static void forward_rows(void *context, fa_index i, int worker)
{
    const softmax_call *c = context;
    const fa_index first = i * c->rows_per_task, rows = fa_min(c->rows_per_task, c->rows - first);
    (void)worker;
    (c->log ? c->kernels->log_softmax_rows : c->kernels->softmax_rows)(c->y + first * c->ldy, c->ldy, c->x + first * c->ldx,
                                                                       c->ldx, rows, c->n, c->scale);
}

static void backward_rows(void *context, fa_index i, int worker)
{
    const softmax_call *c = context;
    const fa_index first = i * c->rows_per_task, rows = fa_min(c->rows_per_task, c->rows - first), at = first * c->n;
    (void)worker;
    (c->log ? c->kernels->log_softmax_backward_rows : c->kernels->softmax_backward_rows)(c->y + at, c->n, c->dy + at, c->n,
                                                                                         c->x + at, c->n, rows, c->n, c->scale);
}

fa_status OP(softmax_forward)(int log, void *y, fa_index ldy, const void *x, fa_index ldx, fa_index rows, fa_index n,
                              double scale)
{
    softmax_call call = {current_kernels(), y, x, NULL, ldy, ldx, rows, n, rows_per_task(n), (real)scale, log};
    if (n == 0) return FA_OK;
    fa_parallel_for(fa_ceil_div(rows, call.rows_per_task), fa_members_for(WORK_PER_ELEMENT * (double)rows * (double)n),
                    forward_rows, &call);
    return FA_OK;
}

fa_status OP(softmax_backward)(int log, void *dx, const void *dy, const void *y, fa_index rows, fa_index n, double scale)
{
    softmax_call call = {current_kernels(), dx, y, dy, n, n, rows, n, rows_per_task(n), (real)scale, log};
    if (n == 0) return FA_OK;
    fa_parallel_for(fa_ceil_div(rows, call.rows_per_task), fa_members_for(WORK_PER_ELEMENT * (double)rows * (double)n),
                    backward_rows, &call);
    return FA_OK;
}
