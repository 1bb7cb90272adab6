/* A layer of a recurrent network over a sequence, in one direction.

     1  weights are packed: a panel holds all gates of VL units (two vectors of units for the plain cell), so that what comes out
        of the products is all that the cell needs for those units
     2  for each step: x and h are packed, then panel by panel the products with w_ih and w_hh are added up and the cell is
        applied, while the panel's gates lie in the first-level cache
     With few sequences w_ih would be read too often for that: then time runs in chunks of about CHUNK_ROWS rows of x, and for each
     chunk the products with w_ih are one matrix product before its steps. The sums are the same, in the same order.

   The members of a team share the work in one of two ways (choose_split): each takes some of the sequences, and they never wait
   for one another; or each takes some of the panels, keeps that slice of w_hh in its own cache for the whole sequence, and they
   meet after each step. h is double, read from one buffer and written to the other, so that one meeting is enough.

   Ragged batches: rows are sorted by length, so the sequences that still run are the first `active` rows of each step. A
   sequence's arithmetic does not depend on its place, so it has the same bits as alone. */
#include "ops.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_ROWS 192
#define FEW_SEQUENCES 24 /* below, chunks: w_ih for a step of 16 rows takes as long to read as to multiply */
/* Splitting by sequences leaves each member at least this many: below, a panel that comes from the third-level cache is used too few
   times. */
#define SEQUENCES_PER_MEMBER 12
/* Multiply-adds of a step for each member that repay a meeting (about half a microsecond). */
#define STEP_WORK_PER_MEMBER 20000.0
#define MAX_NV 4

enum { MAX_GATES = 4 };

typedef struct {
    int gates;            /* rows of w per unit */
    int unit_vectors;     /* vectors of units in a panel */
    int width_x, width_h; /* vectors in a panel of w_ih and w_hh */
    int nv_x, nv_h;       /* the same in one product: a panel is one or two of them side by side */
    int bias_vectors;     /* vectors of bias for a panel */
    int state_cell;       /* has c */
} cell_shape;

/* Panels of lstm are two products of two vectors: tiles of 6 x 2 run 3 to 10 % faster than those of 3 x 4, most with few rows. */
static const cell_shape shapes[] = {
    [FA_RNN] = {.gates = 1, .unit_vectors = 2, .width_x = 2, .width_h = 2, .nv_x = 2, .nv_h = 2, .bias_vectors = 2},
    [FA_LSTM] =
        {.gates = 4, .unit_vectors = 1, .width_x = 4, .width_h = 4, .nv_x = 2, .nv_h = 2, .bias_vectors = 4, .state_cell = 1},
    [FA_GRU] = {.gates = 3, .unit_vectors = 1, .width_x = 3, .width_h = 3, .nv_x = 3, .nv_h = 3, .bias_vectors = 4},
    /* w_hh of r and z in panels like w_ih, that of n in panels of two vectors of units */
    [FA_GRU_RESET_BEFORE] = {.gates = 3, .unit_vectors = 1, .width_x = 3, .width_h = 2, .nv_x = 3, .nv_h = 2, .bias_vectors = 4},
};

/* A row of the state: which sequence it belongs to. Slots are sorted by falling length. */
typedef struct {
    fa_index length, sequence;
} slot;

/* What one member works on, and its scratch. */
typedef struct {
    fa_index first_slot, slot_step, slots;
    fa_index first_panel, panels; /* slice of the units */
    real *tiles;                  /* packed rows of x of a chunk, then of h */
    real *x_tiles;                /* packed rows of x of a step, or NULL: chunks */
    real *gates_x;                /* [panels of the slice][rows of the chunk][width_x VL], or [slots][width_x VL] */
    real *gates_h;                /* [slots][width_h VL] */
    const real **rows;            /* pointers to rows of x or h */
    real **y_rows;
} member_work;

typedef struct {
    const fa_recurrent_arguments *a;
    const fa_kernels *kernels;
    const cell_shape *shape;
    fa_index lanes, panels, panel_units, ld; /* ld: row stride of the state */
    fa_index Ip, Hp;                         /* I, H padded to tile_k */
    fa_index size_x, size_h, size_n;         /* of a packed panel */
    fa_index steps;                          /* longest length */
    slot *slots;
    real *w_ih, *w_hh, *w_hn, *bias, *peephole;
    real *h[2], *c, *reset_h, *update;
    int members, by_panels;
    member_work *work;
    char *member_base; /* scratch of the members */
    fa_team_barrier *barrier;
} recurrent_call;

static fa_index panel_units(const recurrent_call *c, fa_index panel)
{
    return fa_min(c->panel_units, c->a->H - panel * c->panel_units);
}

/* ---- packing the weights: task i is panel i ---- */

static void pack_vector(const recurrent_call *c, real *dst, fa_index step, const real *w, fa_index gate, fa_index unit,
                        fa_index k_size, fa_index k_padded)
{
    const fa_index columns = fa_max(0, fa_min(c->lanes, c->a->H - unit));
    c->kernels->pack_columns(dst, step, w + (gate * c->a->H + (columns ? unit : 0)) * k_size, k_size, columns, k_size, k_padded);
}

/* Where vector v of a panel begins: in product v / nv of the panel, side by side with the others of that. */
static fa_index at_vector(const recurrent_call *c, fa_index v, fa_index nv, fa_index k_padded)
{
    return (v / nv * nv * k_padded + v % nv) * c->lanes;
}

static void copy_units(const recurrent_call *c, real *dst, const real *src, fa_index gate, fa_index unit)
{
    for (fa_index i = 0; i < c->lanes; i++) {
        const fa_index u = unit + i;
        if (src && u < c->a->H) dst[i] += src[gate * c->a->H + u];
    }
}

static void pack_panel(void *context, fa_index p, int worker)
{
    const recurrent_call *c = context;
    const fa_recurrent_arguments *a = c->a;
    const cell_shape *s = c->shape;
    const fa_index VL = c->lanes, unit = p * c->panel_units;
    real *bias = c->bias + p * s->bias_vectors * VL;
    (void)worker;
    memset(bias, 0, (size_t)(s->bias_vectors * VL) * sizeof(real));
    for (fa_index v = 0; v < s->width_x; v++) {
        const fa_index gate = s->unit_vectors == 1 ? v : 0, u = unit + (s->unit_vectors == 1 ? 0 : v * VL);
        pack_vector(c, c->w_ih + p * c->size_x + at_vector(c, v, s->nv_x, c->Ip), s->nv_x * VL, a->w_ih, gate, u, a->I, c->Ip);
        if (v < s->width_h)
            pack_vector(c, c->w_hh + p * c->size_h + at_vector(c, v, s->nv_h, c->Hp), s->nv_h * VL, a->w_hh, gate, u, a->H,
                        c->Hp);
        copy_units(c, bias + v * VL, a->b_ih, gate, u);
        /* The last gate of gru keeps its hidden bias apart: it is inside the product with r, or beside it. */
        copy_units(c, bias + (v == 2 && s->bias_vectors > s->width_x ? 3 : v) * VL, a->b_hh, gate, u);
    }
    if (c->w_hn) pack_vector(c, c->w_hn + p / 2 * c->size_n + p % 2 * VL, 2 * VL, a->w_hh, 2, unit, a->H, c->Hp);
    if (a->peephole) {
        memset(c->peephole + p * 3 * VL, 0, (size_t)(3 * VL) * sizeof(real));
        for (fa_index g = 0; g < 3; g++) copy_units(c, c->peephole + (p * 3 + g) * VL, a->peephole, g, unit);
    }
}

/* ---- the sequence ---- */

static fa_index time_of(const recurrent_call *c, const slot *s, fa_index step)
{
    return c->a->reverse ? s->length - 1 - step : step;
}

static const real *x_row(const recurrent_call *c, const slot *s, fa_index step)
{
    return (const real *)c->a->x + time_of(c, s, step) * c->a->x_stride[0] + s->sequence * c->a->x_stride[1];
}

static real *y_row(const recurrent_call *c, const slot *s, fa_index time)
{
    return (real *)c->a->y + time * c->a->y_stride[0] + s->sequence * c->a->y_stride[1];
}

static fa_index slot_of(const member_work *w, fa_index row) { return w->first_slot + row * w->slot_step; }

/* Sequences of the member that run at `step`, from the number that ran before. */
static fa_index still_active(const recurrent_call *c, const member_work *w, fa_index before, fa_index step)
{
    while (before > 0 && c->slots[slot_of(w, before - 1)].length <= step) before--;
    return before;
}

static void pack_state(const recurrent_call *c, const member_work *w, const real *state, fa_index active, fa_index nv)
{
    for (fa_index r = 0; r < active; r++) w->rows[r] = state + slot_of(w, r) * c->ld;
    c->kernels->pack_rows(w->tiles, w->rows, active, nv, c->a->H, c->Hp);
}

/* gates (+)= tiles w, for one panel. */
static void multiply_x(const recurrent_call *c, const real *tiles, fa_index rows, fa_index panel, real *gates)
{
    const cell_shape *s = c->shape;
    const fa_index width = s->nv_x * c->lanes;
    c->kernels->gemm_panels(gates, s->width_x * c->lanes, width, tiles, rows, c->w_ih + panel * c->size_x, c->Ip * width,
                            s->width_x / s->nv_x, width, s->nv_x, c->Ip, 0);
}

static void multiply_h(const recurrent_call *c, const real *tiles, fa_index rows, fa_index panel, real *gates, int add)
{
    const cell_shape *s = c->shape;
    const fa_index width = s->nv_h * c->lanes;
    c->kernels->gemm_panels(gates, s->width_h * c->lanes, width, tiles, rows, c->w_hh + panel * c->size_h, c->Hp * width,
                            s->width_h / s->nv_h, width, s->nv_h, c->Hp, add);
}

/* One step of `active` sequences. gates_x: their rows of the first panel, those of the next `panel_stride` further; they hold the products
   with x, unless x_tiles is given. */
static void run_step(const recurrent_call *c, const member_work *w, fa_index step, fa_index active, real *gates_x,
                     fa_index panel_stride, const real *x_tiles)
{
    const fa_kernels *k = c->kernels;
    const cell_shape *s = c->shape;
    const fa_index VL = c->lanes, at = w->first_slot * c->ld, ld = w->slot_step * c->ld;
    const real *before = c->h[step % 2] + at;
    real *after = c->h[(step + 1) % 2] + at;
    for (fa_index r = 0; r < active; r++) {
        const slot *slot = &c->slots[slot_of(w, r)];
        w->y_rows[r] = y_row(c, slot, time_of(c, slot, step));
    }
    pack_state(c, w, c->h[step % 2], active, s->nv_h);
    for (fa_index i = 0; i < w->panels; i++) {
        const fa_index p = w->first_panel + i, first = p * c->panel_units, units = panel_units(c, p);
        const real *bias = c->bias + p * s->bias_vectors * VL;
        real *gates = gates_x + i * panel_stride;
        const int add = c->a->cell == FA_RNN || c->a->cell == FA_LSTM;
        if (x_tiles) multiply_x(c, x_tiles, active, p, gates);
        multiply_h(c, w->tiles, active, p, add ? gates : w->gates_h, add);
        switch (c->a->cell) {
        case FA_RNN: k->rnn_gates(w->y_rows, after, ld, gates, bias, active, first, units, (int)c->a->activation); break;
        case FA_LSTM:
            k->lstm_gates(w->y_rows, after, c->c + at, ld, gates, bias, c->a->peephole ? c->peephole + p * 3 * VL : NULL, active,
                          first, units);
            break;
        case FA_GRU: k->gru_gates(w->y_rows, after, before, ld, gates, w->gates_h, bias, active, first, units); break;
        case FA_GRU_RESET_BEFORE:
            k->gru_reset(c->reset_h + at, c->update + at, before, ld, gates, w->gates_h, bias, active, first);
            break;
        }
    }
    if (c->a->cell != FA_GRU_RESET_BEFORE) return;
    if (c->by_panels) fa_team_wait(c->barrier, c->members);
    pack_state(c, w, c->reset_h, active, 2);
    for (fa_index i = 0; i < w->panels; i++) {
        const fa_index p = w->first_panel + i, first = p * c->panel_units;
        if (i % 2 == 0)
            k->gemm_panels(w->gates_h, 2 * VL, 0, w->tiles, active, c->w_hn + p / 2 * c->size_n, 0, 1, 2 * VL, 2, c->Hp, 0);
        k->gru_update(w->y_rows, after, before, c->update + at, ld, gates_x + i * panel_stride, w->gates_h + i % 2 * VL,
                      c->bias + p * s->bias_vectors * VL, active, first, panel_units(c, p));
    }
}

static void run_sequences(const recurrent_call *c, const member_work *w)
{
    const fa_index width_x = c->shape->width_x * c->lanes;
    const fa_index chunk = w->x_tiles ? 1 : fa_max(1, CHUNK_ROWS / fa_max(1, w->slots));
    fa_index active = w->slots;
    for (fa_index step = 0; step < c->steps;) {
        fa_index rows = 0, running = active;
        const fa_index chunk_end = fa_min(c->steps, step + chunk);
        for (fa_index t = step; t < chunk_end; t++) {
            running = still_active(c, w, running, t);
            for (fa_index r = 0; r < running; r++) w->rows[rows++] = x_row(c, &c->slots[slot_of(w, r)], t);
        }
        real *x_tiles = w->x_tiles ? w->x_tiles : w->tiles;
        c->kernels->pack_rows(x_tiles, w->rows, rows, c->shape->nv_x, c->a->I, c->Ip);
        for (fa_index i = 0; !w->x_tiles && i < w->panels; i++)
            multiply_x(c, x_tiles, rows, w->first_panel + i, w->gates_x + i * rows * width_x);
        for (fa_index done = 0; step < chunk_end; step++) {
            active = still_active(c, w, active, step);
            if (active > 0)
                run_step(c, w, step, active, w->gates_x + done * width_x, w->x_tiles ? 0 : rows * width_x, w->x_tiles);
            done += active;
            if (c->by_panels) fa_team_wait(c->barrier, c->members);
        }
    }
}

/* ---- sharing the work ---- */

/* How many members, and by what they split: from sizes alone.
   Sequences, while each member keeps SEQUENCES_PER_MEMBER of them: no meetings. Else panels, while a step's products repay one. */
static void choose_split(recurrent_call *c)
{
    const fa_recurrent_arguments *a = c->a;
    const double step = (double)a->B * (double)(c->shape->gates * a->H) * (double)a->H;
    const double work = (double)c->steps * (double)a->B * (double)(c->shape->gates * a->H) * (double)(a->H + a->I);
    const fa_index wanted = fa_members_for(work);
    const fa_index slices = c->panels / 2; /* of two panels, the width of a panel of w_hn */
    const fa_index by_sequences = fa_min(wanted, a->B / SEQUENCES_PER_MEMBER);
    const fa_index by_panels = fa_min(fa_min(wanted, slices), (fa_index)(step / STEP_WORK_PER_MEMBER));
    c->by_panels = by_panels > by_sequences && by_panels > 1;
    c->members = (int)(c->by_panels ? by_panels : fa_max(1, by_sequences));
}

/* Gives each of `members` its share and its scratch from `plan`. */
static void plan_members(recurrent_call *c, arena *plan, int members, int by_panels)
{
    const cell_shape *s = c->shape;
    const fa_index VL = c->lanes, B = c->a->B, slices = fa_ceil_div(c->panels, 2);
    for (int m = 0; m < members; m++) {
        member_work w = {.slot_step = 1, .slots = B, .panels = c->panels};
        if (by_panels) {
            w.first_panel = 2 * (slices * m / members);
            w.panels = fa_min(c->panels, 2 * (slices * (m + 1) / members)) - w.first_panel;
        } else {
            w.first_slot = m;
            w.slot_step = members;
            w.slots = fa_ceil_div(B - m, members);
        }
        /* Reset before the product needs the products with x again in its second half. */
        const int by_steps = w.slots >= FEW_SEQUENCES && c->a->cell != FA_GRU_RESET_BEFORE;
        const fa_index rows = by_steps ? w.slots : fa_max(CHUNK_ROWS, w.slots);
        fa_index tiles = 0;
        for (int nv = 2; nv <= MAX_NV; nv++) tiles = fa_max(tiles, rows + c->kernels->sizes.tile_rows[nv]);
        w.tiles = arena_take(plan, tiles * fa_max(c->Ip, c->Hp) + VL, sizeof(real));
        w.x_tiles = by_steps ? arena_take(plan, tiles * c->Ip + VL, sizeof(real)) : NULL;
        w.gates_x = arena_take(plan, (by_steps ? 1 : w.panels) * rows * s->width_x * VL, sizeof(real));
        w.gates_h = arena_take(plan, w.slots * s->width_h * VL, sizeof(real));
        w.rows = arena_take(plan, rows, sizeof *w.rows);
        w.y_rows = arena_take(plan, w.slots, sizeof *w.y_rows);
        if (plan->base) c->work[m] = w;
    }
}

static void run_member(void *context, int member, int members)
{
    const recurrent_call *c = context;
    if (members == c->members) {
        run_sequences(c, &c->work[member]);
    } else if (member == 0) {
        /* Fewer threads could be had than the work was shared out for: alone, then. The scratch is large enough for that too. */
        recurrent_call alone = *c;
        arena plan = {.base = c->member_base};
        alone.members = 1;
        alone.by_panels = 0;
        plan_members(&alone, &plan, 1, 0);
        run_sequences(&alone, &alone.work[0]);
    }
}

/* ---- the call ---- */

static int longer_first(const void *left, const void *right)
{
    const slot *a = left, *b = right;
    if (a->length != b->length) return a->length > b->length ? -1 : 1;
    return a->sequence < b->sequence ? -1 : a->sequence > b->sequence;
}

static void start_slots(recurrent_call *c)
{
    const fa_recurrent_arguments *a = c->a;
    const size_t row = (size_t)a->H * sizeof(real), padded = (size_t)c->ld * sizeof(real);
    for (fa_index b = 0; b < a->B; b++) c->slots[b] = (slot){a->lengths ? a->lengths[b] : a->T, b};
    if (a->lengths) qsort(c->slots, (size_t)a->B, sizeof *c->slots, longer_first);
    c->steps = a->B ? c->slots[0].length : 0;
    for (fa_index i = 0; i < a->B; i++) {
        const fa_index b = c->slots[i].sequence;
        memset(c->h[0] + i * c->ld, 0, padded);
        memset(c->h[1] + i * c->ld, 0, padded);
        if (a->h0) memcpy(c->h[0] + i * c->ld, (const real *)a->h0 + b * a->H, row);
        if (!c->shape->state_cell) continue;
        memset(c->c + i * c->ld, 0, padded);
        if (a->c0) memcpy(c->c + i * c->ld, (const real *)a->c0 + b * a->H, row);
    }
}

/* Task i: the final state of slot i, and zeros behind the end of its sequence. */
static void finish_slot(void *context, fa_index i, int worker)
{
    const recurrent_call *c = context;
    const slot *s = &c->slots[i];
    const size_t row = (size_t)c->a->H * sizeof(real);
    (void)worker;
    memcpy((real *)c->a->h_out + s->sequence * c->a->H, c->h[s->length % 2] + i * c->ld, row);
    if (c->shape->state_cell) memcpy((real *)c->a->c_out + s->sequence * c->a->H, c->c + i * c->ld, row);
    for (fa_index t = s->length; t < c->a->T; t++) memset(y_row(c, s, t), 0, row);
}

/* Gives out what the members share; called twice, see arena. */
static void plan_shared(recurrent_call *c, arena *plan, int members)
{
    const fa_recurrent_arguments *a = c->a;
    const cell_shape *s = c->shape;
    const int before = a->cell == FA_GRU_RESET_BEFORE;
    c->work = arena_take(plan, members, sizeof *c->work);
    c->slots = arena_take(plan, a->B, sizeof *c->slots);
    c->w_ih = arena_take(plan, c->panels * c->size_x, sizeof(real));
    c->w_hh = arena_take(plan, c->panels * c->size_h, sizeof(real));
    c->w_hn = before ? arena_take(plan, c->panels / 2 * c->size_n, sizeof(real)) : NULL;
    c->bias = arena_take(plan, c->panels * s->bias_vectors * c->lanes, sizeof(real));
    c->peephole = a->peephole ? arena_take(plan, c->panels * 3 * c->lanes, sizeof(real)) : NULL;
    c->h[0] = arena_take(plan, a->B * c->ld, sizeof(real));
    c->h[1] = arena_take(plan, a->B * c->ld, sizeof(real));
    c->c = s->state_cell ? arena_take(plan, a->B * c->ld, sizeof(real)) : NULL;
    c->reset_h = before ? arena_take(plan, a->B * c->ld, sizeof(real)) : NULL;
    c->update = before ? arena_take(plan, a->B * c->ld, sizeof(real)) : NULL;
    c->member_base = plan->base ? plan->base + plan->used : NULL;
}

fa_status OP(recurrent_forward)(const fa_recurrent_arguments *a)
{
    const fa_kernels *k = current_kernels();
    const cell_shape *s = &shapes[a->cell];
    const fa_index VL = k->sizes.lanes;
    fa_team_barrier barrier = {0};
    recurrent_call c = {.a = a, .kernels = k, .shape = s, .lanes = VL, .barrier = &barrier};
    if (a->B == 0) return FA_OK;

    c.panel_units = s->unit_vectors * VL;
    c.panels = fa_ceil_div(a->H, c.panel_units);
    if (a->cell == FA_GRU_RESET_BEFORE) c.panels = fa_round_up(c.panels, 2);
    c.ld = c.panels * c.panel_units;
    c.Ip = fa_round_up(a->I, k->sizes.tile_k);
    c.Hp = fa_round_up(a->H, k->sizes.tile_k);
    c.size_x = c.Ip * s->width_x * VL;
    c.size_h = c.Hp * s->width_h * VL;
    c.size_n = c.Hp * 2 * VL;
    c.steps = a->T;
    choose_split(&c);

    arena shared = {0}, shared_out = {0}, alone = {0};
    plan_shared(&c, &shared, c.members);
    plan_members(&c, &shared_out, c.members, c.by_panels);
    plan_members(&c, &alone, 1, 0);
    fa_scratch scratch;
    if (!fa_scratch_take(&scratch, fa_scratch_sum(shared.used, shared_out.used > alone.used ? shared_out.used : alone.used)))
        return FA_NOMEM;
    shared = (arena){.base = scratch.base};
    plan_shared(&c, &shared, c.members);
    shared_out = (arena){.base = c.member_base};
    plan_members(&c, &shared_out, c.members, c.by_panels);

    start_slots(&c);
    fa_parallel_for(c.panels, fa_members_for((double)c.panels * (double)(c.size_x + c.size_h)), pack_panel, &c);
    fa_team_run(c.members, run_member, &c);
    fa_parallel_for(a->B, fa_members_for((double)a->B * (double)a->H), finish_slot, &c);
    fa_scratch_give(&scratch);
    return FA_OK;
}
