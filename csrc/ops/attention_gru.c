/* A GRU with additive attention over annotations, whole sequences in one call. Step t of sequence b, with n, r, z gates of H units:

     sums = h w' + bias              w[A + 3 H, H]: the query, then n, r, z                              (1)
     weights = softmax over s of v . tanh(query + keys[b, s])                                            (2)
     c = sum over s of weights[s] values[b, s]      the annotations' part of the gates, r, z, n          (3)
     h' = the cell of gates_x[t, b], c and sums                                                          (4)
     context = sum over s of weights[s] annotations[b, s]                                                (5)

   The context enters the gates by a product, and so the values are annotations times its weight, once for all steps. Backward walks back:

     da, dh from (4);  dc = da;  de from (3);  dquery from (2);  dh += [dquery, da] w                    (6)

   where to de, which is linear in the gradients of the weights, comes the part of (5), computed before for all steps. What no step waits
   for, (5) and dkeys, dvalues, dannotations, dv, takes all steps together; the products with w' and gates_x are the caller's. A step
   is one matrix product and one loop over the sequences. */
#include "linear/product.h"

#define WORK_PER_TANH 10
#define PACKED_STEPS 2 /* steps from which on packing w is repaid */
#define TASK_ROWS 16   /* keys in a task of dvalues, steps in one of contexts */
#define TASK_VECTORS 2 /* columns in a task of dkeys and dv */

typedef struct {
    const fa_kernels *kernels;
    const fa_attention_gru *a;
    const fa_attention_gru_gradients *g;
    fa_index t, N, row_tasks, key_tasks, column_tasks, ld;
    real *packed, *scores; /* scores, of each thread: [S] */
    const real **w_rows;   /* [N] */
    real *c;               /* [B][3 H] */
    real *dh, *dh_product; /* [B][ld], [B][H] */
    real *de, *dv;         /* [B][T][S], [B][A] */
    real *de_step;         /* [B][S] */
    real *gates;           /* of each thread: [4 H] */
} gru_call;

static fa_index keys_of(const fa_attention_gru *a, fa_index b) { return a->lengths ? a->lengths[b] : a->S; }

static const real *state_before(const fa_attention_gru *a, fa_index t)
{
    return t ? (const real *)a->h + (t - 1) * a->B * a->H : (const real *)a->h0;
}

static int threads_for_step(const fa_attention_gru *a)
{
    return fa_threads_for((double)a->B * (double)a->S * (WORK_PER_TANH * (double)a->A + 3 * (double)a->H));
}

static void forward_task(void *context, fa_index b, int worker)
{
    const gru_call *call = context;
    const fa_attention_gru *a = call->a;
    const fa_kernels *k = call->kernels;
    const fa_index H = a->H, S = a->S, keys = keys_of(a, b), row = call->t * a->B + b;
    real *e = call->scores + worker * S, *w = (real *)a->weights + (b * a->T + call->t) * S, *c = call->c + b * 3 * H;
    const real *sums = (const real *)a->sums + row * call->N;
    k->additive_scores(e, S, sums, call->N, 1, (const real *)a->keys + b * S * a->A, a->A, keys, a->v, a->A);
    if (keys > 0) k->softmax_rows(w, S, e, S, 1, keys, 1);
    k->additive_settle(w, S, e, S, 1, keys);
    clear(w + keys, S - keys);
    const row_weights weights = {w, e, S, 1, -REAL_INFINITY};
    k->additive_weighted_rows(c, 3 * H, &weights, 1, (const real *)a->values + b * S * 3 * H, 3 * H, keys, 3 * H);
    k->gru_rows((real_rows){(real *)a->h + row * H, H}, (real_rows){a->saved ? (real *)a->saved + row * 4 * H : NULL, 4 * H},
                (const_rows){state_before(a, call->t) + b * H, H}, (const_rows){(const real *)a->gates_x + row * 3 * H, 3 * H},
                (const_rows){c, 3 * H}, (const_rows){sums + a->A, call->N}, 1, H);
}

static double work_of(const fa_attention_gru *a)
{
    return (double)a->T * (double)a->B * (double)a->S * (WORK_PER_TANH * (double)a->A + 3 * (double)a->H + (double)a->K);
}

static void context_task(void *context, fa_index i, int worker)
{
    const gru_call *call = context;
    const fa_attention_gru *a = call->a;
    const fa_index b = i / call->row_tasks, t = i % call->row_tasks * TASK_ROWS;
    const real *w = (const real *)a->weights + (b * a->T + t) * a->S;
    (void)worker;
    const row_weights weights = {w, w, a->S, 1, 0};
    call->kernels->additive_weighted_rows((real *)a->context + (t * a->B + b) * a->K, a->B * a->K, &weights,
                                          fa_min(TASK_ROWS, a->T - t), (const real *)a->annotations + b * a->S * a->K, a->K,
                                          keys_of(a, b), a->K);
}

fa_status OP(attention_gru_forward)(const fa_attention_gru *a)
{
    const fa_isa isa = fa_get_isa();
    gru_call call = {.kernels = kernels_for(isa), .a = a, .N = a->A + 3 * a->H};
    const int threads = threads_for_step(a), packs = a->T >= PACKED_STEPS;
    fa_status status = FA_OK;
    fa_scratch scratch;
    arena plan = {0};
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        call.packed = packs ? arena_take(&plan, 1, OP(linear_packed_bytes)(isa, call.N, a->H)) : NULL;
        call.scores = arena_take(&plan, a->S, sizeof(real) * (size_t)threads);
        call.c = arena_take(&plan, a->B, 3 * (size_t)a->H * sizeof(real));
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    if (packs) status = OP(linear_pack)(isa, call.packed, a->w, a->H, call.N, a->H);
    fa_linear_arguments product = {.M = a->B,
                                   .N = call.N,
                                   .K = a->H,
                                   .ldy = call.N,
                                   .ldx = a->H,
                                   .ldw = a->H,
                                   .w = a->w,
                                   .packed = call.packed,
                                   .bias = a->bias,
                                   .isa = isa,
                                   .activation = FA_IDENTITY};
    for (call.t = 0; call.t < a->T && status == FA_OK; call.t++) {
        product.y = (real *)a->sums + call.t * a->B * call.N;
        product.x = state_before(a, call.t);
        status = OP(linear_forward)(&product);
        if (status == FA_OK) fa_parallel_for(a->B, threads, forward_task, &call);
    }
    call.row_tasks = fa_ceil_div(a->T, TASK_ROWS);
    if (status == FA_OK) fa_parallel_for(a->B * call.row_tasks, fa_threads_for(work_of(a)), context_task, &call);
    fa_scratch_give(&scratch);
    return status;
}

/* The part of the contexts in de; none: 0. */
static void context_gradient_task(void *context, fa_index i, int worker)
{
    const gru_call *call = context;
    const fa_attention_gru *a = call->a;
    const fa_index b = i / call->row_tasks, t = i % call->row_tasks * TASK_ROWS, rows = fa_min(TASK_ROWS, a->T - t);
    real *de = call->de + (b * a->T + t) * a->S;
    (void)worker;
    if (!call->g->dcontext) {
        clear(de, rows * a->S);
        return;
    }
    call->kernels->additive_score_gradients(de, a->S, (const real *)a->weights + (b * a->T + t) * a->S, a->S,
                                            (const real *)call->g->dcontext + (t * a->B + b) * a->K, a->B * a->K, rows,
                                            (const real *)a->annotations + b * a->S * a->K, a->K, keys_of(a, b), a->K);
}

/* The product of the step behind, added to dh. */
static void add_product(const gru_call *call, fa_index b)
{
    const fa_index H = call->a->H;
    if (call->t < call->a->T - 1) call->kernels->add_rows(call->dh + b * call->ld, call->dh_product + b * H, H, 1, H);
}

/* (6) but for its product; da[b] is dquery, then h_n, r, z of what gru_backward leaves, h_n, r, z, n; the last three are those of
   gates_x. */
static void backward_task(void *context, fa_index b, int worker)
{
    const gru_call *call = context;
    const fa_attention_gru *a = call->a;
    const fa_attention_gru_gradients *g = call->g;
    const fa_kernels *k = call->kernels;
    const fa_index H = a->H, S = a->S, A = a->A, keys = keys_of(a, b), row = call->t * a->B + b;
    real *da = (real *)g->da + row * call->N, *gates = call->gates + worker * 4 * H, *de = call->de + (b * a->T + call->t) * S;
    real *dgates = (real *)g->dgates + row * 3 * H;
    const real *dy = g->dh ? (const real *)g->dh + row * H : NULL, *saved = (const real *)a->saved + row * 4 * H;
    const real *before = state_before(a, call->t) + b * H, *w = (const real *)a->weights + (b * a->T + call->t) * S;
    real *step = call->de_step + b * S;
    add_product(call, b);
    const cell_gradients at = {.da = gates,
                               .ldda = 4 * H,
                               .ld = call->ld,
                               .dy = dy ? &dy : NULL,
                               .saved = &saved,
                               .row_step = 1,
                               .rows = 1,
                               .units = H,
                               .H = H};
    k->gru_backward(&at, call->dh + b * call->ld, &before, 0);
    memcpy(da + A, gates, 3 * (size_t)H * sizeof(real));
    memcpy(dgates, gates + H, 3 * (size_t)H * sizeof(real));
    k->additive_score_gradients(step, S, w, S, dgates, 3 * H, 1, (const real *)a->values + b * S * 3 * H, 3 * H, keys, 3 * H);
    k->add_rows(de, step, S, 1, keys);
    const tanh_gradients query = {.dq = da,
                                  .de = de,
                                  .q = (const real *)a->sums + row * call->N,
                                  .k = (const real *)a->keys + b * S * A,
                                  .v = a->v,
                                  .lddq = A,
                                  .ldde = S,
                                  .ldq = call->N,
                                  .ldk = A,
                                  .rows = 1,
                                  .keys = keys,
                                  .columns = A};
    k->additive_tanh_gradients(&query);
}

/* dst[b, s] = sum over t of weights[b, t, s] x[t, b], of `width` columns. */
static void sum_over_steps(const gru_call *call, fa_index i, real *dst, const real *x, fa_index width)
{
    const fa_attention_gru *a = call->a;
    const fa_index b = i / call->key_tasks, s = i % call->key_tasks * TASK_ROWS, keys = keys_of(a, b);
    const fa_index rows = fa_min(TASK_ROWS, a->S - s), some = fa_max(0, fa_min(rows, keys - s));
    const real *w = (const real *)a->weights + b * a->T * a->S + s;
    dst += (b * a->S + s) * width;
    const row_weights weights = {w, w, 1, a->S, 0};
    if (x) call->kernels->additive_weighted_rows(dst, width, &weights, some, x + b * width, a->B * width, a->T, width);
    clear(dst + (x ? some * width : 0), (x ? rows - some : rows) * width);
}

static void value_task(void *context, fa_index i, int worker)
{
    const gru_call *call = context;
    (void)worker;
    sum_over_steps(call, i, call->g->dvalues, call->g->dgates, 3 * call->a->H);
    sum_over_steps(call, i, call->g->dannotations, call->g->dcontext, call->a->K);
}

/* dquery comes out as it is. */
static void key_task(void *context, fa_index i, int worker)
{
    const gru_call *call = context;
    const fa_attention_gru *a = call->a;
    const fa_index b = i / call->column_tasks, width = TASK_VECTORS * call->kernels->sizes.lanes;
    const fa_index column = i % call->column_tasks * width, columns = fa_min(width, a->A - column), keys = keys_of(a, b);
    const fa_index at = b * a->S * a->A + column;
    real *dkeys = (real *)call->g->dkeys + at;
    (void)worker;
    const tanh_gradients pairs = {.dq = (real *)call->g->da + b * call->N + column,
                                  .dk = dkeys,
                                  .dv = call->dv + b * a->A + column,
                                  .de = call->de + b * a->T * a->S,
                                  .q = (const real *)a->sums + b * call->N + column,
                                  .k = (const real *)a->keys + at,
                                  .v = (const real *)a->v + column,
                                  .lddq = a->B * call->N,
                                  .lddk = a->A,
                                  .ldde = a->S,
                                  .ldq = a->B * call->N,
                                  .ldk = a->A,
                                  .rows = a->T,
                                  .keys = keys,
                                  .columns = columns};
    call->kernels->additive_tanh_gradients(&pairs);
    for (fa_index s = keys; s < a->S; s++) clear(dkeys + s * a->A, columns);
}

static void set_state_gradient(gru_call *call)
{
    const fa_attention_gru *a = call->a;
    clear(call->dh, a->B * call->ld);
    for (fa_index b = 0; b < a->B && call->g->dh_last; b++)
        memcpy(call->dh + b * call->ld, (const real *)call->g->dh_last + b * a->H, (size_t)a->H * sizeof(real));
}

fa_status OP(attention_gru_backward)(const fa_attention_gru_gradients *g)
{
    const fa_attention_gru *a = &g->forward;
    const fa_isa isa = fa_get_isa();
    gru_call call = {.kernels = kernels_for(isa), .a = a, .g = g, .N = a->A + 3 * a->H};
    const int threads = threads_for_step(a), whole = fa_threads_for(work_of(a));
    const fa_index lanes = call.kernels->sizes.lanes;
    fa_status status = FA_OK;
    fa_scratch scratch;
    arena plan = {0};
    call.ld = fa_round_up(a->H, lanes);
    call.row_tasks = fa_ceil_div(a->T, TASK_ROWS);
    call.key_tasks = fa_ceil_div(a->S, TASK_ROWS);
    call.column_tasks = fa_ceil_div(a->A, TASK_VECTORS * lanes);
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        call.packed = arena_take(&plan, 1, OP(linear_packed_bytes)(isa, a->H, call.N));
        call.w_rows = arena_take(&plan, call.N, sizeof *call.w_rows);
        call.dh = arena_take(&plan, a->B * call.ld, sizeof(real));
        call.dh_product = arena_take(&plan, a->B * a->H, sizeof(real));
        call.de = arena_take(&plan, a->B * a->T * a->S, sizeof(real));
        call.de_step = arena_take(&plan, a->B * a->S, sizeof(real));
        call.gates = arena_take(&plan, 4 * a->H, sizeof(real) * (size_t)threads);
        call.dv = arena_take(&plan, a->B * a->A, sizeof(real));
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    /* The panels of w', whose k runs over the rows of w: those of linear_pack, without a transposition. */
    for (fa_index n = 0; n < call.N; n++) call.w_rows[n] = (const real *)a->w + n * a->H;
    const product_operand w = {call.packed, call.w_rows, a->H, call.N};
    OP(products_pack)(call.kernels, &w, 1, whole);
    fa_linear_arguments product = {.M = a->B,
                                   .N = a->H,
                                   .K = call.N,
                                   .ldy = a->H,
                                   .ldx = call.N,
                                   .y = call.dh_product,
                                   .packed = call.packed,
                                   .isa = isa,
                                   .activation = FA_IDENTITY};
    set_state_gradient(&call);
    fa_parallel_for(a->B * call.row_tasks, whole, context_gradient_task, &call);
    for (call.t = a->T - 1; call.t >= 0 && status == FA_OK; call.t--) {
        fa_parallel_for(a->B, threads, backward_task, &call);
        product.x = (const real *)g->da + call.t * a->B * call.N;
        status = OP(linear_forward)(&product);
    }
    if (status == FA_OK) {
        for (fa_index b = 0; b < a->B; b++) {
            add_product(&call, b);
            memcpy((real *)g->dh0 + b * a->H, call.dh + b * call.ld, (size_t)a->H * sizeof(real));
        }
        fa_parallel_for(a->B * call.key_tasks, whole, value_task, &call);
        fa_parallel_for(a->B * call.column_tasks, whole, key_task, &call);
        clear(g->dv, a->A);
        call.kernels->sum_rows(g->dv, call.dv, a->A, NULL, a->B, a->A);
    }
    fa_scratch_give(&scratch);
    return status;
}
