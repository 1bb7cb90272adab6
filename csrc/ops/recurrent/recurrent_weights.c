/* Packing the weights of a recurrent layer: once per call, or once for many calls into a buffer that the user owns.
   recurrent.h has the layout.
   16-bit arrays are converted in packing (pairs for sets that multiply those, see kernels/gemm/gemm.c). */
#include "recurrent.h"

#include <string.h>

#define MOST_LANES 16 /* of any vector */

/* Panels of lstm are two products of two vectors: tiles of 6 x 2 run 3 to 10 % faster than those of 3 x 4, most with few rows. */
static const cell_shape shapes[] = {
    [FA_RNN] = {.gates = 1, .unit_vectors = 2, .width_x = 2, .width_h = 2, .nv_x = 2, .nv_h = 2, .bias_vectors = 2},
    [FA_LSTM] =
        {.gates = 4, .unit_vectors = 1, .width_x = 4, .width_h = 4, .nv_x = 2, .nv_h = 2, .bias_vectors = 4, .state_cell = 1},
    [FA_LSTM_COUPLED] =
        {.gates = 3, .unit_vectors = 1, .width_x = 3, .width_h = 3, .nv_x = 3, .nv_h = 3, .bias_vectors = 3, .state_cell = 1},
    [FA_GRU] = {.gates = 3, .unit_vectors = 1, .width_x = 3, .width_h = 3, .nv_x = 3, .nv_h = 3, .bias_vectors = 4},
    /* w_hh of r and z in panels like w_ih, that of n in panels of two vectors of units */
    [FA_GRU_RESET_BEFORE] = {.gates = 3, .unit_vectors = 1, .width_x = 3, .width_h = 2, .nv_x = 3, .nv_h = 2, .bias_vectors = 4},
};

fa_index OP(recurrent_places)(const fa_kernels *k, fa_index n)
{
    return fa_round_up(fa_ceil_div(n, k->sizes.packed), k->sizes.tile_k);
}

recurrent_layer OP(recurrent_layer)(const fa_kernels *k, const fa_recurrent_weights *w)
{
    const cell_shape *s = &shapes[w->cell];
    recurrent_layer g = {.kernels = k, .shape = s, .cell = w->cell, .I = w->I, .H = w->H, .P = w->P, .lanes = k->sizes.lanes};
    g.panel_units = s->unit_vectors * g.lanes;
    g.panels = fa_ceil_div(w->H, g.panel_units);
    if (w->cell == FA_GRU_RESET_BEFORE) g.panels = fa_round_up(g.panels, 2);
    g.ld = g.panels * g.panel_units;
    g.projected = w->w_hr != NULL;
    g.output_panels = w->w_hr ? fa_ceil_div(w->P, 2 * g.lanes) : 0;
    g.ld_h = w->w_hr ? g.output_panels * 2 * g.lanes : g.ld;
    g.Ip = OP(recurrent_places)(k, w->I);
    g.Hp = OP(recurrent_places)(k, w->H);
    g.Pp = OP(recurrent_places)(k, w->P);
    g.size_x = g.Ip * s->width_x * g.lanes;
    g.size_h = g.Pp * s->width_h * g.lanes;
    g.size_n = g.size_r = g.Hp * 2 * g.lanes;
    return g;
}

static size_t bytes_of(fa_weight_type type)
{
    return type == FA_WEIGHT_BF16 ? sizeof(uint16_t) : type == FA_WEIGHT_INT8 ? sizeof(int8_t) : sizeof(real);
}

packed_weights OP(recurrent_plan)(const recurrent_layer *g, arena *plan, const fa_recurrent_weights *weights, fa_weight_type type,
                                  int plain)
{
    const cell_shape *s = g->shape;
    const int before = g->cell == FA_GRU_RESET_BEFORE;
    const size_t item = bytes_of(type);
    packed_weights w = {.type = type, .plain = plain};
    if (plain) { /* read only */
        w.w_ih = (void *)(uintptr_t)weights->w_ih;
        w.w_hh = (void *)(uintptr_t)weights->w_hh;
        if (before) w.w_hn = (stored *)w.w_hh + 2 * g->H * g->P;
        w.w_hr = (void *)(uintptr_t)weights->w_hr;
    } else {
        w.w_ih = arena_take(plan, g->panels * g->size_x, item);
        w.w_hh = arena_take(plan, g->panels * g->size_h, item);
        if (before) w.w_hn = arena_take(plan, g->panels / 2 * g->size_n, item);
        if (weights->w_hr) w.w_hr = arena_take(plan, g->output_panels * g->size_r, item);
    }
    if (type == FA_WEIGHT_INT8) {
        w.scale_x = arena_take(plan, g->panels * s->width_x * g->lanes, sizeof(real));
        w.scale_h = arena_take(plan, g->panels * s->width_h * g->lanes, sizeof(real));
        if (before) w.scale_n = arena_take(plan, g->panels * g->lanes, sizeof(real));
        if (weights->w_hr) w.scale_r = arena_take(plan, g->ld_h, sizeof(real));
    }
    w.bias = arena_take(plan, g->panels * s->bias_vectors * g->lanes, sizeof(real));
    if (weights->peephole) w.peephole = arena_take(plan, g->panels * peepholes_of(g->cell) * g->lanes, sizeof(real));
    return w;
}

typedef struct {
    const recurrent_layer *g;
    const packed_weights *packed;
    const fa_recurrent_weights *w;
    real *wide; /* for numbers of fewer bits: a pair of panels of each worker, as reals */
    fa_index wide_size;
} packing;

/* The rows [first, first + VL) of a matrix of `rows`, as one vector of a panel. */
static void pack_rows_of(const recurrent_layer *g, real *dst, fa_index step, const stored *w, fa_index first, fa_index rows,
                         fa_index k_size, fa_index k_padded)
{
    const fa_index columns = fa_max(0, fa_min(g->lanes, rows - first));
    g->kernels->pack_columns(dst, step, w + (columns ? first * k_size : 0), k_size, columns, k_size, k_padded);
}

static void pack_vector(const recurrent_layer *g, real *dst, fa_index step, const stored *w, fa_index gate, fa_index unit,
                        fa_index k_size, fa_index k_padded)
{
    pack_rows_of(g, dst, step, w + gate * g->H * k_size, unit, g->H, k_size, k_padded);
}

/* Where vector v of a panel begins: in product v / nv of the panel, side by side with the others of that. */
static fa_index at_vector(const recurrent_layer *g, fa_index v, fa_index nv, fa_index k_padded)
{
    return (v / nv * nv * k_padded + v % nv) * g->lanes;
}

static void add_units(const recurrent_layer *g, real *dst, const stored *src, fa_index gate, fa_index unit)
{
    const fa_index n = fa_min(g->lanes, g->H - unit);
    real wide[MOST_LANES];
    if (!src || n <= 0) return;
    g->kernels->widen(wide, src + gate * g->H + unit, n);
    for (fa_index i = 0; i < n; i++) dst[i] += wide[i];
}

/* `count` panels of nv vectors and k rows, from reals to where they belong, panel `at` of dst. */
static void narrow_panels(const packing *c, void *dst, real *scale, fa_index at, const real *wide, fa_index count, fa_index nv,
                          fa_index k)
{
#if FA_FLOAT_ARRAYS
    const fa_index width = nv * c->g->lanes, size = k * width;
    for (fa_index i = 0; i < count; i++)
        if (c->packed->type == FA_WEIGHT_BF16)
            c->g->kernels->pair_panel((uint16_t *)dst + (at + i) * size, wide + i * size, width, k);
        else
            c->g->kernels->quantize_panel((int8_t *)dst + (at + i) * size, scale + (at + i) * width, wide + i * size, width, k);
#else
    (void)c, (void)dst, (void)scale, (void)at, (void)wide, (void)count, (void)nv, (void)k;
#endif
}

/* The matrices of panel p, as reals at `wide` first where they become numbers of fewer bits. */
static void pack_matrices(const packing *c, fa_index p, real *wide)
{
    const recurrent_layer *g = c->g;
    const cell_shape *s = g->shape;
    const fa_index VL = g->lanes, unit = p * g->panel_units;
    real *x = wide ? wide : (real *)c->packed->w_ih + p * g->size_x;
    real *h = wide ? wide + g->size_x : (real *)c->packed->w_hh + p * g->size_h;
    for (fa_index v = 0; v < s->width_x; v++) {
        const fa_index gate = s->unit_vectors == 1 ? v : 0, u = unit + (s->unit_vectors == 1 ? 0 : v * VL);
        pack_vector(g, x + at_vector(g, v, s->nv_x, g->Ip), s->nv_x * VL, c->w->w_ih, gate, u, g->I, g->Ip);
        if (v < s->width_h) pack_vector(g, h + at_vector(g, v, s->nv_h, g->Pp), s->nv_h * VL, c->w->w_hh, gate, u, g->P, g->Pp);
    }
    if (wide) {
        const fa_index x_panels = s->width_x / s->nv_x, h_panels = s->width_h / s->nv_h;
        narrow_panels(c, c->packed->w_ih, c->packed->scale_x, p * x_panels, x, x_panels, s->nv_x, g->Ip);
        narrow_panels(c, c->packed->w_hh, c->packed->scale_h, p * h_panels, h, h_panels, s->nv_h, g->Pp);
    }
}

/* The biases and peepholes of panel p. */
static void pack_biases(const packing *c, fa_index p)
{
    const recurrent_layer *g = c->g;
    const fa_recurrent_weights *w = c->w;
    const cell_shape *s = g->shape;
    const fa_index VL = g->lanes, unit = p * g->panel_units;
    real *bias = c->packed->bias + p * s->bias_vectors * VL;
    memset(bias, 0, (size_t)(s->bias_vectors * VL) * sizeof(real));
    for (fa_index v = 0; v < s->width_x; v++) {
        const fa_index gate = s->unit_vectors == 1 ? v : 0, u = unit + (s->unit_vectors == 1 ? 0 : v * VL);
        add_units(g, bias + v * VL, w->b_ih, gate, u);
        /* The last gate of gru keeps its hidden bias apart: it is inside the product with r, or beside it. */
        add_units(g, bias + (v == 2 && s->bias_vectors > s->width_x ? 3 : v) * VL, w->b_hh, gate, u);
    }
    if (w->peephole) {
        const fa_index peepholes = peepholes_of(g->cell);
        real *to = c->packed->peephole + p * peepholes * VL;
        memset(to, 0, (size_t)(peepholes * VL) * sizeof(real));
        for (fa_index n = 0; n < peepholes; n++) add_units(g, to + n * VL, w->peephole, n, unit);
    }
}

/* Task i is the panels 2 i and 2 i + 1, which share a panel of w_hn. */
static void pack_panels(void *context, fa_index i, int worker)
{
    const packing *c = context;
    const recurrent_layer *g = c->g;
    const packed_weights *packed = c->packed;
    const int narrow = packed->type != FA_WEIGHT_REAL;
    real *wide = narrow ? c->wide + worker * c->wide_size : NULL;
    for (fa_index p = 2 * i; p < fa_min(2 * i + 2, g->panels); p++) {
        pack_biases(c, p);
        if (!packed->plain) pack_matrices(c, p, wide);
    }
    if (!packed->w_hn || packed->plain) return;
    real *wide_n = narrow ? wide : (real *)packed->w_hn + i * g->size_n;
    for (fa_index p = 2 * i; p < 2 * i + 2; p++)
        pack_vector(g, wide_n + p % 2 * g->lanes, 2 * g->lanes, c->w->w_hh, 2, p * g->panel_units, g->H, g->Hp);
    if (narrow) narrow_panels(c, packed->w_hn, packed->scale_n, i, wide_n, 1, 2, g->Hp);
}

static void pack_output_panel(void *context, fa_index i, int worker)
{
    const packing *c = context;
    const recurrent_layer *g = c->g;
    const int narrow = c->packed->type != FA_WEIGHT_REAL;
    real *panel = narrow ? c->wide + worker * c->wide_size : (real *)c->packed->w_hr + i * g->size_r;
    for (fa_index v = 0; v < 2; v++)
        pack_rows_of(g, panel + v * g->lanes, 2 * g->lanes, c->w->w_hr, (2 * i + v) * g->lanes, g->P, g->H, g->Hp);
    if (narrow) narrow_panels(c, c->packed->w_hr, c->packed->scale_r, i, panel, 1, 2, g->Hp);
}

fa_status OP(recurrent_fill)(const recurrent_layer *g, const packed_weights *packed, const fa_recurrent_weights *w)
{
    const int threads = packed->plain ? 1 : fa_threads_for((double)g->panels * (double)(g->size_x + g->size_h));
    packing c = {.g = g, .packed = packed, .w = w, .wide_size = fa_max(g->size_x + g->size_h, g->size_n)};
    fa_scratch scratch = {0};
    if (packed->type != FA_WEIGHT_REAL) {
        if (!fa_scratch_take(&scratch, fa_scratch_bytes(c.wide_size * threads, sizeof(real)))) return FA_NOMEM;
        c.wide = (real *)(void *)scratch.base;
    }
    fa_parallel_for(fa_ceil_div(g->panels, 2), threads, pack_panels, &c);
    if (!packed->plain) fa_parallel_for(g->output_panels, threads, pack_output_panel, &c);
    if (scratch.base) fa_scratch_give(&scratch);
    return FA_OK;
}

size_t OP(recurrent_packed_bytes)(fa_isa isa, fa_weight_type type, const fa_recurrent_weights *w)
{
    const recurrent_layer g = OP(recurrent_layer)(kernels_for(isa), w);
    arena plan = {0};
    OP(recurrent_plan)(&g, &plan, w, type, 0);
    return plan.used;
}

fa_status OP(recurrent_pack)(fa_isa isa, fa_weight_type type, void *packed, const fa_recurrent_weights *w)
{
    const recurrent_layer g = OP(recurrent_layer)(kernels_for(isa), w);
    arena plan = {.base = packed};
    const packed_weights p = OP(recurrent_plan)(&g, &plan, w, type, 0);
    return OP(recurrent_fill)(&g, &p, w);
}
