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

/* What becomes of the products of a tile: acc, plus alpha o unless o is NULL, goes to dst, or divided by sum, if that is given, to
   out. */
FA_INLINE void store_values(real *dst, stored *out, fa_index ld, const real *o, fa_index ldo, tile_acc acc, const int mr,
                            const int nv, fa_index columns, const real *alpha, const real *sum)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        if (o) {
            const vreal factor = v_broadcast(alpha + r);
            FA_UNROLL
            for (int v = 0; v < nv; v++) acc[r][v] = v_fma(v_load(o + r * ldo + v * VL), factor, acc[r][v]);
        }
        if (sum) {
            const vreal divisor = divisor_of(sum[r]);
            FA_UNROLL
            for (int v = 0; v < nv; v++) acc[r][v] = divided(acc[r][v], divisor);
        }
        FA_UNROLL
        for (int v = 0; v < nv; v++) {
            if (!sum)
                v_store(dst + r * ld + v * VL, acc[r][v]);
            else if (columns - v * VL >= VL)
                v_store_stored(out + r * ld + v * VL, acc[r][v]);
            else
                v_store_stored_n(out + r * ld + v * VL, acc[r][v], columns - v * VL);
        }
    }
}

#endif
