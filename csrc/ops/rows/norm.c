/* Layer norm and RMS norm: blocks of whole rows over the pool.

   The gradients of weight and bias are sums over rows. They run in blocks of BLOCK_ROWS rows, each with a sum of its own in scratch,
   and these are added up in order after every BLOCKS_AT_ONCE blocks: constants, so that no sum depends on the threads. Of 16-bit arrays they are rounded at the end. */
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
} forward_call;

static void forward_rows(void *context, fa_index i, int worker)
{
    const forward_call *c = context;
    const fa_norm_arguments *a = c->a;
    const fa_index first = i * c->rows_per_task, rows = fa_min(c->rows_per_task, a->rows - first), at = first * a->n;
    stored *y = (stored *)a->y + at, *sum = a->sum ? (stored *)a->sum + at : NULL;
    real *mean = a->mean ? (real *)a->mean + first : NULL, *rstd = a->rstd ? (real *)a->rstd + first : NULL;
    const stored *x = (const stored *)a->x + at, *residual = a->residual ? (const stored *)a->residual + at : NULL;
    (void)worker;
    if (a->kind == FA_LAYER_NORM)
        c->kernels->layer_norm_rows(y, sum, mean, rstd, x, residual, a->weight, a->bias, rows, a->n, a->eps);
    else
        c->kernels->rms_norm_rows(y, sum, rstd, x, residual, a->weight, rows, a->n, a->eps);
}

fa_status OP(norm_forward)(const fa_norm_arguments *a)
{
    forward_call call = {current_kernels(), a, fa_max(1, BLOCK / fa_max(1, a->n))};
    if (a->n == 0) return FA_OK;
    fa_parallel_for(fa_ceil_div(a->rows, call.rows_per_task), fa_threads_for(WORK_PER_ELEMENT * (double)a->rows * (double)a->n),
                    forward_rows, &call);
    return FA_OK;
}

typedef struct {
    const fa_kernels *kernels;
    const fa_norm_backward_arguments *a;
    real *parts;           /* [BLOCKS_AT_ONCE][width]: dw, then db, of each block */
    real *dweight, *dbias; /* of all: the results themselves, or where those are of 16 bits, what they are rounded from */
    fa_index width, first; /* first row of this round */
    fa_index blocks;
} backward_call;

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
    fa_scratch scratch;
    if (a->n == 0) return FA_OK;
    arena plan = {0};
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        call.parts = arena_take(&plan, BLOCKS_AT_ONCE * call.width, sizeof(real));
        call.dweight = FA_CONVERTS && a->dweight ? arena_take(&plan, a->n, sizeof(real)) : a->dweight;
        call.dbias = FA_CONVERTS && a->dbias ? arena_take(&plan, a->n, sizeof(real)) : a->dbias;
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    if (a->dweight) clear(call.dweight, a->n);
    if (a->dbias) clear(call.dbias, a->n);
    for (call.first = 0; call.first < a->rows; call.first += BLOCK_ROWS * BLOCKS_AT_ONCE) {
        call.blocks = fa_min(BLOCKS_AT_ONCE, fa_ceil_div(a->rows - call.first, BLOCK_ROWS));
        fa_parallel_for(call.blocks, threads, backward_rows, &call);
        if (call.width)
            fa_parallel_for(fa_ceil_div(a->n, COLUMNS), fa_threads_for((double)call.blocks * (double)call.width), add_blocks,
                            &call);
    }
    if (FA_CONVERTS && a->dweight) call.kernels->narrow(a->dweight, call.dweight, a->n);
    if (FA_CONVERTS && a->dbias) call.kernels->narrow(a->dbias, call.dbias, a->n);
    fa_scratch_give(&scratch);
    return FA_OK;
}
