/* Backward through time, for layers and directions in one call: from the last layer to the first, direction after direction; dx of a layer
   is dy of the one below. recurrent_backward.c has the steps of a layer; here are the products behind each chunk of its time, its scratch
   and the call. */
#include "recurrent_backward.h"

#include <string.h>

enum { MAX_PRODUCTS = 4, GRU_PARTS = 4 };

/* ---- the products behind a chunk ---- */

/* The columns [column, column + M) of da for the rows of a weight, and its bias, from `row` on. */
static product sum_of(product p, fa_index M, fa_index column, fa_index N, const real *panels, void *weight, void *bias,
                      fa_index row)
{
    p.M = M;
    p.N = N;
    p.column = column;
    p.panels = panels;
    p.c = (real *)weight + row * N;
    p.sum = bias ? (real *)bias + row : NULL;
    return p;
}

static void run_products(backward_call *c, int add)
{
    const fa_recurrent_gradients *g = c->g;
    const fa_index H = c->H, I = c->I, rows = c->rows;
    const int gru = is_gru(c), before = c->cell == FA_GRU_RESET_BEFORE, projected = c->w_hr != NULL;
    const product_operand operands[] = {
        {c->x_panels, c->x_rows, I, rows}, {c->h_panels, c->h_rows, c->P, rows}, {c->inner_panels, c->inner_rows, H, rows}};
    OP(products_pack)(c->kernels, operands, before || projected ? 3 : 2, c->product_threads);

    const product dx = {.kind = PRODUCT_ROWS,
                        .M = rows,
                        .N = I,
                        .K = c->gates * H,
                        .a = c->da_rows,
                        .column = gru * H,
                        .panels = c->w_ih,
                        .rows = c->dx_rows,
                        .add = g->add_dx};
    const product dw = {.kind = PRODUCT_SUM, .K = rows, .a = c->da_rows, .lda = c->lda, .add = add};
    product list[MAX_PRODUCTS] = {dx, dw, dw, dw}, *x = &list[1], *h = &list[2], *n = &list[3];
    *x = sum_of(dw, c->gates * H, gru * H, I, c->x_panels, g->dw_ih, g->db_ih, 0);
    *h = sum_of(dw, gru ? 2 * H : c->gates * H, gru * H, c->P, c->h_panels, g->dw_hh, g->db_hh, 0);
    if (gru) *n = sum_of(dw, H, before ? 3 * H : 0, H, before ? c->inner_panels : c->h_panels, g->dw_hh, g->db_hh, 2 * H);
    if (projected) {
        n->a = c->output_rows;
        n->lda = c->P;
        *n = sum_of(*n, c->P, 0, H, c->inner_panels, g->dw_hr, NULL, 0);
    }
    const int products = gru || projected ? 4 : 3;
    OP(products_run)(c->kernels, list, products, c->product_threads, c->scratch, fa_max(c->gates * H, c->most_rows));
}

/* dp += sums of da_i c, da_f c (unless coupled), da_o c'. Task i is row i of the peephole weights. */
static void sum_peephole(void *context, fa_index i, int worker)
{
    const backward_call *c = context;
    const fa_index H = c->H;
    const int output = i == peepholes_of(c->cell) - 1;
    (void)worker;
    if (c->rows == 0) return;
    if (output)
        for (fa_index n = 0; n < c->rows; n++) c->c_rows[n] = c->saved_rows[n] + c->cell_state * H;
    c->kernels->sum_rows((real *)c->g->dpeephole + i * H, c->da + (output ? c->gates - 1 : i) * H, c->lda, c->c_rows, c->rows, H);
}

/* ---- the call ---- */

static void zero_outputs(const backward_call *c)
{
    const fa_recurrent_gradients *g = c->g;
    const size_t rows = (size_t)(c->gates * c->H), item = sizeof(real);
    memset(g->dw_ih, 0, rows * (size_t)c->I * item);
    memset(g->dw_hh, 0, rows * (size_t)c->P * item);
    if (g->dw_hr) memset(g->dw_hr, 0, (size_t)(c->P * c->H) * item);
    if (g->db_ih) memset(g->db_ih, 0, rows * item);
    if (g->db_hh) memset(g->db_hh, 0, rows * item);
    if (g->dpeephole) memset(g->dpeephole, 0, (size_t)(peepholes_of(c->cell) * c->H) * item);
    if (g->add_dx) return;
    for (fa_index b = 0; b < c->B; b++)
        for (fa_index t = c->H == 0 ? 0 : c->a->lengths ? c->a->lengths[b] : c->a->T; t < c->a->T; t++)
            memset((real *)g->dx + t * g->dx_stride[0] + b * g->dx_stride[1], 0, (size_t)c->I * item);
}

/* Copies a state between an array [B, n] of the caller, or zeros, and rows of ld in the order of the slots. */
static void read_state(const backward_call *c, real *state, fa_index ld, const real *from, fa_index n)
{
    memset(state, 0, (size_t)(c->B * ld) * sizeof(real));
    for (fa_index i = 0; from && i < c->B; i++) memcpy(state + i * ld, from + c->slots[i].sequence * n, (size_t)n * sizeof(real));
}

static void write_state(const backward_call *c, real *to, fa_index n, const real *state, fa_index ld)
{
    for (fa_index i = 0; to && i < c->B; i++) memcpy(to + c->slots[i].sequence * n, state + i * ld, (size_t)n * sizeof(real));
}

/* As the forward call does: sequences, while each thread keeps enough of them; else units, while a step repays the barriers. */
static void choose_split(backward_call *c)
{
    const double output = c->a->weights.w_hr ? (double)c->P : 0;
    const double step = (double)c->B * (double)c->H * ((double)(c->gates * c->P) + output);
    const fa_index wanted = fa_threads_for((double)c->a->T * step);
    c->step_work = step;
    const fa_index sequences = fa_max(1, fa_min(wanted, c->B / SEQUENCES_PER_THREAD));
    const fa_index units = fa_min(fa_min(wanted, fa_min(c->panels, c->panels_h)), (fa_index)(step / STEP_WORK_PER_THREAD));
    c->by_units = units > sequences;
    c->threads = (int)(c->by_units ? units : sequences);
    c->product_threads = fa_threads_for((double)c->a->T * (double)c->B * (double)(c->gates * c->H) * (double)(2 * c->I + c->P));
}

/* Gives out the scratch of the call; called twice, see arena. */
static void plan_call(backward_call *c, arena *plan)
{
    const fa_kernels *k = c->kernels;
    const fa_index B = c->B, H = c->H, P = c->P, rows = c->most_rows, gates = c->gates * H;
    const int inner = c->cell == FA_GRU_RESET_BEFORE || c->a->weights.w_hr;
    const fa_index longest = fa_round_up(fa_max(gates, P), k->sizes.tile_k);
    c->most_tiles = fa_round_up((B + k->sizes.tile_rows[BACKWARD_NV]) * longest + k->sizes.lanes, 16);
    c->slots = arena_take(plan, B, sizeof *c->slots);
    c->active = arena_take(plan, fa_min(rows, c->a->T), sizeof *c->active);
    c->w_ih = arena_take(plan, OP(product_panels)(k, c->I, gates), sizeof(real));
    c->w_h[0] = arena_take(plan, c->ld_h * fa_round_up(is_gru(c) ? H : gates, k->sizes.tile_k), sizeof(real));
    c->w_h[1] = is_gru(c) ? arena_take(plan, c->ld_h * fa_round_up(2 * H, k->sizes.tile_k), sizeof(real)) : NULL;
    c->w_hr = c->a->weights.w_hr ? arena_take(plan, c->ld * fa_round_up(P, k->sizes.tile_k), sizeof(real)) : NULL;
    c->outputs = arena_take(plan, c->a->weights.w_hr ? rows * P : 0, sizeof(real));
    c->dh = arena_take(plan, B * c->ld_h, sizeof(real));
    c->dc = arena_take(plan, is_lstm(c->cell) ? B * c->ld : 0, sizeof(real));
    c->inner = arena_take(plan, inner ? B * c->ld : 0, sizeof(real));
    c->zeros = arena_take(plan, fa_max(H, P), sizeof(real));
    c->da = arena_take(plan, rows * c->lda, sizeof(real));
    c->x_panels = arena_take(plan, OP(product_panels)(k, c->I, rows), sizeof(real));
    c->h_panels = arena_take(plan, OP(product_panels)(k, P, rows), sizeof(real));
    c->inner_panels = arena_take(plan, inner ? OP(product_panels)(k, H, rows) : 0, sizeof(real));
    c->scratch = arena_take(plan, OP(products_scratch)(k, fa_max(gates, rows), c->product_threads), sizeof(real));
    c->tiles = arena_take(plan, c->threads * c->most_tiles, sizeof(real));
    c->tile_rows = arena_take(plan, c->threads * B, sizeof *c->tile_rows);
    c->weight_rows = arena_take(plan, fa_max(gates, P), sizeof *c->weight_rows);
    const real ***pointers[] = {&c->da_rows, &c->x_rows,     &c->h_rows,     &c->c_rows,     &c->dy_rows,
                                &c->y_rows,  &c->saved_rows, &c->inner_rows, &c->output_rows};
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++) *pointers[i] = arena_take(plan, rows, sizeof **pointers[i]);
    c->dx_rows = arena_take(plan, rows, sizeof *c->dx_rows);
}

static backward_call make_call(const fa_recurrent_arguments *a, const fa_recurrent_gradients *g)
{
    const fa_kernels *k = current_kernels();
    const recurrent_layer layer = OP(recurrent_layer)(k, &a->weights);
    backward_call c = {.a = a,
                       .g = g,
                       .kernels = k,
                       .cell = a->weights.cell,
                       .B = a->B,
                       .H = a->weights.H,
                       .P = a->weights.P,
                       .I = a->weights.I};
    c.gates = layer.shape->gates;
    c.parts = is_gru(&c) ? GRU_PARTS : c.gates;
    /* Not a multiple of the page: packing reads few columns of many rows, which would share sets of the caches (+7 % of the whole). */
    c.lda = c.parts * c.H + k->sizes.lanes;
    c.width = BACKWARD_NV * k->sizes.lanes;
    c.panels = fa_ceil_div(c.H, c.width);
    c.panels_h = fa_ceil_div(c.P, c.width);
    c.ld = c.panels * c.width;
    c.ld_h = c.panels_h * c.width;
    c.cell_state = c.gates;
    c.most_rows = fa_min(fa_max(BACKWARD_ROWS, c.B), a->T > 0 && c.B > INT64_MAX / a->T ? INT64_MAX : a->T * c.B);
    choose_split(&c);
    return c;
}

/* One layer and direction, in scratch at `base`. */
static void run_pseudo_layer(const fa_recurrent_arguments *a, const fa_recurrent_gradients *g, char *base)
{
    backward_call call = make_call(a, g), *c = &call;
    arena plan = {.base = base};
    plan_call(c, &plan);
    zero_outputs(c);
    clear(c->zeros, fa_max(c->H, c->P));
    c->end = OP(recurrent_sort)(c->slots, a);
    read_state(c, c->dh, c->ld_h, g->dh, c->P);
    if (is_lstm(c->cell)) read_state(c, c->dc, c->ld, g->dc, c->H);
    if (c->cell == FA_GRU_RESET_BEFORE || c->w_hr) read_state(c, c->inner, c->ld, NULL, c->H);
    const int empty = c->end == 0 || (c->H == 0 && c->P == 0);
    if (!empty) OP(backward_pack)(c);
    for (int chunks = 0; !empty && c->end > 0; c->end = c->first, chunks = 1) {
        OP(backward_steps)(c);
        run_products(c, chunks);
        if (!g->dpeephole) continue;
        /* The last one moves the pointers to the rows of c on. */
        fa_parallel_for(peepholes_of(c->cell) - 1, c->product_threads, sum_peephole, c);
        sum_peephole(c, peepholes_of(c->cell) - 1, 0);
    }
    write_state(c, g->dh0, c->P, c->dh, c->ld_h);
    if (is_lstm(c->cell)) write_state(c, g->dc0, c->H, c->dc, c->ld);
}

fa_status OP(recurrent_backward)(const fa_recurrent_arguments *a, const fa_recurrent_gradients *g, fa_index layers,
                                 fa_index directions)
{
    fa_scratch scratch;
    size_t most = 0; /* one pseudo-layer after another: all use the same block */
    for (fa_index i = 0; i < layers * directions; i++) {
        backward_call c = make_call(&a[i], &g[i]);
        arena plan = {0};
        plan_call(&c, &plan);
        if (plan.used > most) most = plan.used;
    }
    if (!fa_scratch_take(&scratch, most)) return FA_NOMEM;
    for (fa_index layer = layers - 1; layer >= 0; layer--) {
        const fa_index first = layer * directions;
        for (fa_index i = first; i < first + directions; i++) run_pseudo_layer(&a[i], &g[i], scratch.base);
        if (layer > 0 && a[first].dropout > 0)
            OP(recurrent_dropout)(g[first].dx, g[first].dx_stride, a[first].T, a[first].B, a[first - 1].weights.P, layer - 1,
                                  directions, a[first].dropout, a[first].seed);
    }
    fa_scratch_give(&scratch);
    return FA_OK;
}
