/* One layer and direction of a recurrent network: its geometry, and its packed weights.

   A panel holds all gates of VL units (two vectors of units for the plain cell) side by side, so that what comes out of the
   products is all that the cell needs for those units. */
#ifndef FA_OPS_RECURRENT_H
#define FA_OPS_RECURRENT_H

#include "../ops.h"

typedef struct {
    int gates;            /* rows of w per unit */
    int unit_vectors;     /* vectors of units in a panel */
    int width_x, width_h; /* vectors in a panel of w_ih and w_hh */
    int nv_x, nv_h;       /* the same in one product: a panel is one or two of them side by side */
    int bias_vectors;     /* vectors of bias for a panel */
    int state_cell;       /* has c */
} cell_shape;

typedef struct {
    const fa_kernels *kernels;
    const cell_shape *shape;
    fa_cell cell;
    fa_index I, H, P, lanes, panels, panel_units;
    fa_index ld, ld_h;   /* row strides of c and h: H and P padded to whole panels */
    fa_index Ip, Hp, Pp; /* I, H, P in packed elements */
    int projected;
    fa_index output_panels;                  /* of w_hr, each two vectors */
    fa_index size_x, size_h, size_n, size_r; /* of a packed panel */
} recurrent_layer;

/* Numbers of `type`. int8 has a scale for each column of a panel: [panels][width lanes], of w_hn [panels / 2][2 lanes], of w_hr
   [output panels][2 lanes]. */
typedef struct {
    fa_weight_type type;
    int plain; /* the matrices are those of the caller, not packed: of a step with few rows */
    void *w_ih, *w_hh, *w_hn, *w_hr;
    real *scale_x, *scale_h, *scale_n, *scale_r;
    real *bias, *peephole;
} packed_weights;

/* Packed elements for n elements, padded to tile_k. */
fa_index OP(recurrent_places)(const fa_kernels *k, fa_index n);
recurrent_layer OP(recurrent_layer)(const fa_kernels *k, const fa_recurrent_weights *w);
/* Gives out the packed weights from `plan`; see arena. */
packed_weights OP(recurrent_plan)(const recurrent_layer *g, arena *plan, const fa_recurrent_weights *w, fa_weight_type type,
                                  int plain);
fa_status OP(recurrent_fill)(const recurrent_layer *g, const packed_weights *packed, const fa_recurrent_weights *w);

FA_INLINE int is_lstm(fa_cell cell) { return cell == FA_LSTM || cell == FA_LSTM_COUPLED; }

/* The gates i, f, o have peepholes; coupled, i and o. */
FA_INLINE fa_index peepholes_of(fa_cell cell) { return cell == FA_LSTM_COUPLED ? 2 : 3; }

FA_INLINE fa_index units_of_panel(const recurrent_layer *g, fa_index panel)
{
    return fa_min(g->panel_units, g->H - panel * g->panel_units);
}

#endif
