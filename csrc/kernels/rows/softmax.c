/* softmax and log-softmax of rows, z = scale x:

     y_j = e^(z_j) / sum_i e^(z_i)              ly_j = z_j - log sum_i e^(z_i)
     dx = scale y (dy - sum dy y)               dx = scale (dy - e^ly sum dy)

   and cross-entropy of a row with its target t, e the label smoothing:

     loss = log sum_i e^(x_i) - (1 - e) x_t - e sum_i x_i / n          dx_j = dloss (y_j - e / n - (1 - e) [j = t])

   The usual e^(z - max) spoils up to 5 bits: the rounding of z - max, up to 2^-18 in float, becomes a relative error of the
   result. Here the maximum only picks an integer N near max / ln 2, and each term is e^r 2^(n - N) with z = n ln 2 + r: nothing is
   rounded before the exponential. Rows with |max| beyond SHIFT_BEYOND subtract the maximum after all: there the difference of
   any two numbers that matter is exact. Beyond PRODUCT_BEYOND scale x is rounded first, as the maximum is: the digits that a fused
   scale x - max keeps beyond it would be those of a number that may be larger than the exponent holds.

   NaN anywhere, +inf anywhere, or a row of -inf alone: the row becomes NaN, as in IEEE arithmetic. n = 0 writes nothing.
   Sums run in blocks (rows.h): long rows lose nothing. */
#include "../common.h"
#include "rows.h"

#include <math.h>

#if defined(FA_REAL_F32)
#define SHIFT_BEYOND 256.0f /* 2^8: z in [max - 104, max] and max are multiples of 2^-16, and 104 2^16 < 2^24 */
#define PRODUCT_BEYOND 0x1p24f
#else
#define SHIFT_BEYOND 2048.0 /* likewise: 746 2^42 < 2^53 */
#define PRODUCT_BEYOND 0x1p50
#endif

/* Vectors that go through the exponential together: as many as the registers hold. */
#define EXP_GROUP (FA_NV == 4 ? 4 : 2)

/* How a row is brought into range: `shift` comes off z (0, or the maximum where that is large), N off the exponent. */
typedef struct {
    vreal scale, minus_shift, lowest, magic;
    real n_value;
} row_frame;

/* The largest of sign x, of sign -1 where `negative`. */
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

/* top: the largest of scale x. */
FA_INLINE row_frame frame_of_row(real top, real scale)
{
    const real shift = top < SHIFT_BEYOND && top > -SHIFT_BEYOND ? 0 : top;
    const real n_value = ((top - shift) * LOG2_E + V_MAGIC) - V_MAGIC;
    return (row_frame){v_set1(scale), v_set1(-shift), v_set1(top - shift + EXP_LOWEST),
                       v_set1(V_MAGIC - n_value + EXPONENT_DETOUR), n_value};
}

FA_INLINE int product_first(real top) { return FA_UNLIKELY(!(top < PRODUCT_BEYOND && top > -PRODUCT_BEYOND)); }

/* y = scale x */
FA_NOINLINE void scale_row(real *y, const real *x, fa_index n, real scale)
{
    const vreal factor = v_set1(scale);
    for (fa_index j = 0; j < n; j += VL) store_some(y + j, v_mul(load_some(x + j, n - j), factor), n - j);
}

/* x becomes e^z 2^(EXPONENT_DETOUR - N): the detour keeps all terms normal, and is gone when they are divided by their sum. Each
   step is for all `count` vectors: one after the other, their chains would fill the queues of the processor with operations that
   cannot begin yet. */
FA_INLINE void exp_vectors(vreal *x, const int count, const row_frame *f)
{
    enum { DEGREE = sizeof exp_coefficient / sizeof *exp_coefficient - 1 };
    vreal t[EXP_GROUP], n[EXP_GROUP], p[EXP_GROUP];
    FA_UNROLL
    for (int i = 0; i < count; i++) x[i] = v_max(f->lowest, v_fma(f->scale, x[i], f->minus_shift));
    FA_UNROLL
    for (int i = 0; i < count; i++) t[i] = v_fma(x[i], v_set1(LOG2_E), f->magic);
    FA_UNROLL
    for (int i = 0; i < count; i++) n[i] = v_sub(t[i], f->magic);
    FA_UNROLL
    for (int i = 0; i < count; i++) x[i] = v_fnma(n[i], v_set1(LN2_HIGH), x[i]);
    FA_UNROLL
    for (int i = 0; i < count; i++) x[i] = v_fnma(n[i], v_set1(LN2_LOW), x[i]);
    FA_UNROLL
    for (int i = 0; i < count; i++) p[i] = v_set1(exp_coefficient[DEGREE]);
    FA_UNROLL
    for (int c = DEGREE - 1; c >= 0; c--) {
        FA_UNROLL
        for (int i = 0; i < count; i++) p[i] = v_fma(p[i], x[i], v_set1(exp_coefficient[c]));
    }
    FA_UNROLL
    for (int i = 0; i < count; i++) p[i] = v_fma(v_mul(x[i], x[i]), p[i], x[i]);
    FA_UNROLL
    for (int i = 0; i < count; i++) t[i] = power_of_two(t[i]);
    FA_UNROLL
    for (int i = 0; i < count; i++) x[i] = v_fma(p[i], t[i], t[i]);
}

FA_INLINE vreal exp_in_frame(vreal x, const row_frame *f)
{
    exp_vectors(&x, 1, f);
    return x;
}

FA_INLINE vreal exp_some(const real *x, fa_index count, const row_frame *f)
{
    const vreal e = exp_in_frame(load_some(x, count), f);
    return count < VL ? v_select(v_first(count), e, v_zero()) : e;
}

/* The sum of exp_in_frame. The row that comes `next` is prefetched meanwhile: hardware prefetch stops at the end of a page, and that
   is a row of 1024 floats. */
FA_INLINE real sum_row(const real *x, fa_index n, const row_frame *f, const real *next)
{
    long_sum total = {v_zero(), v_zero()};
    for (fa_index first = 0; first < n; first += SUM_BLOCK * VL) {
        const fa_index end = fa_min(n, first + SUM_BLOCK * VL);
        vreal block = v_zero();
        fa_index j = first;
        for (; j + EXP_GROUP * VL <= end; j += EXP_GROUP * VL) {
            vreal e[EXP_GROUP];
            FA_UNROLL
            for (int i = 0; i < EXP_GROUP; i++) {
                FA_PREFETCH(next + j + i * VL);
                e[i] = v_load(x + j + i * VL);
            }
            exp_vectors(e, EXP_GROUP, f);
            FA_UNROLL
            for (int i = 0; i < EXP_GROUP; i++) block = v_add(block, e[i]);
        }
        for (; j < end; j += VL) block = v_add(block, exp_some(x + j, end - j, f));
        add_block(&total, block);
    }
    return long_total(&total);
}

/* What a walk along a row does beside its exponentials: the products fill two of the processor's pipes, and maxima, quotients and
   stores of other rows pass through the others. */
typedef struct {
    const real *ahead; /* the row whose maximum comes next */
    fa_index further;  /* from there to the row to prefetch */
    real *behind;      /* the row to be multiplied by `inverse` */
    vreal inverse;
} beside_row;

/* y = exp_in_frame; returns the sum, and in *top the largest of sign x of the row ahead. */
FA_INLINE real exp_row(real *y, const real *x, fa_index n, const row_frame *f, const beside_row *b, real *top, const int negative,
                       const int divide)
{
    long_sum total = {v_zero(), v_zero()};
    vreal largest_ahead = v_set1(-REAL_INFINITY);
    for (fa_index first = 0; first < n; first += SUM_BLOCK * VL) {
        const fa_index end = fa_min(n, first + SUM_BLOCK * VL);
        vreal block = v_zero();
        fa_index j = first;
        for (; j + EXP_GROUP * VL <= end; j += EXP_GROUP * VL) {
            vreal e[EXP_GROUP];
            FA_UNROLL
            for (int i = 0; i < EXP_GROUP * VL; i += 64 / (int)sizeof(real)) FA_PREFETCH(b->ahead + b->further + j + i);
            FA_UNROLL
            for (int i = 0; i < EXP_GROUP; i++) {
                const vreal a = v_load(b->ahead + j + i * VL);
                largest_ahead = v_max(largest_ahead, negative ? v_negate(a) : a);
            }
            FA_UNROLL
            for (int i = 0; i < EXP_GROUP; i++) e[i] = v_load(x + j + i * VL);
            exp_vectors(e, EXP_GROUP, f);
            FA_UNROLL
            for (int i = 0; i < EXP_GROUP; i++) v_store(y + j + i * VL, e[i]);
            if (divide) {
                FA_UNROLL
                for (int i = 0; i < EXP_GROUP; i++)
                    v_store(b->behind + j + i * VL, v_mul(v_load(b->behind + j + i * VL), b->inverse));
            }
            FA_UNROLL
            for (int i = 0; i < EXP_GROUP; i++) block = v_add(block, e[i]);
        }
        for (; j < end; j += VL) {
            const fa_index count = end - j;
            const vreal a = load_some(b->ahead + j, count), e = exp_some(x + j, count, f);
            largest_ahead = v_max(largest_ahead, v_select(v_first(count), negative ? v_negate(a) : a, largest_ahead));
            store_some(y + j, e, count);
            if (divide) store_some(b->behind + j, v_mul(load_some(b->behind + j, count), b->inverse), count);
            block = v_add(block, e);
        }
        add_block(&total, block);
    }
    *top = v_reduce_max(largest_ahead);
    return long_total(&total);
}

FA_INLINE void softmax_of_rows(real *y, fa_index ldy, const real *x, fa_index ldx, fa_index rows, fa_index n, real scale,
                               const int negative)
{
    real top = largest(x, n, negative);
    beside_row b = {x, 0, y, v_zero()};
    for (fa_index i = 0; i < rows; i++, x += ldx, y += ldy) {
        const real peak = negative ? -scale * top : scale * top;
        const int scaled = product_first(peak);
        const row_frame f = frame_of_row(peak, scaled ? 1 : scale);
        const real *logits = scaled ? y : x;
        if (scaled) scale_row(y, x, n, scale);
        b.ahead = i + 1 < rows ? x + ldx : x;
        b.further = i + 2 < rows ? ldx : 0;
        b.behind = y - ldy;
        const real sum =
            i == 0 ? exp_row(y, logits, n, &f, &b, &top, negative, 0) : exp_row(y, logits, n, &f, &b, &top, negative, 1);
        b.inverse = v_set1(1 / sum);
    }
    y -= ldy;
    for (fa_index j = 0; j < n; j += VL) store_some(y + j, v_mul(load_some(y + j, n - j), b.inverse), n - j);
}

/* x and y are the same rows, or apart. */
void KERNEL(softmax_rows)(real *y, fa_index ldy, const real *x, fa_index ldx, fa_index rows, fa_index n, real scale)
{
    if (rows == 0) return;
    if (scale < 0)
        softmax_of_rows(y, ldy, x, ldx, rows, n, scale, 1);
    else
        softmax_of_rows(y, ldy, x, ldx, rows, n, scale, 0);
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
        const real peak = scale < 0 ? -scale * largest(x, n, 1) : scale * largest(x, n, 0);
        const int scaled = product_first(peak);
        const row_frame f = frame_of_row(peak, scaled ? 1 : scale);
        const real *logits = scaled ? y : x;
        if (scaled) scale_row(y, x, n, scale);
        const double sum = sum_row(logits, n, &f, i + 1 < rows ? x + ldx : x) * EXPONENT_DETOUR_BACK;
        /* log sum e^z = shift + N ln 2 + log(sum). z - shift is exact or harmless; the rest is taken off in two pieces. ln 2 is in two
           as well, the product with the first exact, for in double the rounding of the sum would count. */
        const double exponent = (double)f.n_value * 0x1.62e42fee00000p-1, log_sum = log(sum), rest = exponent + log_sum;
        const double back = rest - exponent;
        const double lost = (exponent - (rest - back)) + (log_sum - back) + (double)f.n_value * 0x1.a39ef35793c76p-33;
        const vreal high = v_set1((real)rest), low = v_set1((real)(rest - (double)(real)rest + lost));
        for (fa_index j = 0; j < n; j += VL) {
            const fa_index left = n - j;
            const vreal z = v_fma(f.scale, load_some(logits + j, left), f.minus_shift);
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

/* log_sum - (mean of x - top): of logits with a large common offset the differences alone are exact, as in the usual form. What overflows
   there or is -inf makes the loss infinite. */
FA_NOINLINE double mean_loss_far(double log_sum, const real *x, fa_index n, real top)
{
    const vreal peak = v_set1(top);
    long_sum total = {v_zero(), v_zero()};
    vreal plain = v_zero();
    for (fa_index j = 0; j < n; j += VL) {
        const vreal d = v_select(v_first(n - j), v_sub(load_some(x + j, n - j), peak), v_zero());
        add_block(&total, d);
        plain = v_add(plain, d);
    }
    const double coarse = (double)v_reduce_add(plain);
    return log_sum - (isfinite(coarse) ? (double)long_total(&total) : coarse) / (double)n;
}

/* The mean of the losses of all targets. */
FA_INLINE double mean_loss(double log_sum, const real *x, fa_index n, real top)
{
    if (FA_UNLIKELY(!(top < SHIFT_BEYOND && top > -SHIFT_BEYOND))) return mean_loss_far(log_sum, x, n, top);
    const double mean = (double)dot_row(x, NULL, n) / (double)n;
    if (FA_UNLIKELY(!isfinite(mean))) return mean_loss_far(log_sum, x, n, top);
    return loss_of(log_sum, mean, (double)top);
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
        sum[i] = sum_row(x, n, &f, i + 1 < rows ? x + n : x);
        const double log_sum = log((double)sum[i] * EXPONENT_DETOUR_BACK);
        double value = loss_of(log_sum, (double)x[target[i]], (double)top[i]);
        if (smoothing > 0) value = (smoothing < 1 ? (1 - smoothing) * value : 0) + smoothing * mean_loss(log_sum, x, n, top[i]);
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
