/* softmax, log_softmax and their backward: blocks of whole rows over the pool. 16-bit rows are widened to a buffer, a few at
   a time, and the results rounded from there, once. */
#include "../ops.h"

/* Elements per task, in whole rows. */
#define BLOCK 16384
#define WORK_PER_ELEMENT 6.0
/* Reals in a buffer of widened rows, unless one row has more: they pass through the first-level cache. */
#define BUFFER 2048

typedef struct {
    const fa_kernels *kernels;
    stored *y;
    const stored *x, *dy;
    fa_index ldy, ldx, rows, n, rows_per_task;
    real scale;
    int log;
    real *wide; /* per worker `operands` buffers of rows_at_once, where arrays are not of reals */
    fa_index operands, rows_at_once;
} softmax_call;

static fa_index rows_per_task(fa_index n) { return fa_max(1, BLOCK / fa_max(1, n)); }

/* Rows of reals for a kernel: where they are, or widened into `buffer`. */
static const real *wide_rows(const softmax_call *c, real *buffer, const stored *x, fa_index ldx, fa_index rows)
{
#if FA_CONVERTS
    for (fa_index r = 0; r < rows; r++) c->kernels->widen(buffer + r * c->n, x + r * ldx, c->n);
    return buffer;
#else
    (void)c, (void)buffer, (void)ldx, (void)rows;
    return x;
#endif
}

/* Where a kernel writes rows of reals; finish_rows brings them to their place. */
static real *result_rows(stored *y, real *buffer)
{
#if FA_CONVERTS
    (void)y;
    return buffer;
#else
    (void)buffer;
    return y;
#endif
}

static void finish_rows(const softmax_call *c, stored *y, fa_index ldy, const real *result, fa_index rows)
{
    if (!FA_CONVERTS) return;
    for (fa_index r = 0; r < rows; r++) c->kernels->narrow(y + r * ldy, result + r * c->n, c->n);
}

static void forward_rows(void *context, fa_index i, int worker)
{
    const softmax_call *c = context;
    const fa_index end = fa_min(c->rows, (i + 1) * c->rows_per_task);
    real *buffer = FA_CONVERTS ? c->wide + worker * c->operands * c->rows_at_once * c->n : NULL;
    for (fa_index first = i * c->rows_per_task; first < end; first += c->rows_at_once) {
        const fa_index rows = fa_min(c->rows_at_once, end - first);
        stored *y = c->y + first * c->ldy;
        const real *x = wide_rows(c, buffer, c->x + first * c->ldx, c->ldx, rows);
        real *result = result_rows(y, buffer);
        (c->log ? c->kernels->log_softmax_rows : c->kernels->softmax_rows)(result, FA_CONVERTS ? c->n : c->ldy, x,
                                                                           FA_CONVERTS ? c->n : c->ldx, rows, c->n, c->scale);
        finish_rows(c, y, c->ldy, result, rows);
    }
}

static void backward_rows(void *context, fa_index i, int worker)
{
    const softmax_call *c = context;
    const fa_index end = fa_min(c->rows, (i + 1) * c->rows_per_task), size = c->rows_at_once * c->n;
    real *buffer = FA_CONVERTS ? c->wide + worker * c->operands * size : NULL;
    for (fa_index first = i * c->rows_per_task; first < end; first += c->rows_at_once) {
        const fa_index rows = fa_min(c->rows_at_once, end - first), at = first * c->n;
        const real *dy = wide_rows(c, buffer, c->dy + at, c->n, rows);
        const real *y = wide_rows(c, FA_CONVERTS ? buffer + size : NULL, c->x + at, c->n, rows);
        real *dx = result_rows(c->y + at, buffer);
        (c->log ? c->kernels->log_softmax_backward_rows : c->kernels->softmax_backward_rows)(dx, c->n, dy, c->n, y, c->n, rows,
                                                                                             c->n, c->scale);
        finish_rows(c, c->y + at, c->n, dx, rows);
    }
}

static fa_status run(softmax_call *c, fa_loop_body *task)
{
    const int threads = fa_threads_for(WORK_PER_ELEMENT * (double)c->rows * (double)c->n);
    fa_scratch scratch;
    c->rows_at_once = FA_CONVERTS ? fa_min(c->rows_per_task, fa_max(1, BUFFER / c->n)) : c->rows_per_task;
    if (FA_CONVERTS) {
        const fa_index blocks = c->operands * threads;
        const size_t bytes = fa_scratch_bytes(c->rows_at_once * c->n, (size_t)blocks * sizeof(real));
        if (!fa_scratch_take(&scratch, bytes)) return FA_NOMEM;
        c->wide = (real *)scratch.base;
    }
    fa_parallel_for(fa_ceil_div(c->rows, c->rows_per_task), threads, task, c);
    if (FA_CONVERTS) fa_scratch_give(&scratch);
    return FA_OK;
}

fa_status OP(softmax_forward)(int log, void *y, fa_index ldy, const void *x, fa_index ldx, fa_index rows, fa_index n,
                              double scale)
{
    softmax_call call = {current_kernels(), y, x, NULL, ldy, ldx, rows, n, rows_per_task(n), (real)scale, log, NULL, 1, 0};
    return n == 0 || rows == 0 ? FA_OK : run(&call, forward_rows);
}

fa_status OP(softmax_backward)(int log, void *dx, const void *dy, const void *y, fa_index rows, fa_index n, double scale)
{
    softmax_call call = {current_kernels(), dx, y, dy, n, n, rows, n, rows_per_task(n), (real)scale, log, NULL, 2, 0};
    return n == 0 || rows == 0 ? FA_OK : run(&call, backward_rows);
}
