/* Gradients of what was added to the scores before the softmax, from dS (attention_backward.c), which is the gradient of the scores
   after softcap, slopes and mask: rows of ATTENTION_STRIDE, 0 where a row does not attend.

     dmask  = dS                            summed over the axes along which the mask was broadcast
     dslope = - sum of |distance| dS        of the diagonal, as in attention_alibi
     dsink  = - sum over rows of p delta    p: the part of the softmax that the sink takes, e^sink / Z; its value is 0 */
#include "attention.h"
#include "../common.h"

#include <math.h>

/* dst[r, j] += ds, with sums over rows or keys in the place of dst[j], dst[r], dst[0]. */
void KERNEL(attention_mask_gradients)(real *dst, fa_index ld, const score_block *b, int over_rows, int over_keys)
{
    const real *ds = b->s;
    const fa_index rows = b->rows, keys = b->keys, *begin = b->begin, *end = b->end;
    if (over_rows && !over_keys) {
        for (fa_index j = 0; j < keys; j += VL) {
            vreal total = v_zero();
            for (fa_index r = 0; r < rows; r++) total = v_add(total, v_load(ds + r * ATTENTION_STRIDE + j));
            v_store_n(dst + j, v_add(v_load_n(dst + j, keys - j), total), keys - j);
        }
        return;
    }
    vreal all = v_zero();
    for (fa_index r = 0; r < rows; r++, ds += ATTENTION_STRIDE) {
        const fa_index first = begin[r] / VL * VL;
        real *to = dst + r * ld;
        vreal total = v_zero();
        for (fa_index j = first; j < end[r]; j += VL) {
            if (over_keys)
                total = v_add(total, v_load(ds + j));
            else
                v_store_n(to + j, v_add(v_load_n(to + j, end[r] - j), v_load(ds + j)), end[r] - j);
        }
        if (over_rows)
            all = v_add(all, total);
        else if (over_keys)
            *to += v_reduce_add(total);
    }
    if (over_rows) *dst += v_reduce_add(all);
}

/* *total -= the sum of |distance + j - r| ds; `distance` is that of key 0 from the diagonal of row 0. Row after row, as the dS of a row
   nearly cancel. */
void KERNEL(attention_alibi_gradients)(real *total, const score_block *b, fa_index distance)
{
    const real *ds = b->s;
    const fa_index rows = b->rows, *begin = b->begin, *end = b->end;
    const vreal step = v_set1(VL);
    real lane[VL];
    for (int i = 0; i < VL; i++) lane[i] = (real)i;
    double all = 0;
    for (fa_index r = 0; r < rows; r++, ds += ATTENTION_STRIDE) {
        const fa_index first = begin[r] / VL * VL;
        vreal d = v_add(v_load(lane), v_set1((real)(distance + first - r))), row = v_zero();
        for (fa_index j = first; j < end[r]; j += VL, d = v_add(d, step)) row = v_fma(v_abs(d), v_load(ds + j), row);
        all += (double)v_reduce_add(row);
    }
    *total -= (real)all;
}

/* *total -= the sum of p delta over the rows that attend to something: R and sum are those of the forward, and p = 2^(sink log2(e) - R)
   / sum. A sum in double, which is cheap here. */
void KERNEL(attention_sink_gradients)(real *total, real sink, const real *delta, const real *shift, const real *sum,
                                      const unsigned char *attends, fa_index rows)
{
    double all = 0;
    if (sink == -REAL_INFINITY) return;
    for (fa_index r = 0; r < rows; r++) {
        if (!attends[r]) continue;
        const double R = (double)shift[r];
        /* sink - R ln 2: the product with the upper bits of ln 2 is exact for all R that leave a p. A negative sum has
           R in natural units (attention_natural_finish). */
        const double natural = (double)sink - R,
                     in_log2 = fma(-R, 0x1.abc9e3b39803fp-56, fma(-R, 0x1.62e42fefa39efp-1, (double)sink));
        const double p = exp(sum[r] < 0 ? natural : in_log2) / fabs((double)sum[r]);
        all += p == 0 ? 0 : p * (double)delta[r];
    }
    *total -= (real)all;
}
