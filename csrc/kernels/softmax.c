/* softmax and log-softmax of rows, z = scale x:

     y_j = e^(z_j) / sum_i e^(z_i)              ly_j = z_j - log sum_i e^(z_i)
     dx = scale y (dy - sum dy y)               dx = scale (dy - e^ly sum dy)

   and cross-entropy of a row with its target t, e the label smoothing:

     loss = log sum_i e^(x_i) - (1 - e) x_t - e sum_i x_i / n          dx_j = dloss (y_j - e / n - (1 - e) [j = t])

   The usual e^(z - max) spoils up to 5 bits: the rounding of z - max, up to 2^-18 in float, becomes a relative error of the
   result. Here the maximum only picks an integer N near max / ln 2, and each term is e^r 2^(n - N) with z = n ln 2 + r: nothing is
   rounded before the exponential. Rows with |max| beyond SHIFT_BEYOND subtract the maximum after all: there the difference of
   any two numbers that matter is exact.

   NaN anywhere, +inf anywhere, or a row of -inf alone: the row becomes NaN, as in IEEE arithmetic. n = 0 writes nothing.
   Sums run in blocks (rows.h): long rows lose nothing. */
#include "common.h"
#include "rows.h"

#include <math.h>

#if defined(FA_REAL_F32)
#define SHIFT_BEYOND 256.0f /* 2^8: z in [max - 104, max] and max are multiples of 2^-16, and 104 2^16 < 2^24 */
#else
#define SHIFT_BEYOND 2048.0 /* likewise: 746 2^42 < 2^53 */
#endif

/* How a row is brought into range: `shift` comes off z (0, or the maximum where that is large), N off the exponent. */
typedef struct {
    vreal scale, minus_shift, lowest, magic;
    real n_value;
} row_frame;

/* The largest of sign x. */
FA_INLINE real largest(const real *x, fa_index n, const int negative)
{
    const vreal none = v_set1(-REAL_INFINITY);
    vreal top0 = none, top1 = none;
    fa_index j = 0;
    for (; j + 2 * VL <= n; j += 2 * VL) {
        const vreal a = v_load(x + j), b = v_load(x + j + VL);
        top0 = v_max(top0, negative ? v_negate(a) : a);
        top1 = v_max(top1, negative ? v_negate(b) : b);
    }
    for (; j < n; j += VL) {
        const vreal a = load_some(x + j, n - j);
        top0 = v_max(top0, v_select(v_first(n - j), negative ? v_negate(a) : a, none));
    }
    return v_reduce_max(v_max(top0, top1));
}

FA_INLINE row_frame frame_of_row(const real *x, fa_index n, real scale)
{
    const real top = scale < 0 ? -scale * largest(x, n, 1) : scale * largest(x, n, 0);
    const real shift = top < SHIFT_BEYOND && top > -SHIFT_BEYOND ? 0 : top;
    const real n_value = ((top - shift) * LOG2_E + V_MAGIC) - V_MAGIC;
    return (row_frame){v_set1(scale), v_set1(-shift), v_set1(top - shift + EXP_LOWEST),
                       v_set1(V_MAGIC - n_value + EXPONENT_DETOUR), n_value};
}

/* e^z 2^(EXPONENT_DETOUR - N): the detour keeps all terms normal, and is gone when they are divided by their sum. */
FA_INLINE vreal exp_in_frame(vreal x, const row_frame *f)
{
    const vreal z = v_max(f->lowest, v_fma(f->scale, x, f->minus_shift));
    const vreal t = v_fma(z, v_set1(LOG2_E), f->magic), n = v_sub(t, f->magic);
    const vreal r = v_fnma(n, v_set1(LN2_LOW), v_fnma(n, v_set1(LN2_HIGH), z));
    const vreal p = v_fma(v_mul(r, r), POLYNOMIAL(r, exp_coefficient), r), power = power_of_two(t);
    return v_fma(p, power, power);
}

FA_INLINE vreal exp_some(real *y, const real *x, fa_index count, const row_frame *f, const int keep)
{
    vreal e = exp_in_frame(load_some(x, count), f);
    if (count < VL) e = v_select(v_first(count), e, v_zero());
    if (keep) store_some(y, e, count);
    return e;
}

/* The sum of exp_in_frame; the terms go to y where `keep`. Meanwhile the cache lines of the `next` row are asked for: hardware
   prefetch stops at the end of a page, and that is a row of 1024 floats. */
FA_INLINE real exp_row(real *y, const real *x, fa_index n, const row_frame *f, const int keep, const real *next)
{
    enum { LINE_VECTORS = 64 / (VL * (int)sizeof(real)) };
    long_sum total = {v_zero(), v_zero()};
    for (fa_index first = 0; first < n; first += SUM_BLOCK * VL) {
        const fa_index end = fa_min(n, first + SUM_BLOCK * VL);
        vreal block = v_zero();
        fa_index j = first;
        for (; j + LINE_VECTORS * VL <= end; j += LINE_VECTORS * VL) {
            FA_PREFETCH(next + j);
            FA_UNROLL
            for (int i = 0; i < LINE_VECTORS; i++) block = v_add(block, exp_some(y + j + i * VL, x + j + i * VL, VL, f, keep));
        }
        for (; j < end; j += VL) block = v_add(block, exp_some(y + j, x + j, end - j, f, keep));
        add_block(&total, block);
    }
    return long_total(&total);
}

void KERNEL(softmax_rows)(real *y, fa_index ldy, const real *x, fa_index ldx, fa_index rows, fa_index n, real scale)
{
    for (fa_index i = 0; i < rows; i++, x += ldx, y += ldy) {
        const row_frame f = frame_of_row(x, n, scale);
        const vreal inverse = v_set1(1 / exp_row(y, x, n, &f, 1, i + 1 < rows ? x + ldx : x));
        fa_index j = 0;
        for (; j + VL <= n; j += VL) v_store(y + j, v_mul(v_load(y + j), inverse));
        if (j < n) v_store_n(y + j, v_mul(v_load_n(y + j, n - j), inverse), n - j);
    }
}

/* z - (high + low), rounded once for doubles. For floats, whose high is rounded from a double, rounding twice is as good as the usual
   form, and a quarter faster. */
FA_INLINE vreal minus_long(vreal z, vreal high, vreal low)
{
#if defined(FA_REAL_F32)
    return v_sub(v_sub(z, high), low);
#else
    vreal rest;
    const vreal difference = two_sum(z, v_negate(high), &rest);
    /* At -inf there is no rest. */
    return v_add(difference, v_select(v_lt(v_set1(-REAL_INFINITY), difference), v_sub(rest, low), v_zero()));
#endif
}

void KERNEL(log_softmax_rows)(real *y, fa_index ldy, const real *x, fa_index ldx, fa_index rows, fa_index n, real scale)
{
    for (fa_index i = 0; i < rows; i++, x += ldx, y += ldy) {
        const row_frame f = frame_of_row(x, n, scale);
        const double sum = exp_row(y, x, n, &f, 0, i + 1 < rows ? x + ldx : x) * EXPONENT_DETOUR_BACK;
        /* log sum e^z = shift + N ln 2 + log(sum). z - shift is exact or harmless; the rest is taken off in two pieces. ln 2 is in two
           as well, the product with the first exact, for in double the rounding of the sum would count. */
        const double exponent = (double)f.n_value * 0x1.62e42fee00000p-1, log_sum = log(sum), rest = exponent + log_sum;
        const double back = rest - exponent;
        const double lost = (exponent - (rest - back)) + (log_sum - back) + (double)f.n_value * 0x1.a39ef35793c76p-33;
        const vreal high = v_set1((real)rest), low = v_set1((real)(rest - (double)(real)rest + lost));
        for (fa_index j = 0; j < n; j += VL) {
            const fa_index left = n - j;
            const vreal z = v_fma(f.scale, load_some(x + j, left), f.minus_shift);
            store_some(y + j, minus_long(z, high, low), left);
        }
    }
}

/* sum a b of a row; b == NULL: sum a. The terms have both signs, and what they leave may be small beside them: blocks are short. */
FA_INLINE real dot_row(const real *a, const real *b, fa_index n)
{
    enum { DOT_BLOCK = 2 };
    long_sum total = {v_zero(), v_zero()};
    for (fa_index first = 0; first < n; first += DOT_BLOCK * VL) {
        const fa_index end = fa_min(n, first + DOT_BLOCK * VL);
        vreal block = v_zero();
        for (fa_index j = first; j < end; j += VL) {
            const vreal left = load_some(a + j, end - j);
            block = b ? v_fma(left, load_some(b + j, end - j), block) : v_add(block, left);
        }
        add_block(&total, block);
    }
    return long_total(&total);
}

void KERNEL(softmax_backward_rows)(real *dx, fa_index lddx, const real *dy, fa_index lddy, const real *y, fa_index ldy,
                                   fa_index rows, fa_index n, real scale)
{
    for (fa_index i = 0; i < rows; i++, dx += lddx, dy += lddy, y += ldy) {
        const vreal dot = v_set1(dot_row(dy, y, n)), factor = v_set1(scale);
        for (fa_index j = 0; j < n; j += VL) {
            const fa_index left = n - j;
            const vreal d = v_sub(load_some(dy + j, left), dot);
            store_some(dx + j, v_mul(v_mul(d, load_some(y + j, left)), factor), left);
        }
    }
}

void KERNEL(log_softmax_backward_rows)(real *dx, fa_index lddx, const real *dy, fa_index lddy, const real *y, fa_index ldy,
                                       fa_index rows, fa_index n, real scale)
{
    for (fa_index i = 0; i < rows; i++, dx += lddx, dy += lddy, y += ldy) {
        const vreal sum = v_set1(dot_row(dy, NULL, n)), factor = v_set1(scale);
        for (fa_index j = 0; j < n; j += VL) {
            const fa_index left = n - j;
            const vreal d = v_fnma(v_exp(load_some(y + j, left)), sum, load_some(dy + j, left));
            store_some(dx + j, v_mul(d, factor), left);
        }
    }
}

/* The usual form, x - max: a loss near 0 is then the log of a sum near 1, and its terms need no more. */
FA_INLINE row_frame frame_below(real top)
{
    return (row_frame){v_set1(1), v_set1(-top), v_set1(EXP_LOWEST), v_set1(V_MAGIC + EXPONENT_DETOUR), 0};
}

/* log_sum - z, rounded once, for z = x - top. At an infinity there is no rest. */
FA_INLINE double loss_of(double log_sum, double x, double top)
{
    const double z = x - top, z_part = z + top, z_rest = (x - z_part) - (top - (z_part - z));
    const double d = log_sum - z, part = d - log_sum, d_rest = (log_sum - (d - part)) - (z + part);
    return d + (d < REAL_INFINITY ? d_rest - z_rest : 0);
}

void KERNEL(cross_entropy_rows)(real *loss, real *top, real *sum, const real *x, const fa_index *target, fa_index rows,
                                fa_index n, fa_index ignored, double smoothing)
{
    for (fa_index i = 0; i < rows; i++, x += n) {
        loss[i] = top[i] = 0;
        sum[i] = 1;
        if (target[i] == ignored) continue;
        top[i] = largest(x, n, 0);
        const row_frame f = frame_below(top[i]);
        sum[i] = exp_row((real *)x, x, n, &f, 0, i + 1 < rows ? x + n : x);
        const double log_sum = log((double)sum[i] * EXPONENT_DETOUR_BACK);
        double value = loss_of(log_sum, (double)x[target[i]], (double)top[i]);
        if (smoothing > 0)
            value =
                (1 - smoothing) * value + smoothing * loss_of(log_sum, (double)dot_row(x, NULL, n) / (double)n, (double)top[i]);
        loss[i] = (real)value;
    }
}

void KERNEL(cross_entropy_backward_rows)(real *dx, const real *dloss, const real *x, const real *top, const real *sum,
                                         const fa_index *target, fa_index rows, fa_index n, fa_index ignored, double smoothing)
{
    const vreal level = v_set1((real)(smoothing / (double)n)), peak = v_set1((real)(1 - smoothing));
    for (fa_index i = 0; i < rows; i++, dx += n, x += n) {
        if (target[i] == ignored) {
            for (fa_index j = 0; j < n; j += VL) store_some(dx + j, v_zero(), n - j);
            continue;
        }
        const row_frame f = frame_below(top[i]);
        const vreal total = v_set1(sum[i]), factor = v_set1(dloss[i]);
        for (fa_index j = 0; j < n; j += VL) {
            const vreal p = v_div(exp_in_frame(load_some(x + j, n - j), &f), total);
            store_some(dx + j, v_mul(factor, v_sub(p, level)), n - j);
        }
        const vreal p = v_div(exp_in_frame(v_set1(x[target[i]]), &f), total);
        v_store_n(dx + target[i], v_mul(factor, v_sub(v_sub(p, peak), level)), 1);
    }
}
