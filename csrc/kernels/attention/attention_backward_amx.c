/* The last three products of attention backward by matrix tiles (FA_AMX): attention_backward.c has the equations. */
#include "attention_backward.h"
#include "../common.h"

/* Rows of products, nv vectors each, times the scale, added to dst. */
FA_INLINE void add_products(real *dst, fa_index ld, const real *part, fa_index rows, fa_index nv, fa_index columns, vreal scale)
{
    for (fa_index r = 0; r < rows; r++)
        for (fa_index v = 0; v < nv; v++) {
            tile_acc acc = {{v_load(part + r * PANEL + v * VL)}};
            add_gradients(dst + r * ld + v * VL, ld, acc, 1, 1, columns - v * VL, 1, scale);
        }
}

void KERNEL(attention_product_nn)(real *dq, fa_index lddq, const score_block *b, const real *k, fa_index D, real scale,
                                  const prefetch_rows *next)
{
    const fa_index padded = packed_size(b->keys);
    const row_split split = split_rows(b->rows, TILE);
    const fa_index ahead = rows_per_tile(next, split.tiles);
    const vreal factor = v_set1(scale);
    for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
        mr = tile_height(split, t);
        const key_range range = tile_keys(b->begin + r, b->end + r, mr);
        const fa_index from = range.begin / FA_PACKED, k_size = (range.end - range.begin) / FA_PACKED;
        prefetch_part(next, t, ahead);
        if (k_size == 0) continue;
        t_configure(mr);
        for (fa_index first = 0; first < D; first += PANEL) {
            const fa_index nv = panel_vectors(D, first);
            real part[TILE * PANEL] FA_ALIGN(64);
            matrix_product(part, PANEL, mr, nv, b->s + r * ATTENTION_STRIDE + from, ATTENTION_STRIDE, 0, k_size,
                           k + first * padded + from * nv * VL, nv, k_size);
            add_products(dq + r * lddq + first, lddq, part, mr, nv, D - first, factor);
        }
    }
}

#define GRADIENT_PLACES \
    ((fa_index)48) /* pairs of rows in a call, at most: half of GRADIENT_TILE in ops/attention/attention_backward.h */

/* A panel of nv vectors of columns, of packed pairs each, to rows of columns: matrix tiles take the one operand by rows. */
FA_INLINE void transpose_columns(real *dst, const real *x, fa_index nv, fa_index places)
{
    for (fa_index v = 0; v < nv; v++)
        for (fa_index i = 0; i < places; i += VL) {
            vreal t[VL];
            FA_UNROLL
            for (int u = 0; u < VL; u++) t[u] = v_load(x + ((i + u) * nv + v) * VL);
            v_transpose(t);
            FA_UNROLL
            for (int u = 0; u < VL; u++) v_store(dst + (v * VL + u) * GRADIENT_PLACES + i, t[u]);
        }
}

/* dst += x' p, the transposed result: a row for each column of x, which has as many keys as p. P and dS are then right operands as they
   are, and it is the far smaller x that is transposed. Without `more` dst = x' p. */
void KERNEL(attention_product_tn)(real *dst, fa_index ld, const score_block *b, const real *x, fa_index D, int more,
                                  const prefetch_rows *next)
{
    const fa_index padded = packed_size(b->rows), keys = b->keys;
    const fa_index ahead = rows_per_tile(next, fa_ceil_div(keys, 2 * VL));
    for (fa_index first = 0; first < D; first += PANEL) {
        const fa_index nv = panel_vectors(D, first);
        real columns[PANEL * GRADIENT_PLACES] FA_ALIGN(64);
        transpose_columns(columns, x + first * padded, nv, padded);
        for (fa_index j = 0; j < keys; j += 2 * VL) {
            const key_range range = tile_rows(b, j, 2 * VL);
            const fa_index from = range.begin / FA_PACKED, k_size = (range.end - range.begin) / FA_PACKED;
            if (first == 0) prefetch_part(next, j / (2 * VL), ahead);
            for (fa_index d = 0, mr; (k_size > 0 || !more) && d < nv * VL; d += mr) {
                mr = fa_min(2 * T_ROWS, nv * VL - d);
                t_configure(mr);
                t_product_onto(dst + (first + d) * ld + j, ld, more, mr, columns + d * GRADIENT_PLACES + from, GRADIENT_PLACES,
                               b->s + j + from * ATTENTION_STRIDE, ATTENTION_STRIDE, k_size);
            }
        }
    }
}

/* With `transposed`, what attention_product_tn made: a row of src for each column. */
void KERNEL(attention_scale_gradients)(stored *dst, fa_index lddst, const real *src, fa_index ldsrc, fa_index rows, fa_index D,
                                       real scale, int transposed)
{
    const vreal factor = v_set1(scale);
    if (!transposed) {
        scale_gradients(dst, lddst, src, ldsrc, rows, D, scale);
        return;
    }
    for (fa_index r = 0; r < rows; r += VL)
        for (fa_index d = 0; d < D; d += VL) {
            vreal t[VL];
            FA_UNROLL
            for (int u = 0; u < VL; u++) t[u] = v_load(src + (d + u) * ldsrc + r);
            v_transpose(t);
            /* Tiles make 0 of sums that underflow, with a sign that would depend on how many masked pairs follow. */
            FA_UNROLL
            for (int u = 0; u < VL; u++)
                if (r + u < rows) store_stored_some(dst + (r + u) * lddst + d, v_add(v_mul(t[u], factor), v_zero()), D - d);
        }
}
