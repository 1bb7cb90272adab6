/* Cross-entropy and its gradient: blocks of whole rows over the pool; no probabilities are kept. */
#include "../ops.h"

#define BLOCK 16384 /* elements per task, in whole rows */
#define WORK_PER_ELEMENT 6.0

typedef struct {
    const fa_kernels *kernels;
    const fa_cross_entropy_arguments *a;
    real *dx;
    const real *dloss;
    fa_index rows_per_task;
} cross_entropy_call;

static void forward_rows(void *context, fa_index i, int worker)
{
    const cross_entropy_call *c = context;
    const fa_cross_entropy_arguments *a = c->a;
    const fa_index first = i * c->rows_per_task, rows = fa_min(c->rows_per_task, a->rows - first);
    (void)worker;
    c->kernels->cross_entropy_rows((real *)a->loss + first, (real *)a->top + first, (real *)a->sum + first,
                                   (const real *)a->x + first * a->n, a->target + first, rows, a->n, a->ignored, a->smoothing);
}

static void backward_rows(void *context, fa_index i, int worker)
{
    const cross_entropy_call *c = context;
    const fa_cross_entropy_arguments *a = c->a;
    const fa_index first = i * c->rows_per_task, rows = fa_min(c->rows_per_task, a->rows - first), at = first * a->n;
    (void)worker;
    c->kernels->cross_entropy_backward_rows(c->dx + at, c->dloss + first, (const real *)a->x + at, (const real *)a->top + first,
                                            (const real *)a->sum + first, a->target + first, rows, a->n, a->ignored,
                                            a->smoothing);
}

static fa_status run(cross_entropy_call *c, fa_loop_body *task)
{
    const fa_cross_entropy_arguments *a = c->a;
    c->rows_per_task = fa_max(1, BLOCK / fa_max(1, a->n));
    fa_parallel_for(fa_ceil_div(a->rows, c->rows_per_task), fa_threads_for(WORK_PER_ELEMENT * (double)a->rows * (double)a->n),
                    task, c);
    return FA_OK;
}

fa_status OP(cross_entropy_forward)(const fa_cross_entropy_arguments *a)
{
    cross_entropy_call call = {.kernels = current_kernels(), .a = a};
    return run(&call, forward_rows);
}

fa_status OP(cross_entropy_backward)(const fa_cross_entropy_arguments *a, void *dx, const void *dloss)
{
    cross_entropy_call call = {.kernels = current_kernels(), .a = a, .dx = dx, .dloss = dloss};
    return run(&call, backward_rows);
}
