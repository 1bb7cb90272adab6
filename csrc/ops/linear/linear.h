/* What the files of linear share. */
#ifndef FA_OPS_LINEAR_H
#define FA_OPS_LINEAR_H

#include "../ops.h"

typedef struct {
    const fa_kernels *kernels;
    stored *y, *z; /* z: as y, or NULL */
    real *panels, *tiles;
    const stored *x, *w, *bias;
    const real *packed;
    fa_index ldy, ldx, ldw, M, N, K, Kp;                                             /* Kp: K in packed elements */
    fa_index first_panel, n_panels, panels_per_task, n_tasks, tile_size, panel_size; /* the last two: of each worker */
    fa_activation activation;
    int w_transposed; /* w is [K, N] */
} linear_call;

/* What follows the products of `rows` rows and `columns` columns, in rows of ld: bias and activation, where they are or, of 16-bit
   arrays, before it is rounded to y; those have room for a bias of reals. */
void OP(linear_finish)(const linear_call *c, real *product, fa_index ld, real *bias, fa_index m0, fa_index rows, fa_index column,
                       fa_index columns);

/* The call with weights that are not packed, nor will be, and the most rows that it repays. */
fa_index OP(linear_few_rows)(const linear_call *c);
fa_status OP(linear_few)(linear_call *c);

#endif
