/* Rows of a table by number: y[i] = w[id[i]], and the gradient dw[id[i]] += dy[i].

   Several ids may be the same, so the gradient is split by columns: each task adds the rows in ascending i. */
#include "../ops.h"

#include <stdint.h>
#include <string.h>

#define BLOCK 16384 /* elements per task of the forward, in whole rows */
#define COLUMNS 64  /* per task of the backward: several cache lines, so that no two tasks share one for long */
#define WORK_PER_ELEMENT 1.0
#define STREAM_LEAST 0x1p24 /* bytes of a result that goes past the caches */

typedef struct {
    const fa_kernels *kernels;
    stored *y;
    const stored *x;
    const fa_index *id;
    fa_index rows, n, step, table_rows;
    int streams;
} embedding_call;

static void gather_block(void *context, fa_index i, int worker)
{
    const embedding_call *c = context;
    const fa_index first = i * c->step, end = fa_min(c->rows, first + c->step), bytes = c->n * (fa_index)sizeof(stored);
    (void)worker;
    if (c->streams)
        c->kernels->gather_rows(c->y + first * c->n, c->x, c->id + first, end - first, bytes);
    else
        for (fa_index r = first; r < end; r++) memcpy(c->y + r * c->n, c->x + c->id[r] * c->n, (size_t)bytes);
}

/* Whether a result is larger than caches, and what gather_rows takes. */
static int past_caches(const fa_kernels *k, const void *y, fa_index rows, fa_index n)
{
    const uintptr_t vector = (uintptr_t)k->sizes.lanes * sizeof(real), bytes = (uintptr_t)n * sizeof(stored);
    return (double)rows * (double)bytes >= STREAM_LEAST && (uintptr_t)y % vector == 0 && bytes % vector == 0;
}

fa_status OP(embedding_forward)(void *y, const void *w, const fa_index *id, fa_index rows, fa_index n)
{
    const fa_kernels *k = current_kernels();
    embedding_call call = {.kernels = k,
                           .y = y,
                           .x = w,
                           .id = id,
                           .rows = rows,
                           .n = n,
                           .step = fa_max(1, BLOCK / fa_max(1, n)),
                           .streams = past_caches(k, y, rows, n)};
    if (n == 0) return FA_OK;
    fa_parallel_for(fa_ceil_div(rows, call.step), fa_threads_for(WORK_PER_ELEMENT * (double)rows * (double)n), gather_block,
                    &call);
    return FA_OK;
}

#if FA_CONVERTS
/* In float, and rounded once. */
fa_status fa_embedding_backward_f32(void *dw, const void *dy, const fa_index *id, fa_index table_rows, fa_index rows, fa_index n);

fa_status OP(embedding_backward)(void *dw, const void *dy, const fa_index *id, fa_index table_rows, fa_index rows, fa_index n)
{
    real *wide_dy = NULL, *wide_dw = NULL;
    fa_scratch scratch;
    arena plan = {0};
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        wide_dy = arena_take(&plan, rows * n, sizeof(real));
        wide_dw = arena_take(&plan, table_rows * n, sizeof(real));
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    OP(cast)(wide_dy, dy, rows * n, 0);
    const fa_status status = fa_embedding_backward_f32(wide_dw, wide_dy, id, table_rows, rows, n);
    if (status == FA_OK) OP(cast)(dw, wide_dw, table_rows * n, 1);
    fa_scratch_give(&scratch);
    return status;
}
#else
static void zero_rows(void *context, fa_index i, int worker)
{
    const embedding_call *c = context;
    const fa_index first = i * c->step, rows = fa_min(c->step, c->table_rows - first);
    (void)worker;
    memset(c->y + first * c->n, 0, (size_t)(rows * c->n) * sizeof(real));
}

static void scatter_columns(void *context, fa_index i, int worker)
{
    const embedding_call *c = context;
    const fa_index column = i * COLUMNS;
    (void)worker;
    c->kernels->scatter_add_rows(c->y + column, c->n, c->id, c->x + column, c->n, c->rows, fa_min(COLUMNS, c->n - column));
}

fa_status OP(embedding_backward)(void *dw, const void *dy, const fa_index *id, fa_index table_rows, fa_index rows, fa_index n)
{
    embedding_call call = {.kernels = current_kernels(),
                           .y = dw,
                           .x = dy,
                           .id = id,
                           .rows = rows,
                           .n = n,
                           .step = fa_max(1, BLOCK / fa_max(1, n)),
                           .table_rows = table_rows};
    if (n == 0 || table_rows == 0) return FA_OK;
    const double work = WORK_PER_ELEMENT * (double)n;
    fa_parallel_for(fa_ceil_div(table_rows, call.step), fa_threads_for(work * (double)table_rows), zero_rows, &call);
    fa_parallel_for(fa_ceil_div(n, COLUMNS), fa_threads_for(work * (double)rows), scatter_columns, &call);
    return FA_OK;
}
#endif
