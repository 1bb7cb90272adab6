/* A layer of a recurrent network over a sequence, in one direction: a lane of recurrent_stack.c, which shares out the work.

     1  weights are packed (recurrent_weights.c)
     2  for each step: x and h are packed, then panel by panel the products with w_ih and w_hh are added up and the cell is
        applied, while the panel's gates lie in the first-level cache; then, for a projected lstm (and a GRU with reset before the
        product), the second product of the step
     Every second step begins with the panels that the step before has ended with: of matrices that the second-level cache cannot hold,
     a part is still there.
     With few sequences w_ih would be read too often for that: then time runs in chunks of about CHUNK_ROWS rows of x, and for each
     chunk the products with w_ih are one matrix product before its steps. The sums are the same, in the same order.

   h is double, read from one buffer and written to the other, so that members who split the panels meet once per step.

   16-bit arrays: sums, gates and c are real; h is rounded at each step, as y has it, and so is what the second product of a step takes.

   Ragged batches: rows are sorted by length, so the sequences that still run are the first `active` rows of each step. A
   sequence's arithmetic does not depend on its place, so it has the same bits as alone. */
#include "recurrent_lane.h"

#include <string.h>

#define CHUNK_ROWS 192
#define MAX_NV 4
#define SWEEP_PANELS 4 /* whole groups of panels that row products take side by side (ROW_SIDES in kernels/gemm.c) */

/* What one member works on, and its scratch. */
typedef struct {
    fa_index first_slot, slot_step, slots;
    fa_index first_panel, panels;   /* slice of the units */
    fa_index first_output, outputs; /* and of the panels of w_hr */
    real *tiles;                    /* packed rows of x of a chunk, then of h */
    real *x_tiles;                  /* packed rows of x of a step, or NULL: chunks */
    int alone;                      /* a single sequence: all panels are one product, and panels the inner axis of gates */
    real *gates_x;                  /* [panels of the slice][rows of the chunk][width_x VL], or [slots][width_x VL] */
    real *gates_h;                  /* [slots][width_h VL] */
    const stored **rows;            /* pointers to rows of x or h */
    stored **y_rows;
    real **saved_rows; /* saved_rows NULL: nothing is saved */
    real *kept;        /* a row of h after dropout */
    real **inner_rows; /* where o tanh(c) before a projection is saved, or NULL */
} member_work;

/* ---- the sequence ---- */

static fa_index time_of(const recurrent_lane *c, const slot *s, fa_index step)
{
    return c->a->reverse ? s->length - 1 - step : step;
}

static const stored *x_row(const recurrent_lane *c, const slot *s, fa_index step)
{
    return (const stored *)c->a->x + time_of(c, s, step) * c->a->x_stride[0] + s->sequence * c->a->x_stride[1];
}

static stored *y_row(const recurrent_lane *c, const slot *s, fa_index time)
{
    return (stored *)c->a->y + time * c->a->y_stride[0] + s->sequence * c->a->y_stride[1];
}

static real *saved_row(const recurrent_lane *c, const slot *s, fa_index time)
{
    return (real *)c->a->saved + (time * c->a->B + s->sequence) * fa_recurrent_saved(&c->a->weights) * c->g.H;
}

static fa_index slot_of(const member_work *w, fa_index row) { return w->first_slot + row * w->slot_step; }

/* Sequences of the member that run at `step`, from the number that ran before. */
static fa_index still_active(const recurrent_lane *c, const member_work *w, fa_index before, fa_index step)
{
    while (before > 0 && c->slots[slot_of(w, before - 1)].length <= step) before--;
    return before;
}

/* Rows of k elements, ld apart, for products of nv vectors. */
static void pack_state(const recurrent_lane *c, const member_work *w, const stored *state, fa_index ld, fa_index active,
                       fa_index nv, fa_index k)
{
    for (fa_index r = 0; r < active; r++) w->rows[r] = state + slot_of(w, r) * ld;
    c->g.kernels->pack_rows(w->tiles, w->rows, active, nv, k, OP(recurrent_places)(c->g.kernels, k));
}

/* The units [first, first + units) of rows of reals, rounded; and the reals what was rounded. Nothing where arrays hold reals. */
static void round_state(const recurrent_lane *c, const member_work *w, stored *rounded, real *state, fa_index ld, fa_index active,
                        fa_index first, fa_index units)
{
#if FA_CONVERTS
    for (fa_index r = 0; r < active; r++) {
        const fa_index at = slot_of(w, r) * ld + first;
        c->g.kernels->narrow(rounded + at, state + at, units);
        c->g.kernels->widen(state + at, rounded + at, units);
    }
#else
    (void)c, (void)w, (void)rounded, (void)state, (void)ld, (void)active, (void)first, (void)units;
#endif
}

/* The member's units of n, of which each panel has `width`. */
static fa_index units_of(fa_index n, fa_index first_panel, fa_index panels, fa_index width)
{
    return fa_max(0, fa_min(n - first_panel * width, panels * width));
}

/* gates (+)= tiles w for `panels` panels of `width` vectors, each of them products of nv vectors side by side; rows of gates are ldc
   apart. next: the panel that comes after these, or NULL. */
static void multiply(const recurrent_lane *c, real *gates, fa_index ldc, const real *tiles, fa_index rows, const void *w,
                     const real *scale, fa_index first, fa_index panels, fa_index width, fa_index nv, fa_index k, int add,
                     const void *next)
{
    const fa_kernels *kernels = c->g.kernels;
    const fa_index columns = nv * c->g.lanes, n = panels * (width / nv), at = first * k * width * c->g.lanes;
#if FA_FLOAT_ARRAYS
    if (c->w.type == FA_WEIGHT_BF16) {
        kernels->gemm_panels_bf16(gates, ldc, columns, tiles, rows, (const uint16_t *)w + at, NULL, k * columns, n, nv, k, add);
        return;
    }
    if (c->w.type == FA_WEIGHT_INT8) {
        kernels->gemm_panels_i8(gates, ldc, columns, tiles, rows, (const int8_t *)w + at, scale + first * width * c->g.lanes,
                                k * columns, n, nv, k, add);
        return;
    }
#endif
    (void)scale;
    kernels->gemm_panels(gates, ldc, columns, tiles, rows, (const real *)w + at, k * columns, n, columns, nv, k, add, next);
}

/* Panel p of w, each of so many reals; NULL if there is none, p < 0, or if they are narrow. */
static const void *panel_of(const recurrent_lane *c, const void *w, fa_index size, fa_index p)
{
    return p < 0 || c->w.type != FA_WEIGHT_REAL ? NULL : (const real *)w + p * size;
}

static void multiply_x(const recurrent_lane *c, const real *tiles, fa_index rows, fa_index first, fa_index panels, real *gates,
                       const void *next)
{
    const cell_shape *s = c->g.shape;
    multiply(c, gates, panels * s->width_x * c->g.lanes, tiles, rows, c->w.w_ih, c->w.scale_x, first, panels, s->width_x, s->nv_x,
             c->g.Ip, 0, next);
}

static void multiply_h(const recurrent_lane *c, const real *tiles, fa_index rows, fa_index first, fa_index panels, real *gates,
                       int add, const void *next)
{
    const cell_shape *s = c->g.shape;
    multiply(c, gates, panels * s->width_h * c->g.lanes, tiles, rows, c->w.w_hh, c->w.scale_h, first, panels, s->width_h, s->nv_h,
             c->g.Pp, add, next);
}

/* All panels of a single row. */
static void sweep(const recurrent_lane *c, const member_work *w, real *gates, int add, int backwards)
{
    for (fa_index i = 0; i < w->panels; i += SWEEP_PANELS) {
        const fa_index at = backwards ? (w->panels - 1 - i) / SWEEP_PANELS * SWEEP_PANELS : i;
        multiply_h(c, w->tiles, 1, w->first_panel + at, fa_min(SWEEP_PANELS, w->panels - at),
                   gates + at * c->g.shape->width_h * c->g.lanes, add, NULL);
    }
}

/* The member's slice of h. */
static void own_outputs(const recurrent_lane *c, const member_work *w, fa_index *first, fa_index *units)
{
    const int projected = c->g.projected;
    const fa_index width = projected ? 2 * c->g.lanes : c->g.panel_units, panel = projected ? w->first_output : w->first_panel;
    *first = panel * width;
    *units = units_of(c->g.P, panel, projected ? w->outputs : w->panels, width);
}

/* The rows of y that the kernels of the cells write; of 16-bit arrays they are written from the rounded state. */
static real *const *y_of(const member_work *w)
{
#if FA_CONVERTS
    (void)w;
    return NULL;
#else
    return w->y_rows;
#endif
}

/* h = w_hr (o tanh(c)), into the member's slice of the rows of `after`. */
static void project(const recurrent_lane *c, const member_work *w, fa_index active, real *after, fa_team_barrier *barrier,
                    int members)
{
    const fa_index width = 2 * c->g.lanes, first = w->first_output * width, ld = w->slot_step * c->g.ld_h;
    const fa_index inner = w->first_panel * c->g.panel_units;
    round_state(c, w, c->rounded_inner, c->inner, c->g.ld, active, inner,
                units_of(c->g.H, w->first_panel, w->panels, c->g.panel_units));
    if (barrier) fa_team_wait(barrier, members);
    pack_state(c, w, c->rounded_inner, c->g.ld, active, 2, c->g.H);
    multiply(c, after + first, ld, w->tiles, active, c->w.w_hr, c->w.scale_r, w->first_output, w->outputs, 2, 2, c->g.Hp, 0,
             NULL);
}

/* The second half of a GRU with reset before the product: the product of r h with w_hn, then n and h. */
static void update_state(const recurrent_lane *c, const member_work *w, fa_index active, const real *before, real *after,
                         real *gates_x, fa_index panel_stride, fa_team_barrier *barrier, int members)
{
    const fa_kernels *k = c->g.kernels;
    const fa_index VL = c->g.lanes, at = w->first_slot * c->g.ld, ld = w->slot_step * c->g.ld;
    round_state(c, w, c->rounded_inner, c->inner, c->g.ld, active, w->first_panel * c->g.panel_units,
                units_of(c->g.H, w->first_panel, w->panels, c->g.panel_units));
    if (barrier) fa_team_wait(barrier, members);
    pack_state(c, w, c->rounded_inner, c->g.ld, active, 2, c->g.H);
    /* A panel of w_hn is two vectors of units. */
    for (fa_index i = 0; i < w->panels; i++) {
        const fa_index p = w->first_panel + i, first = p * c->g.panel_units, pairs = w->alone ? w->panels / 2 : 1;
        if (i % (2 * pairs) == 0)
            multiply(c, w->gates_h, 2 * VL, w->tiles, active, c->w.w_hn, c->w.scale_n, p / 2, pairs, 2, 2, c->g.Hp, 0, NULL);
        k->gru_update(y_of(w), w->saved_rows, c->g.H, after, before, c->update + at, ld, gates_x + i * panel_stride,
                      w->gates_h + i % (2 * pairs) * VL, c->w.bias + p * c->g.shape->bias_vectors * VL, active, first,
                      units_of_panel(&c->g, p));
    }
}

/* What dropout leaves of the member's slice of h, which is rounded by now. */
static void drop(const recurrent_lane *c, const member_work *w, fa_index step, fa_index active)
{
    fa_index first, units;
    own_outputs(c, w, &first, &units);
    const fa_kernels *k = c->g.kernels;
    const dropout_rule rule = rule_of_dropout(c->a->dropout, c->a->seed);
    for (fa_index r = 0; r < active; r++) {
        const slot *s = &c->slots[slot_of(w, r)];
        const real *h = c->h[(step + 1) % 2] + slot_of(w, r) * c->g.ld_h;
        k->dropout_row(w->kept, h, first, units, rule.seed, rule.threshold, rule.scale, time_of(c, s, step), s->sequence,
                       c->index);
        k->narrow((stored *)c->a->dropped + (w->y_rows[r] - (const stored *)c->a->y) + first, w->kept + first, units);
    }
}

/* The member's slice of y, where the kernels have not written it, and what dropout leaves of that. */
static void write_output(const recurrent_lane *c, const member_work *w, fa_index step, fa_index active)
{
    fa_index first, units;
    own_outputs(c, w, &first, &units);
    stored *rounded = c->rounded[(step + 1) % 2];
    round_state(c, w, rounded, c->h[(step + 1) % 2], c->g.ld_h, active, first, units);
    for (fa_index r = 0; (FA_CONVERTS || c->g.projected) && r < active; r++)
        memcpy(w->y_rows[r] + first, rounded + slot_of(w, r) * c->g.ld_h + first, (size_t)units * sizeof(stored));
    if (c->a->dropped) drop(c, w, step, active);
}

/* One step of `active` sequences. gates_x: their rows of the first panel, those of the next `panel_stride` further; they hold the products
   with x, unless x_tiles is given. */
static void run_step(const recurrent_lane *c, const member_work *w, fa_index step, fa_index active, real *gates_x,
                     fa_index panel_stride, const real *x_tiles, fa_team_barrier *barrier, int members)
{
    const fa_kernels *k = c->g.kernels;
    const cell_shape *s = c->g.shape;
    const fa_index VL = c->g.lanes, at = w->first_slot * c->g.ld, ld = w->slot_step * c->g.ld;
    const int projected = c->g.projected;
    const fa_index at_h = w->first_slot * c->g.ld_h;
    const real *before = c->h[step % 2] + at_h;
    real *after = c->h[(step + 1) % 2] + at_h;
    for (fa_index r = 0; r < active; r++) {
        const slot *slot = &c->slots[slot_of(w, r)];
        w->y_rows[r] = y_row(c, slot, time_of(c, slot, step));
        if (w->saved_rows) w->saved_rows[r] = saved_row(c, slot, time_of(c, slot, step));
        if (w->inner_rows) w->inner_rows[r] = w->saved_rows[r] + (fa_recurrent_saved(&c->a->weights) - 1) * c->g.H;
    }
    pack_state(c, w, c->rounded[step % 2], c->g.ld_h, active, s->nv_h, c->g.P);
    const int add = c->g.cell == FA_RNN || is_lstm(c->g.cell);
    const int backwards = step % 2 != 0;
    if (w->alone) sweep(c, w, add ? gates_x : w->gates_h, add, backwards);
    for (fa_index n = 0; n < w->panels; n++) {
        const fa_index i = backwards ? w->panels - 1 - n : n, p = w->first_panel + i, first = p * c->g.panel_units;
        const fa_index units = units_of_panel(&c->g, p), next = n + 1 < w->panels ? p + (backwards ? -1 : 1) : -1;
        const real *bias = c->w.bias + p * s->bias_vectors * VL;
        real *gates = gates_x + i * panel_stride, *gates_h = w->gates_h + (w->alone ? i * s->width_h * VL : 0);
        if (x_tiles) multiply_x(c, x_tiles, active, p, 1, gates, panel_of(c, c->w.w_hh, c->g.size_h, p));
        if (!w->alone)
            multiply_h(c, w->tiles, active, p, 1, add ? gates : gates_h, add,
                       x_tiles ? panel_of(c, c->w.w_ih, c->g.size_x, next) : panel_of(c, c->w.w_hh, c->g.size_h, next));
        switch (c->g.cell) {
        case FA_RNN:
            k->rnn_gates(FA_CONVERTS ? w->saved_rows : y_of(w), after, ld, gates, bias, active, first, units,
                         (int)c->a->activation);
            break;
        case FA_LSTM:
        case FA_LSTM_COUPLED:
            k->lstm_gates(projected ? w->inner_rows : y_of(w), w->saved_rows, c->g.H, projected ? c->inner + at : after,
                          c->c + at, ld, gates, bias, c->w.peephole ? c->w.peephole + p * peepholes_of(c->g.cell) * VL : NULL,
                          active, first, units, (real)c->a->clip, c->g.cell == FA_LSTM_COUPLED);
            break;
        case FA_GRU:
            k->gru_gates(y_of(w), w->saved_rows, c->g.H, after, before, ld, gates, gates_h, bias, active, first, units);
            break;
        case FA_GRU_RESET_BEFORE:
            k->gru_reset(w->saved_rows, c->g.H, c->inner + at, c->update + at, before, ld, gates, gates_h, bias, active, first,
                         units);
            break;
        }
    }
    if (projected) project(c, w, active, after, barrier, members);
    if (c->g.cell == FA_GRU_RESET_BEFORE) update_state(c, w, active, before, after, gates_x, panel_stride, barrier, members);
    write_output(c, w, step, active);
}
/* Gives out the scratch of a share from `plan`. */
static member_work plan_work(const recurrent_lane *c, lane_share share, arena *plan)
{
    const cell_shape *s = c->g.shape;
    const fa_index VL = c->g.lanes, B = c->a->B, slices = fa_ceil_div(c->g.panels, 2), member = share.member;
    member_work w = {.slot_step = 1, .slots = B, .panels = c->g.panels, .outputs = c->g.output_panels};
    if (share.barrier) {
        w.first_panel = 2 * (slices * member / share.members);
        w.panels = fa_min(c->g.panels, 2 * (slices * (member + 1) / share.members)) - w.first_panel;
        w.first_output = c->g.output_panels * member / share.members;
        w.outputs = c->g.output_panels * (member + 1) / share.members - w.first_output;
    } else {
        w.first_slot = member;
        w.slot_step = share.members;
        w.slots = fa_ceil_div(B - member, share.members);
    }
    /* Reset before the product needs the products with x again in its second half. */
    const int by_steps = w.slots >= c->g.kernels->sizes.step_rows && c->g.cell != FA_GRU_RESET_BEFORE;
    const fa_index rows = by_steps ? w.slots : fa_max(CHUNK_ROWS, w.slots);
    fa_index tiles = 0;
    for (int nv = 2; nv <= MAX_NV; nv++) tiles = fa_max(tiles, rows + c->g.kernels->sizes.tile_rows[nv]);
    w.tiles = arena_take(plan, tiles * fa_max(c->g.Ip, fa_max(c->g.Hp, c->g.Pp)) + VL, sizeof(real));
    w.x_tiles = by_steps ? arena_take(plan, tiles * c->g.Ip + VL, sizeof(real)) : NULL;
    w.gates_x = arena_take(plan, (by_steps ? 1 : w.panels) * rows * s->width_x * VL, sizeof(real));
    w.alone = w.slots == 1;
    w.gates_h = arena_take(plan, (w.alone ? w.panels : w.slots) * s->width_h * VL, sizeof(real));
    w.rows = arena_take(plan, rows, sizeof *w.rows);
    w.y_rows = arena_take(plan, w.slots, sizeof *w.y_rows);
    w.saved_rows = c->a->saved ? arena_take(plan, w.slots, sizeof *w.saved_rows) : NULL;
    w.kept = arena_take(plan, c->a->dropped ? c->g.ld_h : 0, sizeof(real));
    w.inner_rows = c->a->saved && c->g.projected ? arena_take(plan, w.slots, sizeof *w.inner_rows) : NULL;
    return w;
}

size_t OP(lane_work_bytes)(const recurrent_lane *c, lane_share share)
{
    arena plan = {0};
    plan_work(c, share, &plan);
    return plan.used;
}

void OP(lane_run)(const recurrent_lane *c, lane_share share, char *scratch, fa_index step, fa_index end)
{
    arena plan = {.base = scratch};
    const member_work work = plan_work(c, share, &plan), *w = &work;
    const fa_index width_x = c->g.shape->width_x * c->g.lanes;
    const fa_index chunk = w->x_tiles ? 1 : fa_max(1, CHUNK_ROWS / fa_max(1, w->slots));
    fa_index active = w->slots;
    while (step < end) {
        fa_index rows = 0, running = active;
        const fa_index chunk_end = fa_min(end, step + chunk);
        for (fa_index t = step; t < chunk_end; t++) {
            running = still_active(c, w, running, t);
            for (fa_index r = 0; r < running; r++) w->rows[rows++] = x_row(c, &c->slots[slot_of(w, r)], t);
        }
        real *x_tiles = w->x_tiles ? w->x_tiles : w->tiles;
        c->g.kernels->pack_rows(x_tiles, w->rows, rows, c->g.shape->nv_x, c->g.I, c->g.Ip);
        const fa_index together = w->alone ? w->panels : 1, row = together * width_x;
        for (fa_index i = 0; !w->x_tiles && i < w->panels; i += together)
            multiply_x(c, x_tiles, rows, w->first_panel + i, together, w->gates_x + i * rows * width_x,
                       panel_of(c, c->w.w_ih, c->g.size_x, i + together < w->panels ? w->first_panel + i + together : -1));
        for (fa_index done = 0; step < chunk_end; step++) {
            active = still_active(c, w, active, step);
            if (active > 0)
                run_step(c, w, step, active, w->gates_x + done * row,
                         w->x_tiles ? 0
                         : w->alone ? width_x
                                    : rows * width_x,
                         w->x_tiles, share.barrier, share.members);
            done += active;
            if (share.barrier) fa_team_wait(share.barrier, share.members);
        }
    }
}
