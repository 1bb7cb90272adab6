/* What becomes of the products of probabilities and values. */
#ifndef FA_ATTENTION_VALUES_H
#define FA_ATTENTION_VALUES_H

#include "attention_tile.h"

/* -0 becomes +0. A sum that underflows to -0 would stay so, or not, by how many masked keys follow. */
FA_INLINE vreal unsigned_zero(vreal x) { return v_add(x, v_zero()); }

/* What O is divided by; a row that attended to nothing has the sum 0, and O = 0. With FA_PAIRS O is multiplied instead, by the rounded
   inverse: the result is rounded to bfloat16, and a division takes as long as 16 products. */
FA_INLINE vreal divisor_of(real sum)
{
    const vreal divisor = v_set1(sum == 0 ? 1 : sum);
    return FA_PAIRS ? v_div(v_set1(1), divisor) : divisor;
}
FA_INLINE vreal divided(vreal x, vreal divisor)
{
    return FA_PAIRS ? v_mul(unsigned_zero(x), divisor) : v_div(unsigned_zero(x), divisor);
}

/* The same from row r and column d on. */
FA_INLINE value_rows values_from(const value_rows *x, fa_index r, fa_index d)
{
    value_rows y = *x;
    const fa_index at = r * x->lddst + d;
    y.dst = x->sum ? (void *)((stored *)x->dst + at) : (void *)((real *)x->dst + at);
    y.o = x->o ? x->o + r * x->ldo + d : NULL;
    y.alpha = x->alpha + r;
    y.sum = x->sum ? x->sum + r : NULL;
    return y;
}

/* What becomes of the products of a tile, of which so many columns are there. */
FA_INLINE void store_values(value_rows to, tile_acc acc, const int mr, const int nv, fa_index columns)
{
    real *dst = to.dst;
    stored *out = to.dst;
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        if (to.o) {
            const vreal factor = v_broadcast(to.alpha + r);
            FA_UNROLL
            for (int v = 0; v < nv; v++) acc[r][v] = v_fma(v_load(to.o + r * to.ldo + v * VL), factor, acc[r][v]);
        }
        if (to.sum) {
            const vreal divisor = divisor_of(to.sum[r]);
            FA_UNROLL
            for (int v = 0; v < nv; v++) acc[r][v] = divided(acc[r][v], divisor);
        }
        FA_UNROLL
        for (int v = 0; v < nv; v++) {
            if (!to.sum)
                v_store(dst + r * to.lddst + v * VL, acc[r][v]);
            else if (columns - v * VL >= VL)
                v_store_stored(out + r * to.lddst + v * VL, acc[r][v]);
            else
                v_store_stored_n(out + r * to.lddst + v * VL, acc[r][v], columns - v * VL);
        }
    }
}

#endif
