/* Gradients of y = f(z), z = x w' + bias, for g = dy f'(z) (dy itself without an activation):

     dx = g w (+ dx)          dw = g' x          dbias = sums of g over rows

   Chunks of CHUNK_ROWS rows: g into scratch, the rows of x into panels, then the products of the chunk in one list over the pool
   (product.h). Sums over rows run in parts that divide CHUNK_ROWS, so no sum depends on the chunks. w is packed once.

   16-bit arrays: all of that on copies in float, and each gradient is rounded once. */
#include "../ops.h"

#include <string.h>

#if FA_CONVERTS

fa_status fa_linear_backward_f32(const fa_linear_backward_arguments *a);

/* Rows of n with any distance, to or from contiguous ones of reals. */
static void cast_rows(void *y, fa_index ldy, const void *x, fa_index ldx, fa_index rows, fa_index n, int narrow)
{
    const size_t y_item = narrow ? sizeof(stored) : sizeof(real), x_item = narrow ? sizeof(real) : sizeof(stored);
    if (ldy == n && ldx == n) n *= rows, rows = 1;
    for (fa_index r = 0; r < rows; r++)
        OP(cast)((char *)y + (size_t)(r * ldy) * y_item, (const char *)x + (size_t)(r * ldx) * x_item, n, narrow);
}

/* Gives out the float copies; called twice, see arena. */
static void plan_copies(fa_linear_backward_arguments *wide, const fa_linear_backward_arguments *a, arena *plan)
{
    const fa_index x = a->M * a->K, y = a->M * a->N, w = a->N * a->K;
    wide->x = arena_take(plan, x, sizeof(real));
    wide->dy = arena_take(plan, y, sizeof(real));
    wide->z = a->activation == FA_IDENTITY ? NULL : arena_take(plan, y, sizeof(real));
    wide->w = arena_take(plan, a->dx ? w : 0, sizeof(real));
    wide->dw = arena_take(plan, w, sizeof(real));
    wide->dx = a->dx ? arena_take(plan, x, sizeof(real)) : NULL;
    wide->dbias = a->dbias ? arena_take(plan, a->N, sizeof(real)) : NULL;
}

fa_status OP(linear_backward)(const fa_linear_backward_arguments *a)
{
    fa_linear_backward_arguments wide = *a;
    fa_scratch scratch;
    arena plan = {0};
    if (a->N == 0 && a->K == 0) return FA_OK; /* as below */
    plan_copies(&wide, a, &plan);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_copies(&wide, a, &plan);
    wide.ldw = wide.lddw = a->K;
    OP(cast)((void *)wide.x, a->x, a->M * a->K, 0);
    OP(cast)((void *)wide.dy, a->dy, a->M * a->N, 0);
    if (wide.z) OP(cast)((void *)wide.z, a->z, a->M * a->N, 0);
    if (a->dx) cast_rows((void *)wide.w, a->K, a->w, a->ldw, a->N, a->K, 0);
    if (a->dx && a->add_dx) OP(cast)(wide.dx, a->dx, a->M * a->K, 0);
    const fa_status status = fa_linear_backward_f32(&wide);
    if (status == FA_OK) {
        cast_rows(a->dw, a->lddw, wide.dw, a->K, a->N, a->K, 1);
        if (a->dx) OP(cast)(a->dx, wide.dx, a->M * a->K, 1);
        if (a->dbias) OP(cast)(a->dbias, wide.dbias, a->N, 1);
    }
    fa_scratch_give(&scratch);
    return status;
}

#else

#include "product.h"

#define CHUNK_ROWS 2048 /* a multiple of the rows in a part of a sum over rows; x and g of 1024 floats each: 16 MB */
#define ROWS_PER_TASK 16
#define WORK_PER_ELEMENT 8.0 /* of an activation's gradient */

typedef struct {
    const fa_kernels *kernels;
    const fa_linear_backward_arguments *a;
    fa_index first, rows, most_rows; /* of this chunk */
    fa_index ldg;
    int threads;
    real *g, *w_panels, *x_panels, *scratch;
    const real **w_rows, **x_rows, **g_rows;
    real **dx_rows;
} backward_call;

static void activation_rows(void *context, fa_index i, int worker)
{
    const backward_call *c = context;
    const fa_linear_backward_arguments *a = c->a;
    const fa_index end = fa_min(c->rows, (i + 1) * ROWS_PER_TASK);
    (void)worker;
    for (fa_index r = i * ROWS_PER_TASK; r < end; r++) {
        const fa_index at = (c->first + r) * a->N;
        c->kernels->map_backward(c->g + r * c->ldg, (const real *)a->dy + at, (const real *)a->z + at, a->N, (int)a->activation);
    }
}

static void begin_chunk(backward_call *c)
{
    const fa_linear_backward_arguments *a = c->a;
    const int active = a->activation != FA_IDENTITY;
    c->rows = fa_min(c->most_rows, a->M - c->first);
    for (fa_index r = 0; r < c->rows; r++) {
        c->x_rows[r] = (const real *)a->x + (c->first + r) * a->K;
        c->g_rows[r] = active ? c->g + r * c->ldg : (const real *)a->dy + (c->first + r) * a->N;
        if (a->dx) c->dx_rows[r] = (real *)a->dx + (c->first + r) * a->K;
    }
    if (active)
        fa_parallel_for(fa_ceil_div(c->rows, ROWS_PER_TASK), fa_threads_for(WORK_PER_ELEMENT * (double)c->rows * (double)a->N),
                        activation_rows, c);
}

static void run_chunk(backward_call *c)
{
    const fa_linear_backward_arguments *a = c->a;
    const product_operand x = {c->x_panels, c->x_rows, a->K, c->rows};
    OP(products_pack)(c->kernels, &x, 1, c->threads);
    const product dw = {.kind = PRODUCT_SUM,
                        .M = a->N,
                        .N = a->K,
                        .K = c->rows,
                        .a = c->g_rows,
                        .lda = c->ldg,
                        .panels = c->x_panels,
                        .c = a->dw,
                        .ldc = a->lddw,
                        .sum = a->dbias,
                        .add = c->first > 0};
    const product dx = {.kind = PRODUCT_ROWS,
                        .M = c->rows,
                        .N = a->K,
                        .K = a->N,
                        .a = c->g_rows,
                        .panels = c->w_panels,
                        .rows = c->dx_rows,
                        .add = a->add_dx};
    const product list[] = {dw, dx};
    OP(products_run)(c->kernels, list, a->dx ? 2 : 1, c->threads, c->scratch, fa_max(a->N, c->most_rows));
}

/* Gives out the scratch of the call; called twice, see arena. */
static void plan_call(backward_call *c, arena *plan)
{
    const fa_linear_backward_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const fa_index rows = c->most_rows;
    c->g = arena_take(plan, a->activation == FA_IDENTITY ? 0 : rows * c->ldg, sizeof(real));
    c->w_panels = arena_take(plan, a->dx ? OP(product_panels)(k, a->K, a->N) : 0, sizeof(real));
    c->x_panels = arena_take(plan, OP(product_panels)(k, a->K, rows), sizeof(real));
    c->scratch = arena_take(plan, OP(products_scratch)(k, fa_max(a->N, rows), c->threads), sizeof(real));
    c->w_rows = arena_take(plan, a->N, sizeof *c->w_rows);
    c->x_rows = arena_take(plan, rows, sizeof *c->x_rows);
    c->g_rows = arena_take(plan, rows, sizeof *c->g_rows);
    c->dx_rows = arena_take(plan, rows, sizeof *c->dx_rows);
}

fa_status OP(linear_backward)(const fa_linear_backward_arguments *a)
{
    backward_call c = {.kernels = current_kernels(), .a = a, .most_rows = fa_min(a->M, CHUNK_ROWS)};
    fa_scratch scratch;
    arena plan = {0};
    if (a->N == 0 && a->K == 0) return FA_OK; /* however many rows have nothing to add */
    /* Rows of g not a page apart: packing reads few columns of many rows, which would share sets of the caches. */
    c.ldg = a->activation == FA_IDENTITY ? a->N : a->N + c.kernels->sizes.lanes;
    c.threads = fa_threads_for(2 * (double)c.most_rows * (double)a->N * (double)a->K);
    plan_call(&c, &plan);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_call(&c, &plan);

    for (fa_index n = 0; n < a->N && a->M == 0; n++) clear((real *)a->dw + n * a->lddw, a->K);
    if (a->dbias) memset(a->dbias, 0, (size_t)a->N * sizeof(real));
    if (a->dx && a->M > 0) {
        for (fa_index n = 0; n < a->N; n++) c.w_rows[n] = (const real *)a->w + n * a->ldw;
        const product_operand w = {c.w_panels, c.w_rows, a->K, a->N};
        OP(products_pack)(c.kernels, &w, 1, c.threads);
    }
    for (; c.first < a->M; c.first += c.rows) {
        begin_chunk(&c);
        run_chunk(&c);
    }
    fa_scratch_give(&scratch);
    return FA_OK;
}

#endif
