/* Backward through time of one layer and direction: the steps of a chunk of time (recurrent_backward.c), and what recurrent_gradients.c
   does before, between and behind them. */
#ifndef FA_OPS_RECURRENT_BACKWARD_H
#define FA_OPS_RECURRENT_BACKWARD_H

#include "../linear/product.h"
#include "pseudo_layer.h"

#define BACKWARD_ROWS 1024 /* of x in a chunk */
#define BACKWARD_NV 2      /* vectors in a panel of w_hh: tiles as high as a step of few sequences allows */

/* The steps [first, step) of the chunk are left, whose rows begin there. */
typedef struct {
    fa_index step, row;
} chunk_place;

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
    chunk_place from, to; /* of a team that splits the units: where it begins; where the next one does */
    double step_work;     /* multiply-adds of a step */
    int threads, by_units, product_threads;
    real *tiles; /* [threads][most_tiles] */
    const real **tile_rows;
    fa_team_barrier barrier;
} backward_call;

FA_INLINE int is_gru(const backward_call *c) { return c->cell == FA_GRU || c->cell == FA_GRU_RESET_BEFORE; }

/* w_ih, w_hh and w_hr as the products of the steps and of dx take them. */
void OP(backward_pack)(backward_call *c);
/* The next chunk: rows and steps [first, end) before the step `end`; gradients of their gates, and of the states before them. */
void OP(backward_steps)(backward_call *c);

#endif
