/* Attention of one row in natural units, step by step as the plain formula has it: for rows that the products of scaled queries, in units
   of log2(e), take out of range though the formula stays within.

     s_j = scale (q k_j),  softcap, slope, mask     attention_natural_scores: each step rounded to real
     top = max s,  sum = sum of e^(s - top)
     o = sum of e^(s - top) v_j                     attention_natural_values, in double
     out = o / sum,  lse = top + ln sum             attention_natural_finish

   Products are summed up in double, of which those of floats need no more, and those of doubles are the formula's own. Slower than the
   kernels for ordinary rows, which take a vector at a time. */
#include "attention.h"
#include "../common.h"

#include <math.h>

/* O is kept smaller by so much: sums of 2^39 values of any size are finite. */
#define NATURAL_SHIFT 0x1p-40

/* Scores and lse may be off by so much of their size, which counts from so many units on. */
#define NOISE_PLACES (8.0 / (double)((int64_t)1 << REAL_MANTISSA_BITS))
#define NOISE_COUNTS 32.0

/* Term d is in sum d mod SUMS, whatever VL is. */
enum { SUMS = 8 };

FA_INLINE real natural_product(const stored *q, const stored *k, fa_index D)
{
    double sum[SUMS] = {0};
    real x[VL], y[VL];
    for (fa_index d = 0; d < D; d += VL) {
        v_store(x, load_stored_some(q + d, D - d));
        v_store(y, load_stored_some(k + d, D - d));
        for (fa_index i = 0; i < VL; i++) sum[(d + i) % SUMS] += (double)x[i] * (double)y[i];
    }
    for (int half = SUMS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sum[i] += sum[i + half];
    return (real)sum[0];
}

/* The mask of key j excludes it. */
FA_INLINE int is_excluded(const natural_options *o, fa_index j)
{
    if (o->keep) return !o->keep[j * o->mask_step];
    return o->add && real_of(((const stored *)o->add)[j * o->mask_step]) == -REAL_INFINITY;
}

/* s[j] for the keys [begin, end) of which key j is at k + j ldk; D may be 0. products: s in units of the softcap on the way, or NULL. */
void KERNEL(attention_natural_scores)(real *s, real *products, const stored *q, const stored *k, fa_index ldk, fa_index begin,
                                      fa_index end, fa_index D, const natural_options *o)
{
    const real scale = (real)o->scale, softcap = (real)o->softcap, slope = (real)o->slope;
    for (fa_index j = begin; j < end; j++) {
        if (is_excluded(o, j)) {
            s[j] = -REAL_INFINITY;
            continue;
        }
        real x = scale * natural_product(q, k + (D ? j * ldk : 0), D);
        if (softcap > 0) {
            const real t = x / softcap;
            if (products) products[j] = t;
            x = softcap * (real)tanh((double)t);
        }
        if (slope != 0) x -= slope * (real)(j > o->diagonal ? j - o->diagonal : o->diagonal - j);
        if (o->add) x += real_of(((const stored *)o->add)[j * o->mask_step]);
        s[j] = x;
    }
}

/* s in units of log2(e), less the largest one. */
void KERNEL(attention_natural_powers)(real *s, fa_index begin, fa_index end, real top)
{
    for (fa_index j = begin; j < end; j++) s[j] = (real)(((double)s[j] - (double)top) * 0x1.71547652b82fep+0);
}

/* The keys [begin, end) on top of those before them. */
void KERNEL(attention_natural_values)(double *o, natural_state *state, const real *s, const stored *v, fa_index ldv,
                                      fa_index begin, fa_index end, fa_index D)
{
    for (fa_index j = begin; j < end; j++) {
        if (s[j] == -REAL_INFINITY) continue;
        if (!((double)s[j] <= state->top)) {
            const double factor = state->sum == 0 ? 0 : exp(state->top - (double)s[j]);
            for (fa_index d = 0; d < D; d++) o[d] = state->sum == 0 ? 0 : o[d] * factor;
            state->sum *= factor;
            state->top = (double)s[j];
        }
        const double p = exp((double)s[j] - state->top);
        state->sum += p;
        for (fa_index d = 0; d < D; d += VL) {
            real x[VL];
            v_store(x, load_stored_some(v + j * ldv + d, D - d));
            for (fa_index i = 0; i < fa_min(VL, D - d); i++) o[d + i] += p * NATURAL_SHIFT * (double)x[i];
        }
    }
}

/* p = e^(s - lse) of the keys [begin, end): of numbers whose last places are worth more than a few units of the exponent, 1 where they
   agree but for these. */
void KERNEL(attention_natural_weights)(real *p, const real *s, fa_index begin, fa_index end, real lse)
{
    const double noise = NOISE_PLACES * fabs((double)lse);
    for (fa_index j = begin; j < end; j++) {
        const double x = (double)s[j] - (double)lse;
        p[j] = noise > NOISE_COUNTS && fabs(x) <= noise ? 1 : (real)exp(x);
    }
}

/* out, and lse, shift and sum, which may be NULL: the sum of such a row is negative, and its shift in natural units. A mean of
   finite numbers is none but finite, however its last bit is rounded. */
void KERNEL(attention_natural_finish)(stored *out, real *lse, real *shift, real *sum, const double *o, const natural_state *state,
                                      fa_index D)
{
    const int any = state->sum != 0;
    const double largest = (double)REAL_LARGEST;
    for (fa_index d = 0; d < D; d++) {
        const double mean = any ? o[d] / (state->sum * NATURAL_SHIFT) : 0;
        out[d] = stored_of((real)(isfinite(o[d]) ? fmax(-largest, fmin(mean, largest)) : mean));
    }
    if (lse) *lse = any ? (real)(state->top + log(state->sum)) : -REAL_INFINITY;
    if (shift) *shift = any ? (real)state->top : -REAL_INFINITY;
    if (sum) *sum = any ? -(real)state->sum : 0;
}

/* bad[i]: row i has an element that is not finite. */
void KERNEL(attention_find_nonfinite)(unsigned char *bad, const stored *x, fa_index ldx, fa_index rows, fa_index D)
{
    for (fa_index i = 0; i < rows; i++, x += ldx) {
        vreal found = v_zero();
        for (fa_index d = 0; d < D; d += VL) {
            const vreal a = load_stored_some(x + d, D - d);
            found = v_fma(a, v_zero(), found); /* 0 inf and 0 NaN are NaN */
        }
        bad[i] = (unsigned char)(v_any(v_is_nan(found)) != 0);
    }
}
