/* What happens to the scores of a block between the product and the softmax, in this order:

     s = log2(e) c tanh(s)                       softcap; s came as scale q k / c
     s = s - log2(e) slope |i + offset - j|      ALiBi
     s = s + log2(e) mask, or s = -inf           the user's mask

   each from its description, in place, for the keys [begin[r], end[r]) of row r and whole vectors around them: other scores
   may hold anything. And what a sink adds to the softmax, and what becomes of two softmaxes over different keys. */
#include "../common.h"
#include "attention.h"

#include <math.h>
#include <string.h>

#if defined(FA_REAL_F32)
#define MASK_LIMIT 0x1.62e42ep+127f
#else
#define MASK_LIMIT 0x1.62e42fefa39edp+1023
#endif

/* s + correction s for products that BLAS computed: its factor was rounded. NaNs become the default NaN; packing has done so for
   attention_product_nt. What is infinite stays so. */
void KERNEL(attention_plain_scores)(const score_block *b, real correction)
{
    const fa_index *begin = b->begin, *end = b->end;
    real *s = b->s;
    const vreal nan = v_set1((real)__builtin_nanf("")), rest = v_set1(correction);
    for (fa_index r = 0; r < b->rows; r++, s += ATTENTION_STRIDE)
        for (fa_index j = begin[r] / VL * VL; j < end[r]; j += VL) {
            const vreal x = v_load(s + j), y = v_fma(x, rest, x);
            v_store(s + j, v_select(v_is_nan(y), v_select(v_is_nan(x), nan, x), y));
        }
}

/* s = s - shift; a row without one has no keys. */
void KERNEL(attention_lower_scores)(const score_block *b, const real *shift)
{
    const fa_index *begin = b->begin, *end = b->end;
    real *s = b->s;
    for (fa_index r = 0; r < b->rows; r++, s += ATTENTION_STRIDE) {
        const vreal top = v_set1(shift[r] == -REAL_INFINITY ? 0 : shift[r]);
        for (fa_index j = begin[r] / VL * VL; j < end[r]; j += VL) v_store(s + j, v_sub(v_load(s + j), top));
    }
}

#define MASKED_VECTORS 4 /* at a time */

FA_INLINE void mask_scores(real *s, const uint8_t *mask)
{
    v_store(s, v_select(v_mask_bytes(mask), v_load(s), v_set1(-REAL_INFINITY)));
}

/* s = -inf where the mask is 0. The mask of the block after is prefetched: rows are too short for the hardware to look that far. */
void KERNEL(attention_mask_bool)(const score_block *b, const uint8_t *mask, fa_index ldmask)
{
    const fa_index *begin = b->begin, *end = b->end;
    real *s = b->s;
    for (fa_index r = 0; r < b->rows; r++, s += ATTENTION_STRIDE, mask += ldmask) {
        fa_index j = begin[r] / VL * VL;
        for (; j + MASKED_VECTORS * VL <= end[r]; j += MASKED_VECTORS * VL) {
            FA_PREFETCH_FAR(mask + j + ATTENTION_KEYS);
            FA_UNROLL
            for (int u = 0; u < MASKED_VECTORS; u++) mask_scores(s + j + u * VL, mask + j + u * VL);
        }
        for (; j + VL <= end[r]; j += VL) mask_scores(s + j, mask + j);
        if (j < end[r]) {
            uint8_t last[VL] = {0};
            memcpy(last, mask + j, (size_t)(end[r] - j));
            mask_scores(s + j, last);
        }
    }
}

/* s = s + mask log2(e), and the mask where that is infinite, whatever s was. A finite mask excludes nothing: its largest numbers are
   taken as MASK_LIMIT, the largest that can be written in units of log2(e). */
void KERNEL(attention_mask_add)(const score_block *b, const stored *mask, fa_index ldmask)
{
    const fa_index *begin = b->begin, *end = b->end;
    real *s = b->s;
    const vreal infinity = v_set1(REAL_INFINITY), nan = v_set1((real)__builtin_nanf("")), log2_e = v_set1(LOG2_E);
    const vreal highest = v_set1(MASK_LIMIT), lowest = v_set1(-MASK_LIMIT);
    for (fa_index r = 0; r < b->rows; r++, s += ATTENTION_STRIDE, mask += ldmask) {
        for (fa_index j = begin[r] / VL * VL; j < end[r]; j += VL) {
            const vreal m = v_load_stored_n(mask + j, fa_min(VL, end[r] - j));
            const vreal sum = v_fma(v_min(highest, v_max(lowest, m)), log2_e, v_load(s + j));
            v_store(s + j, v_select(v_eq(v_abs(m), infinity), m, v_select(v_is_nan(sum), nan, sum)));
        }
    }
}

/* s = log2(e) c tanh(s), the factor in two pieces. */
void KERNEL(attention_softcap)(const score_block *b, real high_factor, real low_factor)
{
    const fa_index *begin = b->begin, *end = b->end;
    real *s = b->s;
    const vreal high = v_set1(high_factor), low = v_set1(low_factor), nan = v_set1((real)__builtin_nanf(""));
    for (fa_index r = 0; r < b->rows; r++, s += ATTENTION_STRIDE)
        for (fa_index j = begin[r] / VL * VL; j < end[r]; j += VL) {
            const vreal t = v_tanh(v_load(s + j)), x = v_fma(t, high, v_mul(t, low));
            v_store(s + j, v_select(v_is_nan(x), nan, x));
        }
}

/* s = s - log2(e) slope |distance + j - r|: `distance` is that of key 0 from the diagonal of row 0. The factor, negative, comes in two
   pieces: one rounding of it would tilt a whole row. */
void KERNEL(attention_alibi)(const score_block *b, fa_index distance, real high_factor, real low_factor)
{
    const fa_index *begin = b->begin, *end = b->end;
    real *s = b->s;
    const vreal high = v_set1(high_factor), low = v_set1(low_factor), nan = v_set1((real)__builtin_nanf(""));
    const vreal step = v_set1(VL);
    real lane[VL];
    for (int i = 0; i < VL; i++) lane[i] = (real)i;
    for (fa_index r = 0; r < b->rows; r++, s += ATTENTION_STRIDE) {
        const fa_index first = begin[r] / VL * VL;
        vreal d = v_add(v_load(lane), v_set1((real)(distance + first - r)));
        for (fa_index j = first; j < end[r]; j += VL, d = v_add(d, step)) {
            const vreal away = v_abs(d), x = v_fma(away, high, v_fma(away, low, v_load(s + j)));
            v_store(s + j, v_select(v_is_nan(x), nan, x));
        }
    }
}

/* The state of rows that have taken a sink, a logit without a value, and no key yet: shift R and sum = e^sink 2^-R. A sink that is
   NaN or +inf makes its rows NaN; -inf is none. */
void KERNEL(attention_sink)(real *shift, real *sum, fa_index rows, real sink)
{
    const double top = rint((double)sink * 0x1.71547652b82fep+0), most = (double)REAL_LARGEST;
    double R = (double)(real)(isfinite(sink) ? fmax(-most, fmin(top, most)) : top), total = (double)__builtin_nanf("");
    if (sink == -REAL_INFINITY) {
        total = 0;
    } else if (!isfinite(sink)) {
        R = 0;
    } else {
        /* Where R has no bits left for an integer, it is off by any amount, and all there is to know of the sink. */
        const double rest = fma(-R, 0x1.abc9e3b39803fp-56, fma(-R, 0x1.62e42fefa39efp-1, (double)sink));
        total = fabs(rest) < 1 ? exp(rest) : 1;
    }
    for (fa_index r = 0; r < rows; r++) {
        shift[r] = (real)R;
        sum[r] = (real)total;
    }
}

/* Two results over different keys as one: out = (e^la a + e^lb b) / (e^la + e^lb), lse the log of the denominator. A part whose lse is
   -inf attended to nothing and is not read. Contiguous rows of n; the result does not depend on the order of the parts. */
void KERNEL(attention_merge)(real *out, real *lse, const real *a, const real *lse_a, const real *b, const real *lse_b,
                             fa_index rows, fa_index n)
{
    for (fa_index r = 0; r < rows; r++, out += n, a += n, b += n) {
        const double la = (double)lse_a[r], lb = (double)lse_b[r], top = lb > la ? lb : la;
        const int has_a = !(lse_a[r] == -REAL_INFINITY), has_b = !(lse_b[r] == -REAL_INFINITY);
        const double ea = has_a ? exp(la - top) : 0, eb = has_b ? exp(lb - top) : 0, total = ea + eb;
        const vreal wa = v_set1((real)(ea / total)), wb = v_set1((real)(eb / total));
        lse[r] = has_a || has_b ? (real)(top + log(total)) : -REAL_INFINITY;
        for (fa_index d = 0; d < n; d += VL) {
            const fa_index count = fa_min(VL, n - d);
            const vreal x = has_a ? v_mul(wa, v_load_n(a + d, count)) : v_zero();
            const vreal y = has_b ? v_mul(wb, v_load_n(b + d, count)) : v_zero();
            v_store_n(out + d, has_a && has_b ? v_add(x, y) : has_a ? x : y, count);
        }
    }
}
