/* Additive attention.

   Forward: a task is TASK_ROWS queries of one sequence, from their scores to their context. Backward, in three loops over the pool: the
   gradients of the scores, by the same tasks; dvalues, TASK_ROWS keys a task; and dquery, dkeys and dv, where a task is all pairs of one
   sequence and a few columns. So every sum but that of dv over the batch lies in one task, and that one is added up at the end, in
   order. Scratch: two rows of scores for each query of a task; backward S scores for each query of the call, and B rows of dv. */
#include "ops.h"

#define TASK_ROWS 16
#define TASK_VECTORS 2   /* columns of a task of the backward's last loop: the pair whose tanh share a division */
#define WORK_PER_TANH 10 /* multiply-adds */

typedef struct {
    const fa_kernels *kernels;
    const fa_additive_arguments *a;
    const fa_additive_gradients *g;
    fa_index row_tasks, key_tasks, column_tasks;
    real *scores;  /* of each thread: [TASK_ROWS][S] scores, then as many weights */
    real *de, *dv; /* [B][T][S], [B][A] */
} additive_call;

static fa_index keys_of(const fa_additive_arguments *a, fa_index b) { return a->lengths ? a->lengths[b] : a->S; }

static const real *row_of(const void *x, const fa_index *stride, fa_index b, fa_index row)
{
    return (const real *)x + b * stride[0] + row * stride[1];
}

static void apply_mask(const additive_call *c, real *e, fa_index b, fa_index t, fa_index rows, fa_index keys)
{
    const fa_additive_arguments *a = c->a;
    const fa_index at = b * a->mask_stride[0] + t * a->mask_stride[1];
    if (a->mask_kind == FA_MASK_BOOL)
        c->kernels->additive_mask_bool(e, a->S, rows, keys, (const uint8_t *)a->mask + at, a->mask_stride[1]);
    if (a->mask_kind == FA_MASK_ADD)
        c->kernels->additive_mask_add(e, a->S, rows, keys, (const real *)a->mask + at, a->mask_stride[1]);
}

static void forward_task(void *context, fa_index i, int worker)
{
    const additive_call *c = context;
    const fa_additive_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const fa_index b = i / c->row_tasks, t = i % c->row_tasks * TASK_ROWS, rows = fa_min(TASK_ROWS, a->T - t);
    const fa_index S = a->S, keys = keys_of(a, b), first = b * a->T + t;
    real *e = c->scores + worker * 2 * TASK_ROWS * S, *w = a->weights ? (real *)a->weights + first * S : e + TASK_ROWS * S;
    const real *query = row_of(a->query, a->query_stride, b, t);
    k->additive_scores(e, S, query, a->query_stride[1], rows, row_of(a->keys, a->keys_stride, b, 0), a->keys_stride[1], keys,
                       a->v, a->A);
    apply_mask(c, e, b, t, rows, keys);
    if (keys > 0) k->softmax_rows(w, S, e, S, rows, keys, 1);
    k->additive_settle(w, S, e, S, rows, keys);
    const row_weights weights = {w, e, S, 1, -REAL_INFINITY};
    k->additive_weighted_rows((real *)a->context + first * a->C, a->C, &weights, rows, row_of(a->values, a->values_stride, b, 0),
                              a->values_stride[1], keys, a->C);
    if (a->weights)
        for (fa_index r = 0; r < rows; r++) clear(w + r * S + keys, S - keys);
}

static double work_of(const fa_additive_arguments *a)
{
    return (double)a->B * (double)a->T * (double)a->S * (WORK_PER_TANH * (double)a->A + (double)a->C);
}

fa_status OP(additive_forward)(const fa_additive_arguments *a)
{
    additive_call c = {.kernels = current_kernels(), .a = a, .row_tasks = fa_ceil_div(a->T, TASK_ROWS)};
    const int threads = fa_threads_for(work_of(a));
    fa_scratch scratch;
    arena plan = {0};
    if (a->C == 0 && !a->weights) return FA_OK; /* however many rows have nothing to write */
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        c.scores = arena_take(&plan, a->S, 2 * TASK_ROWS * sizeof(real) * (size_t)threads);
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    fa_parallel_for(a->B * c.row_tasks, threads, forward_task, &c);
    fa_scratch_give(&scratch);
    return FA_OK;
}

static void score_task(void *context, fa_index i, int worker)
{
    const additive_call *c = context;
    const fa_additive_arguments *a = c->a;
    const fa_index b = i / c->row_tasks, t = i % c->row_tasks * TASK_ROWS, at = (b * a->T + t) * a->S;
    (void)worker;
    c->kernels->additive_score_gradients(c->de + at, a->S, (const real *)a->weights + at, a->S,
                                         row_of(c->g->dcontext, c->g->dcontext_stride, b, t), c->g->dcontext_stride[1],
                                         fa_min(TASK_ROWS, a->T - t), row_of(a->values, a->values_stride, b, 0),
                                         a->values_stride[1], keys_of(a, b), a->C);
}

static void value_task(void *context, fa_index i, int worker)
{
    const additive_call *c = context;
    const fa_additive_arguments *a = c->a;
    const fa_index b = i / c->key_tasks, s = i % c->key_tasks * TASK_ROWS, keys = keys_of(a, b);
    const fa_index rows = fa_min(TASK_ROWS, a->S - s), some = fa_max(0, fa_min(rows, keys - s));
    const real *w = (const real *)a->weights + b * a->T * a->S + s;
    real *dvalues = (real *)c->g->dvalues + (b * a->S + s) * a->C;
    (void)worker;
    const row_weights weights = {w, w, 1, a->S, 0};
    c->kernels->additive_weighted_rows(dvalues, a->C, &weights, some, row_of(c->g->dcontext, c->g->dcontext_stride, b, 0),
                                       c->g->dcontext_stride[1], a->T, a->C);
    clear(dvalues + some * a->C, (rows - some) * a->C);
}

static void tanh_task(void *context, fa_index i, int worker)
{
    const additive_call *c = context;
    const fa_additive_arguments *a = c->a;
    const fa_additive_gradients *g = c->g;
    const fa_index b = i / c->column_tasks, width = TASK_VECTORS * c->kernels->sizes.lanes, column = i % c->column_tasks * width;
    const fa_index columns = fa_min(width, a->A - column), keys = keys_of(a, b);
    real *dkeys = (real *)g->dkeys + b * a->S * a->A + column;
    (void)worker;
    const tanh_gradients pairs = {.dq = (real *)g->dquery + b * a->T * a->A + column,
                                  .dk = dkeys,
                                  .dv = c->dv + b * a->A + column,
                                  .de = c->de + b * a->T * a->S,
                                  .q = row_of(a->query, a->query_stride, b, 0) + column,
                                  .k = row_of(a->keys, a->keys_stride, b, 0) + column,
                                  .v = (const real *)a->v + column,
                                  .lddq = a->A,
                                  .lddk = a->A,
                                  .ldde = a->S,
                                  .ldq = a->query_stride[1],
                                  .ldk = a->keys_stride[1],
                                  .rows = a->T,
                                  .keys = keys,
                                  .columns = columns};
    c->kernels->additive_tanh_gradients(&pairs);
    for (fa_index s = keys; s < a->S; s++) clear(dkeys + s * a->A, columns);
}

fa_status OP(additive_backward)(const fa_additive_gradients *g)
{
    const fa_additive_arguments *a = &g->forward;
    additive_call c = {.kernels = current_kernels(), .a = a, .g = g};
    c.row_tasks = fa_ceil_div(a->T, TASK_ROWS);
    c.key_tasks = fa_ceil_div(a->S, TASK_ROWS);
    c.column_tasks = fa_ceil_div(a->A, TASK_VECTORS * c.kernels->sizes.lanes);
    const int threads = fa_threads_for(work_of(a));
    fa_scratch scratch;
    arena plan = {0};
    if (a->A == 0 && a->C == 0) return FA_OK;
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        c.de = arena_take(&plan, a->B * a->T * a->S, sizeof(real));
        c.dv = arena_take(&plan, a->B * a->A, sizeof(real));
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    fa_parallel_for(a->B * c.row_tasks, threads, score_task, &c);
    fa_parallel_for(a->B * c.key_tasks, threads, value_task, &c);
    fa_parallel_for(a->B * c.column_tasks, threads, tanh_task, &c);
    clear(g->dv, a->A);
    c.kernels->sum_rows(g->dv, c.dv, a->A, NULL, a->B, a->A);
    fa_scratch_give(&scratch);
    return FA_OK;
}
