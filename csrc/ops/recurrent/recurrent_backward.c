/* Backward through time, for one layer and direction; recurrent_gradients.c has step 3 and the call.

     1  w_ih and w_hh are packed with the gates as rows of b: their products with gradients of gates give those of x and h
     2  time runs backwards in chunks of about BACKWARD_ROWS rows (step by step, the sequences that run in each). In a chunk, for each
        step: gradients of the gates (kernels/recurrent/recurrent_backward.c), then dh = da w_hh for the step before
     3  behind each chunk the products over all its rows: dx = da w_ih, dw_ih += da' x, dw_hh += da' h, db += sums of da

   Memory is that of a chunk, and da is still in the cache when the products read it. The sums of the weights' gradients are split at
   chunks and in them at k_block: their order follows from sizes and lengths alone. dx and dh of a sequence have the same bits as alone.

   In steps, the threads split by sequences or by units (choose_split); with units all wait for each other after the gradients of the gates,
   which each needs of all units. When one comes late the team dissolves behind the step, and the caller finishes the chunk alone.

   With a projection, the gradients of its outputs h are kept for the products dw_hr += dh' (o tanh(c)), and those of its inputs are
   dh w_hr.

   A row of da has H gradients for each gate; for gru those of h_n + b_hn (or, with reset before the product, r h itself, which dw_hh
   needs), r, z, n. n comes last because it is the largest: a chain of multiply-adds that begins with small numbers rounds less. */
#include "recurrent_backward.h"

/* ---- packing the weights ---- */

static void pack_steps(const backward_call *c, real *panels, const real *w, fa_index first_row, fa_index rows, fa_index columns)
{
    const fa_kernels *k = c->kernels;
    const fa_index Kp = fa_round_up(rows, k->sizes.tile_k);
    for (fa_index r = 0; r < rows; r++) c->weight_rows[r] = w + (first_row + r) * columns;
    for (fa_index p = 0; p < fa_ceil_div(columns, c->width); p++)
        k->copy_panel(panels + p * c->width * Kp, c->weight_rows, p * c->width, columns - p * c->width, BACKWARD_NV, rows, Kp);
}

void OP(backward_pack)(backward_call *c)
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
    OP(products_pack)(c->kernels, &operand, 1, c->product_threads);
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

/* Steps [first, end) with at most BACKWARD_ROWS rows, or one step. */
static void begin_chunk(backward_call *c)
{
    fa_index step = c->end, running = 0;
    c->rows = 0;
    while (step > 0) {
        while (running < c->B && c->slots[running].length >= step) running++;
        if (c->rows > 0 && c->rows + running > BACKWARD_ROWS) break;
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
} thread_share;

static unit_slice slice_of(const backward_call *c, fa_index units, fa_index panels, int thread)
{
    unit_slice s = {.panels = panels};
    if (c->by_units) {
        s.first_panel = panels * thread / c->threads;
        s.panels = panels * (thread + 1) / c->threads - s.first_panel;
    }
    s.unit = s.first_panel * c->width;
    s.units = fa_max(0, fa_min(units - s.unit, s.panels * c->width));
    return s;
}

/* A slice of dst, rows of ld, (+)= the elements [column, column + K) of the rows a[0], a[slot_step], ..., times w. */
static void multiply(const backward_call *c, const thread_share *m, const unit_slice *s, real *dst, fa_index ld,
                     const real *const *a, fa_index rows, fa_index column, fa_index K, const real *w, int add)
{
    const fa_kernels *k = c->kernels;
    const fa_index Kp = fa_round_up(K, k->sizes.tile_k), stride = c->width * Kp, end = s->unit + s->units;
    for (fa_index r = 0; r < rows; r++) m->rows[r] = a[r * m->slot_step] + column;
    k->pack_rows(m->tiles, m->rows, rows, BACKWARD_NV, K, Kp);
    const panel_product product = {.c = dst + s->unit,
                                   .ldc = m->slot_step * ld,
                                   .c_panel = c->width,
                                   .a = m->tiles,
                                   .m = rows,
                                   .b = w + s->first_panel * stride,
                                   .panel_stride = stride,
                                   .panels = s->panels,
                                   .last_columns = end - (s->first_panel + s->panels - 1) * c->width,
                                   .nv = BACKWARD_NV,
                                   .k_size = Kp,
                                   .accumulate = add};
    k->gemm_panels(&product);
}

/* One step of the rows n, n + slot_step, ... of the chunk. Returns whether the team dissolves. */
static int run_step(backward_call *c, const thread_share *m, fa_index n, fa_index rows)
{
    const fa_kernels *k = c->kernels;
    const fa_recurrent_arguments *a = c->a;
    const fa_index H = c->H, state = m->first_slot * c->ld;
    const real *const *das = c->da_rows + n;
    real *dh = c->dh + m->first_slot * c->ld_h;
    cell_gradients at = {.da = c->da + n * c->lda,
                         .ldda = m->slot_step * c->lda,
                         .ld = m->slot_step * c->ld,
                         .dy = c->g->dy ? c->dy_rows + n : NULL,
                         .saved = c->saved_rows + n,
                         .row_step = m->slot_step,
                         .rows = rows,
                         .first = m->cell.unit,
                         .units = m->cell.units,
                         .H = H};
    switch (c->cell) {
    case FA_RNN: k->rnn_backward(&at, dh, c->y_rows + n, (int)a->activation); break;
    case FA_LSTM:
    case FA_LSTM_COUPLED: {
        real *gradient = dh;
        if (c->w_hr) {
            cell_gradients output = at;
            output.da = c->outputs + n * c->P;
            output.ldda = m->slot_step * c->P;
            output.ld = m->slot_step * c->ld_h;
            output.first = m->output.unit;
            output.units = m->output.units;
            k->rnn_backward(&output, dh, c->y_rows + n, FA_IDENTITY);
            if (c->by_units) fa_team_wait(&c->barrier, c->threads);
            gradient = c->inner + state;
            multiply(c, m, &m->cell, gradient, c->ld, c->output_rows + n, rows, 0, c->P, c->w_hr, 0);
            at.dy = NULL;
        }
        k->lstm_backward(&at, gradient, c->dc + state, c->c_rows + n, a->weights.peephole, (real)a->clip,
                         c->cell == FA_LSTM_COUPLED);
        break;
    }
    default: k->gru_backward(&at, dh, c->h_rows + n, c->cell == FA_GRU_RESET_BEFORE);
    }
    int dissolved = c->by_units ? fa_team_wait(&c->barrier, c->threads) : 0;
    if (c->cell == FA_GRU_RESET_BEFORE) {
        multiply(c, m, &m->cell, c->inner + state, c->ld, das, rows, 3 * H, H, c->w_h[0], 0);
        k->gru_reset_backward(&at, dh, c->inner + state, c->h_rows + n);
        if (c->by_units) dissolved = fa_team_wait(&c->barrier, c->threads);
        multiply(c, m, &m->cell, dh, c->ld, das, rows, H, 2 * H, c->w_h[1], 1);
    } else if (c->cell == FA_GRU) {
        multiply(c, m, &m->cell, dh, c->ld, das, rows, H, 2 * H, c->w_h[1], 1);
        multiply(c, m, &m->cell, dh, c->ld, das, rows, 0, H, c->w_h[0], 1);
    } else {
        multiply(c, m, &m->output, dh, c->ld_h, das, rows, 0, c->gates * H, c->w_h[0], 0);
    }
    return dissolved;
}

/* The steps of the chunk from the one before c->from down to c->first. */
static void run_steps(backward_call *c, int thread, int worker)
{
    thread_share m = {.slot_step = 1};
    if (!c->by_units) {
        m.first_slot = thread;
        m.slot_step = c->threads;
    }
    m.cell = slice_of(c, c->H, c->panels, thread);
    m.output = slice_of(c, c->P, c->panels_h, thread);
    m.tiles = c->tiles + worker * c->most_tiles;
    m.rows = c->tile_rows + worker * c->B;
    chunk_place at = c->from;
    for (int dissolved = 0; !dissolved && at.step > c->first;) {
        const fa_index active = c->active[c->end - at.step], rows = fa_ceil_div(active - m.first_slot, m.slot_step);
        if (rows > 0) dissolved = run_step(c, &m, at.row + m.first_slot, rows);
        at = (chunk_place){at.step - 1, at.row + active};
    }
    if (c->by_units && thread == 0) c->to = at;
}

/* Share i of a chunk whose sequences are split. */
static void run_share(void *context, fa_index i, int worker) { run_steps(context, (int)i, worker); }

static void run_thread(void *context, int thread, int threads)
{
    backward_call *c = context;
    backward_call alone = *c;
    if (threads == c->threads) {
        run_steps(c, thread, thread);
    } else if (thread == 0) {
        /* Fewer threads could be had than the units were shared out for. */
        alone.threads = 1;
        alone.by_units = 0;
        run_steps(&alone, 0, 0);
        c->to.step = c->first;
    }
}

void OP(backward_steps)(backward_call *c)
{
    begin_chunk(c);
    c->from = (chunk_place){c->end, 0};
    if (!c->by_units) fa_parallel_for(c->threads, c->threads, run_share, c);
    for (; c->by_units && c->from.step > c->first; c->from = c->to) {
        c->barrier = (fa_team_barrier){.patience = fa_patience(c->step_work / c->threads)};
        fa_team_run(c->threads, run_thread, c);
    }
}
