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
#include "recurrent.h"

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
    recurrent_layer g;
    packed_weights w;
    fa_index steps; /* longest length */
    slot *slots;
    real *h[2], *c, *reset_h, *update;
    int members, by_panels;
    member_work *work;
    char *member_base; /* scratch of the members */
    fa_team_barrier *barrier;
} recurrent_call;

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
    for (fa_index r = 0; r < active; r++) w->rows[r] = state + slot_of(w, r) * c->g.ld;
    c->kernels->pack_rows(w->tiles, w->rows, active, nv, c->g.H, c->g.Hp);
}

/* gates (+)= tiles w, for one panel. */
static void multiply_x(const recurrent_call *c, const real *tiles, fa_index rows, fa_index panel, real *gates)
{
    const cell_shape *s = c->g.shape;
    const fa_index width = s->nv_x * c->g.lanes;
    c->kernels->gemm_panels(gates, s->width_x * c->g.lanes, width, tiles, rows, c->w.w_ih + panel * c->g.size_x, c->g.Ip * width,
                            s->width_x / s->nv_x, width, s->nv_x, c->g.Ip, 0);
}

static void multiply_h(const recurrent_call *c, const real *tiles, fa_index rows, fa_index panel, real *gates, int add)
{
    const cell_shape *s = c->g.shape;
    const fa_index width = s->nv_h * c->g.lanes;
    c->kernels->gemm_panels(gates, s->width_h * c->g.lanes, width, tiles, rows, c->w.w_hh + panel * c->g.size_h, c->g.Hp * width,
                            s->width_h / s->nv_h, width, s->nv_h, c->g.Hp, add);
}

/* One step of `active` sequences. gates_x: their rows of the first panel, those of the next `panel_stride` further; they hold the products
   with x, unless x_tiles is given. */
static void run_step(const recurrent_call *c, const member_work *w, fa_index step, fa_index active, real *gates_x,
                     fa_index panel_stride, const real *x_tiles)
{
    const fa_kernels *k = c->kernels;
    const cell_shape *s = c->g.shape;
    const fa_index VL = c->g.lanes, at = w->first_slot * c->g.ld, ld = w->slot_step * c->g.ld;
    const real *before = c->h[step % 2] + at;
    real *after = c->h[(step + 1) % 2] + at;
    for (fa_index r = 0; r < active; r++) {
        const slot *slot = &c->slots[slot_of(w, r)];
        w->y_rows[r] = y_row(c, slot, time_of(c, slot, step));
    }
    pack_state(c, w, c->h[step % 2], active, s->nv_h);
    for (fa_index i = 0; i < w->panels; i++) {
        const fa_index p = w->first_panel + i, first = p * c->g.panel_units, units = units_of_panel(&c->g, p);
        const real *bias = c->w.bias + p * s->bias_vectors * VL;
        real *gates = gates_x + i * panel_stride;
        const int add = c->g.cell == FA_RNN || c->g.cell == FA_LSTM;
        if (x_tiles) multiply_x(c, x_tiles, active, p, gates);
        multiply_h(c, w->tiles, active, p, add ? gates : w->gates_h, add);
        switch (c->g.cell) {
        case FA_RNN: k->rnn_gates(w->y_rows, after, ld, gates, bias, active, first, units, (int)c->a->activation); break;
        case FA_LSTM:
            k->lstm_gates(w->y_rows, after, c->c + at, ld, gates, bias, c->w.peephole ? c->w.peephole + p * 3 * VL : NULL, active,
                          first, units);
            break;
        case FA_GRU: k->gru_gates(w->y_rows, after, before, ld, gates, w->gates_h, bias, active, first, units); break;
        case FA_GRU_RESET_BEFORE:
            k->gru_reset(c->reset_h + at, c->update + at, before, ld, gates, w->gates_h, bias, active, first);
            break;
        }
    }
    if (c->g.cell != FA_GRU_RESET_BEFORE) return;
    if (c->by_panels) fa_team_wait(c->barrier, c->members);
    pack_state(c, w, c->reset_h, active, 2);
    for (fa_index i = 0; i < w->panels; i++) {
        const fa_index p = w->first_panel + i, first = p * c->g.panel_units;
        if (i % 2 == 0)
            k->gemm_panels(w->gates_h, 2 * VL, 0, w->tiles, active, c->w.w_hn + p / 2 * c->g.size_n, 0, 1, 2 * VL, 2, c->g.Hp, 0);
        k->gru_update(w->y_rows, after, before, c->update + at, ld, gates_x + i * panel_stride, w->gates_h + i % 2 * VL,
                      c->w.bias + p * s->bias_vectors * VL, active, first, units_of_panel(&c->g, p));
    }
}

static void run_sequences(const recurrent_call *c, const member_work *w)
{
    const fa_index width_x = c->g.shape->width_x * c->g.lanes;
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
        c->kernels->pack_rows(x_tiles, w->rows, rows, c->g.shape->nv_x, c->g.I, c->g.Ip);
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
    const double step = (double)a->B * (double)(c->g.shape->gates * c->g.H) * (double)c->g.H;
    const double work = (double)c->steps * (double)a->B * (double)(c->g.shape->gates * c->g.H) * (double)(c->g.H + c->g.I);
    const fa_index wanted = fa_members_for(work);
    const fa_index slices = c->g.panels / 2; /* of two panels, the width of a panel of w_hn */
    const fa_index by_sequences = fa_min(wanted, a->B / SEQUENCES_PER_MEMBER);
    const fa_index by_panels = fa_min(fa_min(wanted, slices), (fa_index)(step / STEP_WORK_PER_MEMBER));
    c->by_panels = by_panels > by_sequences && by_panels > 1;
    c->members = (int)(c->by_panels ? by_panels : fa_max(1, by_sequences));
}

/* Gives each of `members` its share and its scratch from `plan`. */
static void plan_members(recurrent_call *c, arena *plan, int members, int by_panels)
{
    const cell_shape *s = c->g.shape;
    const fa_index VL = c->g.lanes, B = c->a->B, slices = fa_ceil_div(c->g.panels, 2);
    for (int m = 0; m < members; m++) {
        member_work w = {.slot_step = 1, .slots = B, .panels = c->g.panels};
        if (by_panels) {
            w.first_panel = 2 * (slices * m / members);
            w.panels = fa_min(c->g.panels, 2 * (slices * (m + 1) / members)) - w.first_panel;
        } else {
            w.first_slot = m;
            w.slot_step = members;
            w.slots = fa_ceil_div(B - m, members);
        }
        /* Reset before the product needs the products with x again in its second half. */
        const int by_steps = w.slots >= FEW_SEQUENCES && c->g.cell != FA_GRU_RESET_BEFORE;
        const fa_index rows = by_steps ? w.slots : fa_max(CHUNK_ROWS, w.slots);
        fa_index tiles = 0;
        for (int nv = 2; nv <= MAX_NV; nv++) tiles = fa_max(tiles, rows + c->kernels->sizes.tile_rows[nv]);
        w.tiles = arena_take(plan, tiles * fa_max(c->g.Ip, c->g.Hp) + VL, sizeof(real));
        w.x_tiles = by_steps ? arena_take(plan, tiles * c->g.Ip + VL, sizeof(real)) : NULL;
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
    const size_t row = (size_t)c->g.H * sizeof(real), padded = (size_t)c->g.ld * sizeof(real);
    for (fa_index b = 0; b < a->B; b++) c->slots[b] = (slot){a->lengths ? a->lengths[b] : a->T, b};
    if (a->lengths) qsort(c->slots, (size_t)a->B, sizeof *c->slots, longer_first);
    c->steps = a->B ? c->slots[0].length : 0;
    for (fa_index i = 0; i < a->B; i++) {
        const fa_index b = c->slots[i].sequence;
        memset(c->h[0] + i * c->g.ld, 0, padded);
        memset(c->h[1] + i * c->g.ld, 0, padded);
        if (a->h0) memcpy(c->h[0] + i * c->g.ld, (const real *)a->h0 + b * c->g.H, row);
        if (!c->g.shape->state_cell) continue;
        memset(c->c + i * c->g.ld, 0, padded);
        if (a->c0) memcpy(c->c + i * c->g.ld, (const real *)a->c0 + b * c->g.H, row);
    }
}

/* Task i: the final state of slot i, and zeros behind the end of its sequence. */
static void finish_slot(void *context, fa_index i, int worker)
{
    const recurrent_call *c = context;
    const slot *s = &c->slots[i];
    const size_t row = (size_t)c->g.H * sizeof(real);
    (void)worker;
    memcpy((real *)c->a->h_out + s->sequence * c->g.H, c->h[s->length % 2] + i * c->g.ld, row);
    if (c->g.shape->state_cell) memcpy((real *)c->a->c_out + s->sequence * c->g.H, c->c + i * c->g.ld, row);
    for (fa_index t = s->length; t < c->a->T; t++) memset(y_row(c, s, t), 0, row);
}

/* Gives out what the members share; called twice, see arena. */
static void plan_shared(recurrent_call *c, arena *plan, int members)
{
    const fa_recurrent_arguments *a = c->a;
    const cell_shape *s = c->g.shape;
    const int before = c->g.cell == FA_GRU_RESET_BEFORE;
    c->work = arena_take(plan, members, sizeof *c->work);
    c->slots = arena_take(plan, a->B, sizeof *c->slots);
    if (!a->packed) c->w = OP(recurrent_plan)(&c->g, plan, a->weights.peephole != NULL);
    c->h[0] = arena_take(plan, a->B * c->g.ld, sizeof(real));
    c->h[1] = arena_take(plan, a->B * c->g.ld, sizeof(real));
    c->c = s->state_cell ? arena_take(plan, a->B * c->g.ld, sizeof(real)) : NULL;
    c->reset_h = before ? arena_take(plan, a->B * c->g.ld, sizeof(real)) : NULL;
    c->update = before ? arena_take(plan, a->B * c->g.ld, sizeof(real)) : NULL;
    c->member_base = plan->base ? plan->base + plan->used : NULL;
}

fa_status OP(recurrent_forward)(const fa_recurrent_arguments *a)
{
    const fa_kernels *k = a->packed ? kernels_for(a->isa) : current_kernels();
    fa_team_barrier barrier = {0};
    recurrent_call c = {.a = a, .kernels = k, .g = OP(recurrent_layer)(k, &a->weights), .steps = a->T, .barrier = &barrier};
    if (a->B == 0) return FA_OK;
    if (a->packed) {
        arena packed = {.base = (char *)(uintptr_t)a->packed};
        c.w = OP(recurrent_plan)(&c.g, &packed, a->weights.peephole != NULL);
    }
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
    if (!a->packed) OP(recurrent_fill)(&c.g, &c.w, &a->weights);
    fa_team_run(c.members, run_member, &c);
    fa_parallel_for(a->B, fa_members_for((double)a->B * (double)c.g.H), finish_slot, &c);
    fa_scratch_give(&scratch);
    return FA_OK;
}
