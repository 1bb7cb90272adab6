/* What the files of attention backward share. */
#ifndef FA_ATTENTION_BACKWARD_KERNELS_H
#define FA_ATTENTION_BACKWARD_KERNELS_H

#include "attention_tile.h"

/* dst += scale acc, or with `scaled` 0 dst += acc, never -0: a sum that underflows to -0 would stay so, or not, by how many masked
   pairs follow. Sums without a product do not underflow. */
FA_INLINE vreal sum_of_gradients(vreal sum, vreal x, const int scaled, vreal scale)
{
    return scaled ? v_add(v_fma(x, scale, sum), v_zero()) : v_add(sum, x);
}

FA_INLINE void add_gradients(real *dst, fa_index ld, tile_acc acc, const int mr, const int nv, fa_index columns, const int scaled,
                             vreal scale)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) {
            const fa_index count = columns - v * VL;
            real *to = dst + r * ld + v * VL;
            if (v + 1 < nv || count >= VL)
                v_store(to, sum_of_gradients(v_load(to), acc[r][v], scaled, scale));
            else
                v_store_n(to, sum_of_gradients(v_load_n(to, count), acc[r][v], scaled, scale), count);
        }
    }
}

/* The rows that attend to one of the keys [first, first + keys), widened to whole steps. */
FA_INLINE key_range tile_rows(const score_block *b, fa_index first, fa_index keys)
{
    const fa_index *begin = b->begin, *end = b->end;
    fa_index from = 0, to = b->rows;
    while (from < to && (end[from] <= first || begin[from] >= first + keys)) from++;
    while (from < to && (end[to - 1] <= first || begin[to - 1] >= first + keys)) to--;
    return (key_range){from / TILE_STEP * TILE_STEP, from < to ? fa_round_up(to, TILE_STEP) : from / TILE_STEP * TILE_STEP};
}

/* dst = scale src, D columns of each row. */
FA_INLINE void scale_gradients(stored *dst, fa_index lddst, const real *src, fa_index ldsrc, fa_index rows, fa_index D,
                               real scale)
{
    const vreal factor = v_set1(scale);
    for (fa_index r = 0; r < rows; r++)
        for (fa_index d = 0; d < D; d += VL) {
            const vreal y = v_mul(v_load_n(src + r * ldsrc + d, D - d), factor);
            store_stored_some(dst + r * lddst + d, y, D - d);
        }
}

#endif
