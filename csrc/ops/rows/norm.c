/* Layer norm and RMS norm: blocks of whole rows over the pool.

   The gradients of weight and bias are sums over rows. They run in blocks of BLOCK_ROWS rows, each with a sum of its own in scratch,
   and these are added up in order after every BLOCKS_AT_ONCE blocks: constants, so that no sum depends on the threads. Of 16-bit arrays they are rounded at the end.

   With float weights beside 16-bit arrays, rows are widened one by one, float's kernels run on them, and results are rounded once. */
#include "../ops.h"

#define BLOCK 16384 /* elements per task of the forward, in whole rows */
#define BLOCK_ROWS 64
#define BLOCKS_AT_ONCE 64
#define COLUMNS 512 /* of a task that adds up blocks */
#define WORK_PER_ELEMENT 4.0

typedef struct {
    const fa_kernels *kernels;
    const fa_norm_arguments *a;
    fa_index rows_per_task;
#if FA_CONVERTS
    const fa_kernels_f32 *of_float;
    real *row; /* of each worker, where weights are wide */
#endif
} forward_call;

#if FA_CONVERTS
/* One row, with wide weights. The sum with the residual is that of the call without weights. */
static void forward_wide_row(const forward_call *c, real *row, stored *y, stored *sum, real *mean, real *rstd, const stored *x,
                             const stored *residual)
{
    const fa_norm_arguments *a = c->a;
    if (residual) c->kernels->rms_norm_rows(y, sum, NULL, x, residual, NULL, 1, a->n, a->eps);
    c->kernels->widen(row, residual ? sum : x, a->n);
    if (a->kind == FA_LAYER_NORM)
        c->of_float->layer_norm_rows(row, NULL, mean, rstd, row, NULL, a->weight, a->bias, 1, a->n, a->eps);
    else
        c->of_float->rms_norm_rows(row, NULL, rstd, row, NULL, a->weight, 1, a->n, a->eps);
    c->kernels->narrow(y, row, a->n);
}
#endif

static void forward_rows(void *context, fa_index i, int worker)
{
    const forward_call *c = context;
    const fa_norm_arguments *a = c->a;
    const fa_index first = i * c->rows_per_task, rows = fa_min(c->rows_per_task, a->rows - first), at = first * a->n;
    stored *y = (stored *)a->y + at, *sum = a->sum ? (stored *)a->sum + at : NULL;
    real *mean = a->mean ? (real *)a->mean + first : NULL, *rstd = a->rstd ? (real *)a->rstd + first : NULL;
    const stored *x = (const stored *)a->x + at, *residual = a->residual ? (const stored *)a->residual + at : NULL;
    (void)worker;
#if FA_CONVERTS
    for (fa_index r = 0; r < rows && a->wide; r++) {
        const fa_index of_row = r * a->n;
        forward_wide_row(c, c->row + worker * a->n, y + of_row, sum ? sum + of_row : NULL, mean ? mean + r : NULL,
                         rstd ? rstd + r : NULL, x + of_row, residual ? residual + of_row : NULL);
    }
    if (a->wide) return;
#endif
    if (a->kind == FA_LAYER_NORM)
        c->kernels->layer_norm_rows(y, sum, mean, rstd, x, residual, a->weight, a->bias, rows, a->n, a->eps);
    else
        c->kernels->rms_norm_rows(y, sum, rstd, x, residual, a->weight, rows, a->n, a->eps);
}

fa_status OP(norm_forward)(const fa_norm_arguments *a)
{
    forward_call call = {.kernels = current_kernels(), .a = a, .rows_per_task = fa_max(1, BLOCK / fa_max(1, a->n))};
    const int threads = fa_threads_for(WORK_PER_ELEMENT * (double)a->rows * (double)a->n);
    if (a->n == 0) return FA_OK;
#if FA_CONVERTS
    fa_scratch scratch;
    if (a->wide) {
        if (!fa_scratch_take(&scratch, fa_scratch_bytes(a->n, (size_t)threads * sizeof(real)))) return FA_NOMEM;
        call.of_float = fa_kernels_of_f32();
        call.row = (real *)scratch.base;
    }
#endif
    fa_parallel_for(fa_ceil_div(a->rows, call.rows_per_task), threads, forward_rows, &call);
#if FA_CONVERTS
    if (a->wide) fa_scratch_give(&scratch);
#endif
    return FA_OK;
}

typedef struct {
    const fa_kernels *kernels;
    const fa_norm_backward_arguments *a;
    real *parts;           /* [BLOCKS_AT_ONCE][width]: dw, then db, of each block */
    real *dweight, *dbias; /* of all: the results themselves, or where those are of 16 bits, what they are rounded from */
    fa_index width, first; /* first row of this round */
    fa_index blocks;
#if FA_CONVERTS
    const fa_kernels_f32 *of_float;
    real *row; /* of each worker: rows of dy, x and dsum, where weights are wide */
#endif
} backward_call;

#if FA_CONVERTS
/* One row, with wide weights. */
static void backward_wide_row(const backward_call *c, real *row, stored *dx, real *dw, real *db, const stored *dy,
                              const stored *x, const stored *dsum, const real *mean, const real *rstd)
{
    const fa_norm_backward_arguments *a = c->a;
    real *wide_x = row + a->n, *wide_sum = dsum ? row + 2 * a->n : NULL;
    c->kernels->widen(row, dy, a->n);
    c->kernels->widen(wide_x, x, a->n);
    if (dsum) c->kernels->widen(wide_sum, dsum, a->n);
    if (a->kind == FA_LAYER_NORM)
        c->of_float->layer_norm_backward_rows(row, dw, db, row, wide_x, a->weight, wide_sum, mean, rstd, 1, a->n);
    else
        c->of_float->rms_norm_backward_rows(row, dw, row, wide_x, a->weight, wide_sum, rstd, 1, a->n);
    c->kernels->narrow(dx, row, a->n);
}
#endif

static void backward_rows(void *context, fa_index i, int worker)
{
    const backward_call *c = context;
    const fa_norm_backward_arguments *a = c->a;
    const fa_index first = c->first + i * BLOCK_ROWS, rows = fa_min(BLOCK_ROWS, a->rows - first), at = first * a->n;
    stored *dx = (stored *)a->dx + at;
    real *dw = a->dweight ? c->parts + i * c->width : NULL;
    real *db = a->dbias ? c->parts + (i + 1) * c->width - a->n : NULL;
    const stored *dy = (const stored *)a->dy + at, *x = (const stored *)a->x + at;
    const stored *dsum = a->dsum ? (const stored *)a->dsum + at : NULL;
    const real *rstd = (const real *)a->rstd + first;
    (void)worker;
    if (c->width) memset(c->parts + i * c->width, 0, (size_t)c->width * sizeof(real));
#if FA_CONVERTS
    for (fa_index r = 0; r < rows && a->wide; r++) {
        const fa_index of_row = r * a->n;
        backward_wide_row(c, c->row + 3 * worker * a->n, dx + of_row, dw, db, dy + of_row, x + of_row,
                          dsum ? dsum + of_row : NULL, a->mean ? (const real *)a->mean + first + r : NULL, rstd + r);
    }
    if (a->wide) return;
#endif
    if (a->kind == FA_LAYER_NORM)
        c->kernels->layer_norm_backward_rows(dx, dw, db, dy, x, a->weight, dsum, (const real *)a->mean + first, rstd, rows, a->n);
    else
        c->kernels->rms_norm_backward_rows(dx, dw, dy, x, a->weight, dsum, rstd, rows, a->n);
}

static void add_blocks(void *context, fa_index i, int worker)
{
    const backward_call *c = context;
    const fa_norm_backward_arguments *a = c->a;
    const fa_index column = i * COLUMNS, n = fa_min(COLUMNS, a->n - column);
    (void)worker;
    if (c->dweight) c->kernels->add_rows(c->dweight + column, c->parts + column, c->width, c->blocks, n);
    if (c->dbias) c->kernels->add_rows(c->dbias + column, c->parts + c->width - a->n + column, c->width, c->blocks, n);
}

fa_status OP(norm_backward)(const fa_norm_backward_arguments *a)
{
    backward_call call = {.kernels = current_kernels(), .a = a, .width = ((a->dweight != NULL) + (a->dbias != NULL)) * a->n};
    const int threads = fa_threads_for(WORK_PER_ELEMENT * (double)a->rows * (double)a->n);
    const int rounds = FA_CONVERTS && !a->wide; /* the gradients of weight and bias */
    fa_scratch scratch;
    if (a->n == 0) return FA_OK;
    arena plan = {0};
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        call.parts = arena_take(&plan, BLOCKS_AT_ONCE * call.width, sizeof(real));
        call.dweight = rounds && a->dweight ? arena_take(&plan, a->n, sizeof(real)) : a->dweight;
        call.dbias = rounds && a->dbias ? arena_take(&plan, a->n, sizeof(real)) : a->dbias;
#if FA_CONVERTS
        call.row = a->wide ? arena_take(&plan, 3 * threads * a->n, sizeof(real)) : NULL;
#endif
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
#if FA_CONVERTS
    call.of_float = fa_kernels_of_f32();
#endif
    if (a->dweight) clear(call.dweight, a->n);
    if (a->dbias) clear(call.dbias, a->n);
    for (call.first = 0; call.first < a->rows; call.first += BLOCK_ROWS * BLOCKS_AT_ONCE) {
        call.blocks = fa_min(BLOCKS_AT_ONCE, fa_ceil_div(a->rows - call.first, BLOCK_ROWS));
        fa_parallel_for(call.blocks, threads, backward_rows, &call);
        if (call.width)
            fa_parallel_for(fa_ceil_div(a->n, COLUMNS), fa_threads_for((double)call.blocks * (double)call.width), add_blocks,
                            &call);
    }
    if (rounds && a->dweight) call.kernels->narrow(a->dweight, call.dweight, a->n);
    if (rounds && a->dbias) call.kernels->narrow(a->dbias, call.dbias, a->n);
    fa_scratch_give(&scratch);
    return FA_OK;
}
