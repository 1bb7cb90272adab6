/* Backward through time, for one layer and direction.

     1  w_ih and w_hh are packed with the gates as rows of b: their products with gradients of gates give those of x and h
     2  time runs backwards in chunks of about CHUNK_ROWS rows (step by step, the sequences that run in each). In a chunk, for each
        step: gradients of the gates (kernels/recurrent_backward.c), then dh = da w_hh for the step before
     3  behind each chunk the products over all its rows: dx = da w_ih, dw_ih += da' x, dw_hh += da' h, db += sums of da

   Memory is that of a chunk, and da is still in the cache when the products read it. The sums of the weights' gradients are split at
   chunks and in them at k_block: their order follows from sizes and lengths alone. dx and dh of a sequence have the same bits as alone.

   In steps, the team splits by sequences or by units (choose_split); with units all meet after the gradients of the gates, which each
   needs of all units.

   With a projection, the gradients of its outputs h are kept for the products dw_hr += dh' (o tanh(c)), and those of its inputs are
   dh w_hr.

   A row of da has H gradients for each gate; for gru those of h_n + b_hn (or, with reset before the product, r h itself, which dw_hh
   needs), r, z, n. n comes last because it is the largest: a chain of multiply-adds that begins with small numbers rounds less. */
#include "product.h"
#include "recurrent_lane.h"

#include <string.h>

#define CHUNK_ROWS 1024
#define STEP_NV 2 /* vectors in a panel of w_hh: tiles as high as a step of few sequences allows */

enum { MAX_PRODUCTS = 4, GRU_PARTS = 4 };

typedef struct {
    const fa_recurrent_arguments *a;
    const fa_recurrent_gradients *g;
    const fa_kernels *kernels;
    fa_cell cell;
    fa_index B, H, P, I, parts, gates; /* parts of a row of da */
    fa_index ld, ld_h, lda;            /* row strides of the states of H and of P, and of da */
    fa_index panels, panels_h, width;  /* of H and of P units, columns of w_hr and of w_hh */
    fa_index cell_state;               /* of lstm: which of the saved quantities is c */
    fa_index most_rows, most_tiles;    /* rows of a chunk; elements of packed rows of a step */
    slot *slots;
    real *w_ih, *w_h[2], *w_hr;                                        /* w_h of gru: of n, and of r and z */
    real *dh, *dc, *inner, *zeros;                                     /* inner: gradients of r h, or of o tanh(c) */
    real *da, *outputs, *x_panels, *h_panels, *inner_panels, *scratch; /* outputs: gradients of h before a projection */
    const real **da_rows, **x_rows, **h_rows, **c_rows, **dy_rows, **y_rows, **saved_rows, **inner_rows, **output_rows;
    const real **weight_rows;
    real **dx_rows;
    fa_index *active; /* sequences of each step of the chunk */
    fa_index first, end, rows;
    int members, by_units, product_members;
    real *tiles; /* [members][most_tiles] */
    const real **tile_rows;
    fa_team_barrier barrier;
} backward_call;

/* ---- packing the weights ---- */

static void pack_steps(const backward_call *c, real *panels, const real *w, fa_index first_row, fa_index rows, fa_index columns)
{
    const fa_kernels *k = c->kernels;
    const fa_index Kp = fa_round_up(rows, k->sizes.tile_k);
    for (fa_index r = 0; r < rows; r++) c->weight_rows[r] = w + (first_row + r) * columns;
    for (fa_index p = 0; p < fa_ceil_div(columns, c->width); p++)
        k->copy_panel(panels + p * c->width * Kp, c->weight_rows, p * c->width, columns - p * c->width, STEP_NV, rows, Kp);
}

static int is_gru(const backward_call *c) { return c->cell == FA_GRU || c->cell == FA_GRU_RESET_BEFORE; }

static void pack_weights(backward_call *c)
{
    const fa_recurrent_weights *w = &c->a->weights;
    const fa_index H = c->H, rows = c->gates * H;
    if (is_gru(c)) {
        pack_steps(c, c->w_h[0], w->w_hh, 2 * H, H, H);
        pack_steps(c, c->w_h[1], w->w_hh, 0, 2 * H, H);
    } else {
        pack_steps(c, c->w_h[0], w->w_hh, 0, rows, c->P);
    }
    if (c->w_hr) pack_steps(c, c->w_hr, w->w_hr, 0, c->P, H);
    for (fa_index r = 0; r < rows; r++) c->weight_rows[r] = (const real *)w->w_ih + r * c->I;
    const product_operand operand = {c->w_ih, c->weight_rows, c->I, rows};
    OP(products_pack)(c->kernels, &operand, 1, c->product_members);
}

/* ---- the rows of a chunk ---- */

static fa_index time_of(const backward_call *c, const slot *s, fa_index step)
{
    return c->a->reverse ? s->length - 1 - step : step;
}

static const real *saved_row(const backward_call *c, fa_index time, fa_index sequence)
{
    return (const real *)c->a->saved + (time * c->B + sequence) * fa_recurrent_saved(&c->a->weights) * c->H;
}

static void fill_row(backward_call *c, fa_index n, const slot *s, fa_index step)
{
    const fa_recurrent_arguments *a = c->a;
    const fa_recurrent_gradients *g = c->g;
    const fa_index b = s->sequence, t = time_of(c, s, step), before = step ? time_of(c, s, step - 1) : 0;
    const real *y = (const real *)a->y + b * a->y_stride[1];
    c->da_rows[n] = c->da + n * c->lda;
    c->x_rows[n] = (const real *)a->x + t * a->x_stride[0] + b * a->x_stride[1];
    c->dx_rows[n] = (real *)g->dx + t * g->dx_stride[0] + b * g->dx_stride[1];
    c->y_rows[n] = c->cell == FA_RNN && a->saved ? saved_row(c, t, b) : y + t * a->y_stride[0];
    if (g->dy) c->dy_rows[n] = (const real *)g->dy + t * g->dy_stride[0] + b * g->dy_stride[1];
    c->h_rows[n] = step ? y + before * a->y_stride[0] : a->h0 ? (const real *)a->h0 + b * c->P : c->zeros;
    if (c->cell != FA_RNN) c->saved_rows[n] = saved_row(c, t, b);
    if (is_lstm(c->cell))
        c->c_rows[n] = step ? saved_row(c, before, b) + c->cell_state * c->H : a->c0 ? (const real *)a->c0 + b * c->H : c->zeros;
    if (c->cell == FA_GRU_RESET_BEFORE) c->inner_rows[n] = c->da_rows[n];
    if (!c->w_hr) return;
    c->output_rows[n] = c->outputs + n * c->P;
    c->inner_rows[n] = c->saved_rows[n] + (c->cell_state + 1) * c->H;
}

/* Steps [first, end) with at most CHUNK_ROWS rows, or one step. */
static void begin_chunk(backward_call *c)
{
    fa_index step = c->end, running = 0;
    c->rows = 0;
    while (step > 0) {
        while (running < c->B && c->slots[running].length >= step) running++;
        if (c->rows > 0 && c->rows + running > CHUNK_ROWS) break;
        step--;
        c->active[c->end - 1 - step] = running;
        for (fa_index i = 0; i < running; i++) fill_row(c, c->rows + i, &c->slots[i], step);
        c->rows += running;
    }
    c->first = step;
}

/* ---- steps ---- */

typedef struct {
    fa_index first_panel, panels, unit, units;
} unit_slice;

typedef struct {
    fa_index first_slot, slot_step;
    unit_slice cell, output; /* of H units and of P */
    real *tiles;
    const real **rows;
} member_share;

static unit_slice slice_of(const backward_call *c, fa_index units, fa_index panels, int member)
{
    unit_slice s = {.panels = panels};
    if (c->by_units) {
        s.first_panel = panels * member / c->members;
        s.panels = panels * (member + 1) / c->members - s.first_panel;
    }
    s.unit = s.first_panel * c->width;
    s.units = fa_max(0, fa_min(units - s.unit, s.panels * c->width));
    return s;
}

/* A slice of dst, rows of ld, (+)= the elements [column, column + K) of the rows a[0], a[slot_step], ..., times w. */
static void multiply(const backward_call *c, const member_share *m, const unit_slice *s, real *dst, fa_index ld,
                     const real *const *a, fa_index rows, fa_index column, fa_index K, const real *w, int add)
{
    const fa_kernels *k = c->kernels;
    const fa_index Kp = fa_round_up(K, k->sizes.tile_k), stride = c->width * Kp, end = s->unit + s->units;
    for (fa_index r = 0; r < rows; r++) m->rows[r] = a[r * m->slot_step] + column;
    k->pack_rows(m->tiles, m->rows, rows, STEP_NV, K, Kp);
    k->gemm_panels(dst + s->unit, m->slot_step * ld, c->width, m->tiles, rows, w + s->first_panel * stride, stride, s->panels,
                   end - (s->first_panel + s->panels - 1) * c->width, STEP_NV, Kp, add);
}

/* One step of the rows n, n + slot_step, ... of the chunk. */
static void run_step(backward_call *c, const member_share *m, fa_index n, fa_index rows)
{
    const fa_kernels *k = c->kernels;
    const fa_recurrent_arguments *a = c->a;
    const fa_index H = c->H, lda = m->slot_step * c->lda, at = m->first_slot * c->ld;
    const fa_index ld = m->slot_step * c->ld, ld_h = m->slot_step * c->ld_h;
    const fa_index unit = m->cell.unit, units = m->cell.units;
    const real *const *dy = c->g->dy ? c->dy_rows + n : NULL, *const *saved = c->saved_rows + n, *const *das = c->da_rows + n;
    real *da = c->da + n * c->lda, *dh = c->dh + m->first_slot * c->ld_h;
    switch (c->cell) {
    case FA_RNN: k->rnn_backward(da, lda, dh, ld, dy, c->y_rows + n, m->slot_step, rows, unit, units, (int)a->activation); break;
    case FA_LSTM:
    case FA_LSTM_COUPLED: {
        real *gradient = dh;
        if (c->w_hr) {
            k->rnn_backward(c->outputs + n * c->P, m->slot_step * c->P, dh, ld_h, dy, c->y_rows + n, m->slot_step, rows,
                            m->output.unit, m->output.units, FA_IDENTITY);
            if (c->by_units) fa_team_wait(&c->barrier, c->members);
            gradient = c->inner + at;
            multiply(c, m, &m->cell, gradient, c->ld, c->output_rows + n, rows, 0, c->P, c->w_hr, 0);
            dy = NULL;
        }
        k->lstm_backward(da, lda, gradient, c->dc + at, ld, dy, saved, c->c_rows + n, a->weights.peephole, m->slot_step, rows,
                         unit, units, H, (real)a->clip, c->cell == FA_LSTM_COUPLED);
        break;
    }
    default:
        k->gru_backward(da, lda, dh, ld, dy, saved, c->h_rows + n, m->slot_step, rows, unit, units, H,
                        c->cell == FA_GRU_RESET_BEFORE);
    }
    if (c->by_units) fa_team_wait(&c->barrier, c->members);
    if (c->cell == FA_GRU_RESET_BEFORE) {
        multiply(c, m, &m->cell, c->inner + at, c->ld, das, rows, 3 * H, H, c->w_h[0], 0);
        k->gru_reset_backward(da, lda, dh, c->inner + at, ld, saved, c->h_rows + n, m->slot_step, rows, unit, units, H);
        if (c->by_units) fa_team_wait(&c->barrier, c->members);
        multiply(c, m, &m->cell, dh, c->ld, das, rows, H, 2 * H, c->w_h[1], 1);
    } else if (c->cell == FA_GRU) {
        multiply(c, m, &m->cell, dh, c->ld, das, rows, H, 2 * H, c->w_h[1], 1);
        multiply(c, m, &m->cell, dh, c->ld, das, rows, 0, H, c->w_h[0], 1);
    } else {
        multiply(c, m, &m->output, dh, c->ld_h, das, rows, 0, c->gates * H, c->w_h[0], 0);
    }
}

static void run_member(void *context, int member, int members)
{
    backward_call *c = context;
    backward_call alone = *c;
    if (members != c->members) {
        /* Fewer threads could be had than the work was shared out for. */
        if (member > 0) return;
        alone.members = 1;
        alone.by_units = 0;
        c = &alone;
    }
    member_share m = {.slot_step = 1};
    if (!c->by_units) {
        m.first_slot = member;
        m.slot_step = c->members;
    }
    m.cell = slice_of(c, c->H, c->panels, member);
    m.output = slice_of(c, c->P, c->panels_h, member);
    m.tiles = c->tiles + member * c->most_tiles;
    m.rows = c->tile_rows + member * c->B;
    for (fa_index step = c->end - 1, n = 0; step >= c->first; n += c->active[c->end - 1 - step--]) {
        const fa_index active = c->active[c->end - 1 - step];
        const fa_index rows = fa_ceil_div(active - m.first_slot, m.slot_step);
        if (rows > 0) run_step(c, &m, n + m.first_slot, rows);
    }
}

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
    OP(products_pack)(c->kernels, operands, before || projected ? 3 : 2, c->product_members);

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
    OP(products_run)(c->kernels, list, products, c->product_members, c->scratch, fa_max(c->gates * H, c->most_rows));
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

/* As the forward call does: sequences, while each member keeps enough of them; else units, while a step repays the meetings. */
static void choose_split(backward_call *c)
{
    const double output = c->a->weights.w_hr ? (double)c->P : 0;
    const double step = (double)c->B * (double)c->H * ((double)(c->gates * c->P) + output);
    const fa_index wanted = fa_members_for((double)c->a->T * step);
    const fa_index sequences = fa_max(1, fa_min(wanted, c->B / SEQUENCES_PER_MEMBER));
    const fa_index units = fa_min(fa_min(wanted, fa_min(c->panels, c->panels_h)), (fa_index)(step / STEP_WORK_PER_MEMBER));
    c->by_units = units > sequences;
    c->members = (int)(c->by_units ? units : sequences);
    c->product_members = fa_members_for((double)c->a->T * (double)c->B * (double)(c->gates * c->H) * (double)(2 * c->I + c->P));
}

/* Gives out the scratch of the call; called twice, see arena. */
static void plan_call(backward_call *c, arena *plan)
{
    const fa_kernels *k = c->kernels;
    const fa_index B = c->B, H = c->H, P = c->P, rows = c->most_rows, gates = c->gates * H;
    const int inner = c->cell == FA_GRU_RESET_BEFORE || c->a->weights.w_hr;
    const fa_index longest = fa_round_up(fa_max(gates, P), k->sizes.tile_k);
    c->most_tiles = fa_round_up((B + k->sizes.tile_rows[STEP_NV]) * longest + k->sizes.lanes, 16);
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
    c->scratch = arena_take(plan, OP(products_scratch)(k, fa_max(gates, rows), c->product_members), sizeof(real));
    c->tiles = arena_take(plan, c->members * c->most_tiles, sizeof(real));
    c->tile_rows = arena_take(plan, c->members * B, sizeof *c->tile_rows);
    c->weight_rows = arena_take(plan, fa_max(gates, P), sizeof *c->weight_rows);
    const real ***pointers[] = {&c->da_rows, &c->x_rows,     &c->h_rows,     &c->c_rows,     &c->dy_rows,
                                &c->y_rows,  &c->saved_rows, &c->inner_rows, &c->output_rows};
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++) *pointers[i] = arena_take(plan, rows, sizeof **pointers[i]);
    c->dx_rows = arena_take(plan, rows, sizeof *c->dx_rows);
}

fa_status OP(recurrent_backward)(const fa_recurrent_arguments *a, const fa_recurrent_gradients *g)
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
    c.width = STEP_NV * k->sizes.lanes;
    c.panels = fa_ceil_div(c.H, c.width);
    c.panels_h = fa_ceil_div(c.P, c.width);
    c.ld = c.panels * c.width;
    c.ld_h = c.panels_h * c.width;
    c.cell_state = c.gates;
    c.most_rows = fa_min(fa_max(CHUNK_ROWS, c.B), a->T > 0 && c.B > INT64_MAX / a->T ? INT64_MAX : a->T * c.B);
    choose_split(&c);

    fa_scratch scratch;
    arena plan = {0};
    plan_call(&c, &plan);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_call(&c, &plan);

    zero_outputs(&c);
    memset(c.zeros, 0, (size_t)fa_max(c.H, c.P) * sizeof(real));
    c.end = OP(recurrent_sort)(c.slots, a);
    read_state(&c, c.dh, c.ld_h, g->dh, c.P);
    if (is_lstm(c.cell)) read_state(&c, c.dc, c.ld, g->dc, c.H);
    if (c.cell == FA_GRU_RESET_BEFORE || c.w_hr) read_state(&c, c.inner, c.ld, NULL, c.H);
    const int empty = c.end == 0 || (c.H == 0 && c.P == 0);
    if (!empty) pack_weights(&c);
    for (int chunks = 0; !empty && c.end > 0; c.end = c.first, chunks = 1) {
        begin_chunk(&c);
        fa_team_run(c.members, run_member, &c);
        run_products(&c, chunks);
        if (!g->dpeephole) continue;
        /* The last one moves the pointers to the rows of c on. */
        fa_parallel_for(peepholes_of(c.cell) - 1, c.product_members, sum_peephole, &c);
        sum_peephole(&c, peepholes_of(c.cell) - 1, 0);
    }
    write_state(&c, g->dh0, c.P, c.dh, c.ld_h);
    if (is_lstm(c.cell)) write_state(&c, g->dc0, c.H, c.dc, c.ld);
    fa_scratch_give(&scratch);
    return FA_OK;
}
