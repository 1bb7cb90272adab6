/* Cross-entropy and its gradient: blocks of whole rows over the pool; no probabilities are kept. Rows of 16 bits are widened one by one, and
   rows of the gradient rounded. */
#include "../ops.h"

#include <math.h>

#define BLOCK 16384 /* elements per task, in whole rows */
#define WORK_PER_ELEMENT 6.0

typedef struct {
    const fa_kernels *kernels;
    const fa_cross_entropy_arguments *a;
    stored *dx;
    const real *dloss;
    fa_index rows_per_task;
    real *wide; /* of each worker a row, and one of the gradient, where arrays are of 16 bits */
} cross_entropy_call;

static void forward_rows(void *context, fa_index i, int worker)
{
    const cross_entropy_call *c = context;
    const fa_cross_entropy_arguments *a = c->a;
    const fa_index first = i * c->rows_per_task, rows = fa_min(c->rows_per_task, a->rows - first);
    const stored *x = (const stored *)a->x + first * a->n;
    real *loss = (real *)a->loss + first, *top = (real *)a->top + first, *sum = (real *)a->sum + first;
    const fa_index *target = a->target + first;
#if FA_CONVERTS
    real *wide = c->wide + 2 * worker * a->n;
    for (fa_index r = 0; r < rows; r++) {
        c->kernels->widen(wide, x + r * a->n, a->n);
        c->kernels->cross_entropy_rows(loss + r, top + r, sum + r, wide, target + r, 1, a->n, a->ignored, a->smoothing);
    }
#else
    (void)worker;
    c->kernels->cross_entropy_rows(loss, top, sum, x, target, rows, a->n, a->ignored, a->smoothing);
#endif
}

static void backward_rows(void *context, fa_index i, int worker)
{
    const cross_entropy_call *c = context;
    const fa_cross_entropy_arguments *a = c->a;
    const fa_index first = i * c->rows_per_task, rows = fa_min(c->rows_per_task, a->rows - first), at = first * a->n;
    const stored *x = (const stored *)a->x + at;
    stored *dx = c->dx + at;
    const real *dloss = c->dloss + first, *top = (const real *)a->top + first, *sum = (const real *)a->sum + first;
    const fa_index *target = a->target + first;
#if FA_CONVERTS
    real *wide = c->wide + 2 * worker * a->n, *gradient = wide + a->n;
    for (fa_index r = 0; r < rows; r++) {
        c->kernels->widen(wide, x + r * a->n, a->n);
        c->kernels->cross_entropy_backward_rows(gradient, dloss + r, wide, top + r, sum + r, target + r, 1, a->n, a->ignored,
                                                a->smoothing);
        c->kernels->narrow(dx + r * a->n, gradient, a->n);
    }
#else
    (void)worker;
    c->kernels->cross_entropy_backward_rows(dx, dloss, x, top, sum, target, rows, a->n, a->ignored, a->smoothing);
#endif
}

static fa_status run(cross_entropy_call *c, fa_loop_body *task)
{
    const fa_cross_entropy_arguments *a = c->a;
    const int threads = fa_threads_for(WORK_PER_ELEMENT * (double)a->rows * (double)a->n);
    fa_scratch scratch;
    if (FA_CONVERTS) {
        if (!fa_scratch_take(&scratch, fa_scratch_bytes(a->n, 2 * (size_t)threads * sizeof(real)))) return FA_NOMEM;
        c->wide = (real *)scratch.base;
    }
    c->rows_per_task = fa_max(1, BLOCK / fa_max(1, a->n));
    fa_parallel_for(fa_ceil_div(a->rows, c->rows_per_task), threads, task, c);
    if (FA_CONVERTS) fa_scratch_give(&scratch);
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

#if !FA_CONVERTS
/* What each addition rounds away is added at the end (Neumaier), so the order hardly matters; at an overflow or an infinity there is no
   rest. */
double OP(mean)(const void *x, fa_index n, fa_index count)
{
    const real *a = x;
    double sum = 0, rest = 0;
    for (fa_index i = 0; i < n; i++) {
        const double term = (double)a[i], next = sum + term;
        rest += fabs(sum) >= fabs(term) ? (sum - next) + term : (term - next) + sum;
        sum = next;
    }
    return (double)(real)((isfinite(sum) ? sum + rest : sum) / (double)count);
}
#endif
