/* A layer of a recurrent network over a sequence, in one direction: a pseudo-layer of recurrent_stack.c, which splits
   the work.

     1  weights are packed (recurrent_weights.c)
     2  for each step: x and h are packed, then panel by panel the products with w_ih and w_hh are added up and the cell is
        applied, while the panel's gates lie in the first-level cache; then, for a projected lstm (and a GRU with reset before the
        product), the second product of the step
     Every second step begins with the panels that the step before has ended with: of matrices that the second-level cache cannot hold,
     a part is still there.
     With few sequences w_ih would be read too often for that: then time runs in chunks of about CHUNK_ROWS rows of x, and for each
     chunk the products with w_ih are one matrix product before its steps. The sums are the same, in the same order.

   h is double, read from one buffer and written to the other, so that threads that split the panels wait for each other once per step.

   16-bit arrays: sums, gates and c are real; h is rounded at each step, as y has it, and so is what the second product of a step takes.

   Ragged batches: rows are sorted by length, so the sequences that still run are the first `active` rows of each step. A
   sequence's arithmetic does not depend on its place, so it has the same bits as alone. */
#include "pseudo_layer.h"

#include <string.h>

#define CHUNK_ROWS 192
#define MAX_NV 4
#define SWEEP_PANELS 4 /* whole groups of panels that row products take side by side (ROW_SIDES in kernels/gemm/gemm.c) */

/* When the products of a step with w_ih and w_hh are computed. */
typedef enum {
    BY_STEPS,  /* both panel by panel in the step */
    BY_CHUNKS, /* those with w_ih for all steps of a chunk at once, those with w_hh panel by panel */
    BY_SWEEPS, /* of a single sequence: likewise, and those with w_hh of all panels before the cell; panels are the inner axis of gates */
} product_order;

/* What one thread of the team works on, and its scratch. */
typedef struct {
    layer_share share;
    product_order order;
    fa_index first_slot, slot_step, slots;
    fa_index first_panel, panels;   /* slice of the units */
    fa_index first_output, outputs; /* and of the panels of w_hr */
    real *tiles;                    /* packed rows of x of a chunk, then of h */
    real *x_tiles;                  /* packed rows of x of a step, by steps */
    real *gates_x;                  /* [panels of the slice][rows of the chunk][width_x VL], or [slots][width_x VL] */
    real *gates_h;                  /* [panels multiplied at once][slots][width_h VL] */
    const stored **rows;            /* pointers to rows of x or h */
    stored **y_rows;
    real **saved_rows; /* saved_rows NULL: nothing is saved */
    real *kept;        /* a row of h after dropout */
    real **inner_rows; /* where o tanh(c) before a projection is saved, or NULL */
} thread_work;

/* ---- the sequence ---- */

static fa_index time_of(const pseudo_layer *c, const slot *s, fa_index step)
{
    return c->a->reverse ? s->length - 1 - step : step;
}

static const stored *x_row(const pseudo_layer *c, const slot *s, fa_index step)
{
    return (const stored *)c->a->x + time_of(c, s, step) * c->a->x_stride[0] + s->sequence * c->a->x_stride[1];
}

static stored *y_row(const pseudo_layer *c, const slot *s, fa_index time)
{
    return (stored *)c->a->y + time * c->a->y_stride[0] + s->sequence * c->a->y_stride[1];
}

static real *saved_row(const pseudo_layer *c, const slot *s, fa_index time)
{
    return (real *)c->a->saved + (time * c->a->B + s->sequence) * fa_recurrent_saved(&c->a->weights) * c->g.H;
}

static fa_index slot_of(const thread_work *w, fa_index row) { return w->first_slot + row * w->slot_step; }

/* Sequences of the thread that run at `step`, from the number that ran before. */
static fa_index still_active(const pseudo_layer *c, const thread_work *w, fa_index before, fa_index step)
{
    while (before > 0 && c->slots[slot_of(w, before - 1)].length <= step) before--;
    return before;
}

/* The distance of two rows that are multiplied with plain weights. */
static fa_index plain_stride(const pseudo_layer *c, fa_index k)
{
    return fa_round_up(OP(recurrent_places)(c->g.kernels, k), c->g.lanes);
}

/* m rows of k elements, for products of nv vectors. */
static void pack_operand(const pseudo_layer *c, real *dst, const stored *const *rows, fa_index m, fa_index nv, fa_index k)
{
    const fa_kernels *kernels = c->g.kernels;
    const fa_index ld = plain_stride(c, k);
    if (!c->w.plain)
        kernels->pack_rows(dst, rows, m, nv, k, OP(recurrent_places)(kernels, k));
    else
        for (fa_index r = 0; r < m; r++) kernels->pack_rows(dst + r * ld, rows + r, 1, nv, k, ld);
}

/* Rows of k elements, ld apart, for products of nv vectors. */
static void pack_state(const pseudo_layer *c, const thread_work *w, const stored *state, fa_index ld, fa_index active,
                       fa_index nv, fa_index k)
{
    for (fa_index r = 0; r < active; r++) w->rows[r] = state + slot_of(w, r) * ld;
    pack_operand(c, w->tiles, w->rows, active, nv, k);
}

/* The units [first, first + units) of rows of reals, rounded; and the reals what was rounded. Nothing where arrays hold reals. */
static void round_state(const pseudo_layer *c, const thread_work *w, stored *rounded, real *state, fa_index ld, fa_index active,
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

/* The thread's units of n, of which each panel has `width`. */
static fa_index units_of(fa_index n, fa_index first_panel, fa_index panels, fa_index width)
{
    return fa_max(0, fa_min(n - first_panel * width, panels * width));
}

/* A matrix [gates, units, size]: packed in panels of `width` vectors, each of them products of nv vectors side by side and k packed
   elements. The vectors are gates of the same units, or of one gate, units. */
typedef struct {
    const void *w;
    const real *scale;
    fa_index width, nv, k;
    fa_index units, size;
    int by_gates;
} panel_matrix;

static panel_matrix matrix_x(const pseudo_layer *c)
{
    return (panel_matrix){c->w.w_ih, c->w.scale_x, c->g.shape->width_x,          c->g.shape->nv_x, c->g.Ip,
                          c->g.H,    c->g.I,       c->g.shape->unit_vectors == 1};
}
static panel_matrix matrix_h(const pseudo_layer *c)
{
    return (panel_matrix){c->w.w_hh, c->w.scale_h, c->g.shape->width_h,          c->g.shape->nv_h, c->g.Pp,
                          c->g.H,    c->g.P,       c->g.shape->unit_vectors == 1};
}
static panel_matrix matrix_n(const pseudo_layer *c)
{
    return (panel_matrix){c->w.w_hn, c->w.scale_n, 2, 2, c->g.Hp, c->g.H, c->g.H, 0};
}
static panel_matrix matrix_r(const pseudo_layer *c)
{
    return (panel_matrix){c->w.w_hr, c->w.scale_r, 2, 2, c->g.Hp, c->g.P, c->g.H, 0};
}

/* multiply, of matrices that are not packed. */
static void multiply_plain(const pseudo_layer *c, panel_matrix w, fa_index first, fa_index panels, const panel_product *product)
{
    const fa_index VL = c->g.lanes, vectors = w.by_gates ? w.width : 1;
    few_product few = {.x = product->a,
                       .ldc = product->ldc,
                       .ldx = plain_stride(c, w.size),
                       .ldw = w.size,
                       .m = product->m,
                       .k_size = w.size,
                       .nv = w.nv,
                       .groups = vectors,
                       .group_step = w.units * w.size,
                       .columns = VL,
                       .streams = 1 + are_cached(vectors * w.units * w.size, sizeof(stored)),
                       .accumulate = product->accumulate};
    for (fa_index i = 0; i < panels * w.width; i += vectors) {
        const fa_index unit = (first * w.width + i) / vectors * VL;
        few.c = product->c + i * VL;
        few.rows = fa_max(0, fa_min(VL, w.units - unit));
        few.w = (const stored *)w.w + (few.rows ? unit : 0) * w.size;
        c->g.kernels->few_rows(&few);
    }
}

/* product.c (+)= product.a w for `panels` panels of w from panel `first` on, whose products are c_panel apart; 0: side by side. */
static void multiply(const pseudo_layer *c, panel_matrix w, fa_index first, fa_index panels, panel_product product)
{
    const fa_kernels *k = c->g.kernels;
    const fa_index columns = w.nv * c->g.lanes, at = first * w.k * w.width * c->g.lanes;
    if (c->w.plain) {
        multiply_plain(c, w, first, panels, &product);
        return;
    }
    product.c_panel = product.c_panel ? product.c_panel : columns;
    product.last_columns = columns;
    product.panel_stride = w.k * columns;
    product.panels = panels * (w.width / w.nv);
    product.nv = w.nv;
    product.k_size = w.k;
#if FA_FLOAT_ARRAYS
    if (c->w.type == FA_WEIGHT_BF16) {
        product.b = (const uint16_t *)w.w + at;
        k->gemm_panels_bf16(&product);
        return;
    }
    if (c->w.type == FA_WEIGHT_INT8) {
        product.b = (const int8_t *)w.w + at;
        product.scale = w.scale + first * w.width * c->g.lanes;
        k->gemm_panels_i8(&product);
        return;
    }
#endif
    product.b = (const real *)w.w + at;
    product.cached = product.m <= CACHED_ROWS && are_cached(w.k * w.units * (w.by_gates ? w.width : 1), sizeof(real));
    k->gemm_panels(&product);
}

/* Panel p of w, each of so many reals; NULL if there is none, p < 0, if they are of fewer bits or not packed. */
static const void *panel_of(const pseudo_layer *c, const void *w, fa_index size, fa_index p)
{
    return p < 0 || c->w.type != FA_WEIGHT_REAL || c->w.plain ? NULL : (const real *)w + p * size;
}

static void multiply_x(const pseudo_layer *c, const real *tiles, fa_index rows, fa_index first, fa_index panels, real *gates,
                       const void *next)
{
    const fa_index ld = panels * c->g.shape->width_x * c->g.lanes;
    multiply(c, matrix_x(c), first, panels, (panel_product){.c = gates, .ldc = ld, .a = tiles, .m = rows, .next = next});
}

static void multiply_h(const pseudo_layer *c, const real *tiles, fa_index rows, fa_index first, fa_index panels, real *gates,
                       int add, const void *next)
{
    const fa_index ld = panels * c->g.shape->width_h * c->g.lanes;
    multiply(c, matrix_h(c), first, panels,
             (panel_product){.c = gates, .ldc = ld, .a = tiles, .m = rows, .accumulate = add, .next = next});
}

/* All panels of a single row. */
static void sweep(const pseudo_layer *c, const thread_work *w, real *gates, int add, int backwards)
{
    for (fa_index i = 0; i < w->panels; i += SWEEP_PANELS) {
        const fa_index at = backwards ? (w->panels - 1 - i) / SWEEP_PANELS * SWEEP_PANELS : i;
        multiply_h(c, w->tiles, 1, w->first_panel + at, fa_min(SWEEP_PANELS, w->panels - at),
                   gates + at * c->g.shape->width_h * c->g.lanes, add, NULL);
    }
}

/* The thread's slice of h. */
static void own_outputs(const pseudo_layer *c, const thread_work *w, fa_index *first, fa_index *units)
{
    const int projected = c->g.projected;
    const fa_index width = projected ? 2 * c->g.lanes : c->g.panel_units, panel = projected ? w->first_output : w->first_panel;
    *first = panel * width;
    *units = units_of(c->g.P, panel, projected ? w->outputs : w->panels, width);
}

/* The rows of y that the kernels of the cells write; of 16-bit arrays they are written from the rounded state. */
static real *const *y_of(const thread_work *w)
{
#if FA_CONVERTS
    (void)w;
    return NULL;
#else
    return w->y_rows;
#endif
}

/* The barrier of a team that splits the units: after it each thread sees what the others computed of the step. Returns whether the team
   dissolves. */
static int wait_for_team(const thread_work *w) { return w->share.barrier ? fa_team_wait(w->share.barrier, w->share.threads) : 0; }

/* What the second product of a step takes, whole and packed. */
static void pack_inner(const pseudo_layer *c, const thread_work *w, fa_index active)
{
    round_state(c, w, c->rounded_inner, c->inner, c->g.ld, active, w->first_panel * c->g.panel_units,
                units_of(c->g.H, w->first_panel, w->panels, c->g.panel_units));
    wait_for_team(w);
    pack_state(c, w, c->rounded_inner, c->g.ld, active, 2, c->g.H);
}

/* h = w_hr (o tanh(c)), into the thread's slice of the rows of `after`. */
static void project(const pseudo_layer *c, const thread_work *w, fa_index active, real *after)
{
    pack_inner(c, w, active);
    multiply(c, matrix_r(c), w->first_output, w->outputs,
             (panel_product){
                 .c = after + w->first_output * 2 * c->g.lanes, .ldc = w->slot_step * c->g.ld_h, .a = w->tiles, .m = active});
}

/* A step of the thread's sequences: the states before and after it, and the products with x, rows of the first panel, those of the next
   `panel_stride` further. */
typedef struct {
    fa_index step, active;
    const real *before;
    real *after, *gates_x;
    fa_index panel_stride;
    int add, backwards; /* add: the gates are the sums of both products; backwards: from the last panel to the first */
} layer_step;

/* The rows and the units of panel p. */
static cell_rows rows_of_panel(const pseudo_layer *c, const thread_work *w, fa_index active, fa_index p)
{
    return (cell_rows){.y = y_of(w),
                       .saved = w->saved_rows,
                       .bias = c->w.bias + p * c->g.shape->bias_vectors * c->g.lanes,
                       .plane = c->g.H,
                       .ld = w->slot_step * c->g.ld,
                       .rows = active,
                       .first = p * c->g.panel_units,
                       .units = units_of_panel(&c->g, p),
                       .gate_clip = (real)c->a->gate_clip};
}

/* The second half of a GRU with reset before the product: the product of r h with w_hn, then n and h. */
static void update_state(const pseudo_layer *c, const thread_work *w, const layer_step *s)
{
    const fa_index VL = c->g.lanes, state = w->first_slot * c->g.ld;
    pack_inner(c, w, s->active);
    /* A panel of w_hn is two vectors of units. */
    for (fa_index i = 0; i < w->panels; i++) {
        const fa_index p = w->first_panel + i, pairs = w->order == BY_SWEEPS ? w->panels / 2 : 1;
        if (i % (2 * pairs) == 0)
            multiply(c, matrix_n(c), p / 2, pairs,
                     (panel_product){.c = w->gates_h, .ldc = 2 * VL, .a = w->tiles, .m = s->active});
        const cell_rows at = rows_of_panel(c, w, s->active, p);
        c->g.kernels->gru_update(&at, s->after, s->before, c->update + state, s->gates_x + i * s->panel_stride,
                                 w->gates_h + i % (2 * pairs) * VL);
    }
}

/* What dropout leaves of the thread's slice of h, which is rounded by now. */
static void drop(const pseudo_layer *c, const thread_work *w, fa_index step, fa_index active)
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

/* The thread's slice of y, where the kernels have not written it, and what dropout leaves of that. */
static void write_output(const pseudo_layer *c, const thread_work *w, fa_index step, fa_index active)
{
    fa_index first, units;
    own_outputs(c, w, &first, &units);
    stored *rounded = c->rounded[(step + 1) % 2];
    round_state(c, w, rounded, c->h[(step + 1) % 2], c->g.ld_h, active, first, units);
    for (fa_index r = 0; (FA_CONVERTS || c->g.projected) && r < active; r++)
        memcpy(w->y_rows[r] + first, rounded + slot_of(w, r) * c->g.ld_h + first, (size_t)units * sizeof(stored));
    if (c->a->dropped) drop(c, w, step, active);
}

/* Panels whose products with w_hh are computed at once: two, where those of one are too few chains for the two or three rows. */
static fa_index panels_together(const pseudo_layer *c, const thread_work *w, fa_index active)
{
    const int one_product = c->g.shape->width_h == c->g.shape->nv_h;
    return w->order == BY_CHUNKS && one_product && active <= 3 && !c->w.plain && c->w.type == FA_WEIGHT_REAL ? 2 : 1;
}

/* The products of `count` panels of the thread from panel i on, `next` the one after them or -1, that a step computes panel by panel. */
static void multiply_panels(const pseudo_layer *c, const thread_work *w, const layer_step *s, fa_index i, fa_index count,
                            fa_index next)
{
    const fa_index p = w->first_panel + i, ld = c->g.shape->width_h * c->g.lanes;
    real *gates = s->gates_x + i * s->panel_stride, *sums = s->add ? gates : w->gates_h;
    switch (w->order) {
    case BY_STEPS:
        multiply_x(c, w->x_tiles, s->active, p, 1, gates, panel_of(c, c->w.w_hh, c->g.size_h, p));
        multiply_h(c, w->tiles, s->active, p, 1, sums, s->add, panel_of(c, c->w.w_ih, c->g.size_x, next));
        break;
    case BY_CHUNKS:
        multiply(c, matrix_h(c), p, count,
                 (panel_product){.c = sums,
                                 .ldc = ld,
                                 .c_panel = count == 1 ? 0
                                            : s->add   ? s->panel_stride
                                                       : s->active * ld,
                                 .a = w->tiles,
                                 .m = s->active,
                                 .accumulate = s->add,
                                 .next = panel_of(c, c->w.w_hh, c->g.size_h, next)});
        break;
    case BY_SWEEPS: break;
    }
}

/* The cell of panel i of the thread, the nth of those that were multiplied at once. */
static void apply_cell(const pseudo_layer *c, const thread_work *w, const layer_step *s, fa_index i, fa_index n)
{
    const fa_kernels *k = c->g.kernels;
    const fa_index VL = c->g.lanes, p = w->first_panel + i, state = w->first_slot * c->g.ld;
    const real *gates = s->gates_x + i * s->panel_stride;
    const real *gates_h = w->gates_h + (w->order == BY_SWEEPS ? i : n * s->active) * c->g.shape->width_h * VL;
    cell_rows at = rows_of_panel(c, w, s->active, p);
    switch (c->g.cell) {
    case FA_RNN:
        if (FA_CONVERTS) at.y = w->saved_rows;
        k->rnn_gates(&at, s->after, gates, (int)c->a->activation);
        break;
    case FA_LSTM:
    case FA_LSTM_COUPLED:
        if (c->g.projected) at.y = w->inner_rows;
        k->lstm_gates(&at, c->g.projected ? c->inner + state : s->after, c->c + state, gates,
                      c->w.peephole ? c->w.peephole + p * peepholes_of(c->g.cell) * VL : NULL, (real)c->a->clip,
                      c->g.cell == FA_LSTM_COUPLED);
        break;
    case FA_GRU: k->gru_gates(&at, s->after, s->before, gates, gates_h); break;
    case FA_GRU_RESET_BEFORE: k->gru_reset(&at, c->inner + state, c->update + state, s->before, gates, gates_h); break;
    }
}

/* Where the rows of a step lie. */
static void find_step_rows(const pseudo_layer *c, const thread_work *w, const layer_step *s)
{
    for (fa_index r = 0; r < s->active; r++) {
        const slot *slot = &c->slots[slot_of(w, r)];
        w->y_rows[r] = y_row(c, slot, time_of(c, slot, s->step));
        if (w->saved_rows) w->saved_rows[r] = saved_row(c, slot, time_of(c, slot, s->step));
        if (w->inner_rows) w->inner_rows[r] = w->saved_rows[r] + (fa_recurrent_saved(&c->a->weights) - 1) * c->g.H;
    }
}

/* One step of `active` sequences; see layer_step. Where its products with x are computed in it, gates_x is room for those. */
static void run_step(const pseudo_layer *c, const thread_work *w, fa_index step, fa_index active, real *gates_x,
                     fa_index panel_stride)
{
    const fa_index state = w->first_slot * c->g.ld_h;
    const layer_step s = {.step = step,
                          .active = active,
                          .before = c->h[step % 2] + state,
                          .after = c->h[(step + 1) % 2] + state,
                          .gates_x = gates_x,
                          .panel_stride = panel_stride,
                          .add = c->g.cell == FA_RNN || is_lstm(c->g.cell),
                          .backwards = step % 2 != 0};
    find_step_rows(c, w, &s);
    pack_state(c, w, c->rounded[step % 2], c->g.ld_h, active, c->g.shape->nv_h, c->g.P);
    if (w->order == BY_SWEEPS) sweep(c, w, s.add ? gates_x : w->gates_h, s.add, s.backwards);
    const fa_index together = panels_together(c, w, active);
    for (fa_index done = 0, count; done < w->panels; done += count) {
        count = fa_min(together, w->panels - done);
        const fa_index i = s.backwards ? w->panels - done - count : done, next = s.backwards ? i - 1 : i + count;
        multiply_panels(c, w, &s, i, count, done + count < w->panels ? w->first_panel + next : -1);
        for (fa_index n = 0; n < count; n++) apply_cell(c, w, &s, i + n, n);
    }
    if (c->g.projected) project(c, w, active, s.after);
    if (c->g.cell == FA_GRU_RESET_BEFORE) update_state(c, w, &s);
    write_output(c, w, step, active);
}

/* Gives out the scratch of a share from `plan`. */
static thread_work plan_work(const pseudo_layer *c, layer_share share, arena *plan)
{
    const cell_shape *s = c->g.shape;
    const fa_index VL = c->g.lanes, B = c->a->B, slices = fa_ceil_div(c->g.panels, 2), thread = share.thread;
    thread_work w = {.share = share, .slot_step = 1, .slots = B, .panels = c->g.panels, .outputs = c->g.output_panels};
    if (share.barrier) {
        w.first_panel = 2 * (slices * thread / share.threads);
        w.panels = fa_min(c->g.panels, 2 * (slices * (thread + 1) / share.threads)) - w.first_panel;
        w.first_output = c->g.output_panels * thread / share.threads;
        w.outputs = c->g.output_panels * (thread + 1) / share.threads - w.first_output;
    } else {
        w.first_slot = thread;
        w.slot_step = share.threads;
        w.slots = fa_ceil_div(B - thread, share.threads);
    }
    /* Reset before the product needs the products with x again in its second half. */
    const int by_steps = w.slots >= c->g.kernels->sizes.step_rows && c->g.cell != FA_GRU_RESET_BEFORE;
    w.order = w.slots == 1 ? BY_SWEEPS : by_steps ? BY_STEPS : BY_CHUNKS;
    const fa_index rows = by_steps ? w.slots : fa_max(CHUNK_ROWS, w.slots);
    fa_index tiles = 0;
    for (int nv = 2; nv <= MAX_NV; nv++) tiles = fa_max(tiles, rows + c->g.kernels->sizes.tile_rows[nv]);
    w.tiles = arena_take(plan, tiles * fa_max(c->g.Ip, fa_max(c->g.Hp, c->g.Pp)) + VL, sizeof(real));
    w.x_tiles = by_steps ? arena_take(plan, tiles * c->g.Ip + VL, sizeof(real)) : NULL;
    w.gates_x = arena_take(plan, (by_steps ? 1 : w.panels) * rows * s->width_x * VL, sizeof(real));
    w.gates_h = arena_take(plan, (w.order == BY_SWEEPS ? w.panels : 2 * w.slots) * s->width_h * VL, sizeof(real));
    w.rows = arena_take(plan, rows, sizeof *w.rows);
    w.y_rows = arena_take(plan, w.slots, sizeof *w.y_rows);
    w.saved_rows = c->a->saved ? arena_take(plan, w.slots, sizeof *w.saved_rows) : NULL;
    w.kept = arena_take(plan, c->a->dropped ? c->g.ld_h : 0, sizeof(real));
    w.inner_rows = c->a->saved && c->g.projected ? arena_take(plan, w.slots, sizeof *w.inner_rows) : NULL;
    return w;
}

size_t OP(pseudo_layer_work_bytes)(const pseudo_layer *c, layer_share share)
{
    arena plan = {0};
    plan_work(c, share, &plan);
    return plan.used;
}

fa_index OP(pseudo_layer_run)(const pseudo_layer *c, layer_share share, char *scratch, fa_index step, fa_index end)
{
    arena plan = {.base = scratch};
    const thread_work work = plan_work(c, share, &plan), *w = &work;
    const fa_index width_x = c->g.shape->width_x * c->g.lanes;
    const int by_steps = w->order == BY_STEPS;
    const fa_index chunk = by_steps ? 1 : fa_max(1, CHUNK_ROWS / fa_max(1, w->slots));
    const fa_index together = w->order == BY_SWEEPS ? w->panels : 1, row = together * width_x;
    fa_index active = w->slots;
    while (step < end) {
        fa_index rows = 0, running = active;
        const fa_index chunk_end = fa_min(end, step + chunk);
        for (fa_index t = step; t < chunk_end; t++) {
            running = still_active(c, w, running, t);
            for (fa_index r = 0; r < running; r++) w->rows[rows++] = x_row(c, &c->slots[slot_of(w, r)], t);
        }
        real *x_tiles = by_steps ? w->x_tiles : w->tiles;
        const fa_index panel_stride = by_steps ? 0 : w->order == BY_SWEEPS ? width_x : rows * width_x;
        pack_operand(c, x_tiles, w->rows, rows, c->g.shape->nv_x, c->g.I);
        for (fa_index i = 0; !by_steps && i < w->panels; i += together)
            multiply_x(c, x_tiles, rows, w->first_panel + i, together, w->gates_x + i * rows * width_x,
                       panel_of(c, c->w.w_ih, c->g.size_x, i + together < w->panels ? w->first_panel + i + together : -1));
        for (fa_index done = 0; step < chunk_end; step++) {
            active = still_active(c, w, active, step);
            if (active > 0) run_step(c, w, step, active, w->gates_x + done * row, panel_stride);
            done += active;
            if (step + 1 < end && wait_for_team(w)) return step + 1;
        }
    }
    return end;
}
