/* Elementary functions on vectors: exp, tanh, sigmoid, silu, gelu, and the 2^x of attention.

   The largest errors over all 2^32 floats and over 10^9 doubles stand in ulp.md beside this file (scripts/ulp_sweep.py measures
   them). Special values: exp(-inf) = 0, exp(+inf) = inf, tanh(+-inf) = +-1, sigmoid(-inf) = 0, gelu(-inf) = silu(-inf) = -0;
   NaN gives NaN; results below the normal range are rounded as subnormals.

   Every lane is computed alike, tails included, so a value does not depend on its place in an array. The double versions carry
   intermediate numbers as sums of two doubles, "high" and "low", and stay below 1 ULP; the float versions do so only where an
   error would be magnified, because the gates of the recurrent cells are made of them. */
#ifndef FA_VMATH_H
#define FA_VMATH_H

#include "vmath_tables.h"

#if defined(FA_REAL_F32)
#define EXP_LOWEST (-104.0f)      /* e^-104 < 2^-150 rounds to 0 */
#define EXP_HIGHEST 89.0f         /* e^89 > 2^128 */
#define LOGISTIC_LOWEST (-115.0f) /* x e^x at -115 rounds to 0 */
#define EXPONENT_DETOUR 64.0f
#define EXPONENT_DETOUR_BACK 0x1p-64f
#define MILLS_PIVOT 2.0f
#define MILLS_END 15.0f /* end of the table, and gelu(-15) rounds to 0 */
#else
#define EXP_LOWEST (-746.0)
#define EXP_HIGHEST 710.0
#define LOGISTIC_LOWEST (-760.0)
#define EXPONENT_DETOUR 512.0
#define EXPONENT_DETOUR_BACK 0x1p-512
#define MILLS_PIVOT 4.0
#define MILLS_END 40.0
#endif

#define MILLS_SPLIT 4                /* coefficients applied in double length */
#define LOGISTIC_SATURATED REAL(40.) /* 1 / (1 + e^-40) rounds to 1 */
#define TANH_SMALL REAL(0.625)       /* end of the table of tanh */
#define TANH_SATURATED REAL(20.)     /* 1 - tanh(20) < 2^-54 */
#define CDF_SMALL REAL(0.5)          /* end of the table of the normal distribution */
#define LOG2_E REAL(0x1.71547652b82fep+0)

/* c[first] + c[first + 1] x + c[first + 2] x^2 + ... by Horner. */
#define POLYNOMIAL(x, table) POLYNOMIAL_FROM(0, x, table)
#define POLYNOMIAL_FROM(first, x, table) polynomial(x, table, first, (int)(sizeof(table) / sizeof *(table)))

FA_INLINE vreal polynomial(vreal x, const real *c, const int first, const int n)
{
    vreal y = v_set1(c[n - 1]);
#pragma GCC unroll 32
    for (int i = n - 2; i >= first; i--) y = v_fma(y, x, v_set1(c[i]));
    return y;
}

/* c - a b with one rounding, also where v_fma rounds twice. */
FA_INLINE vreal residual(vreal a, vreal b, vreal c)
{
#if FA_HAS_FMA
    return v_fnma(a, b, c);
#else
    const vreal p = v_mul(a, b);
    return v_sub(v_sub(c, p), v_product_error(a, b, p));
#endif
}

/* a (b + b_low) rounded once, but for the term a b_low. */
FA_INLINE vreal product_once(vreal a, vreal b, vreal b_low)
{
#if FA_HAS_FMA
    return v_fma(a, b, v_mul(a, b_low));
#else
    const vreal p = v_mul(a, b);
    /* The sign is that of p: -0 + 0 would be +0. */
    return v_copysign(v_add(p, v_add(v_product_error(a, b, p), v_mul(a, b_low))), p);
#endif
}

/* a + b exactly, as the rounded sum and the rest. */
FA_INLINE vreal two_sum(vreal a, vreal b, vreal *low)
{
    const vreal s = v_add(a, b), t = v_sub(s, a);
    *low = v_add(v_sub(a, v_sub(s, t)), v_sub(b, t));
    return s;
}

/* (a + a_low) (b + b_low), both lows far below their highs. */
FA_INLINE vreal two_product(vreal a, vreal a_low, vreal b, vreal b_low, vreal *low)
{
    const vreal p = v_mul(a, b);
    *low = v_fma(a, b_low, v_fma(a_low, b, v_product_error(a, b, p)));
    return p;
}

/* (numerator + numerator_low) / (denominator + denominator_low), to well below the last bit of the quotient. */
FA_INLINE vreal two_quotient(vreal numerator, vreal numerator_low, vreal denominator, vreal denominator_low, vreal *low)
{
    const vreal inverse = v_div(v_set1(1), denominator);
    const vreal q = v_mul(numerator, inverse);
    const vreal rest = v_add(residual(q, denominator, numerator), v_fnma(q, denominator_low, numerator_low));
    *low = v_mul(rest, inverse);
    return q;
}

/* x = n ln 2 + r for |x| below 1000, with *t = n + V_MAGIC. n ln 2 is taken off in two pieces; the product with the first is
   exact, since its last bits are zero. Returns r; *rest is what the second subtraction rounded away. */
FA_INLINE vreal exp_reduce(vreal x, vreal *t, vreal *rest)
{
    const vreal magic = v_set1(V_MAGIC);
    *t = v_fma(x, v_set1(LOG2_E), magic);
    const vreal n = v_sub(*t, magic), high = v_fnma(n, v_set1(LN2_HIGH), x), low = v_mul(n, v_set1(LN2_LOW));
    const vreal r = v_sub(high, low);
    *rest = v_sub(v_sub(high, r), low);
    return r;
}

/* 2^n for t = n + V_MAGIC and a normal result. To be multiplied, so that NaN stays NaN. */
FA_INLINE vreal power_of_two(vreal t) { return v_add_exponent(v_set1(1), t); }

/* a 2^n for t = n + V_MAGIC with n <= 0: rounds once, also into the subnormals, which power_of_two cannot reach. */
FA_INLINE vreal scale_down(vreal a, vreal t)
{
    return v_mul(v_mul(a, power_of_two(v_add(t, v_set1(EXPONENT_DETOUR)))), v_set1(EXPONENT_DETOUR_BACK));
}

/* e^r - 1 for |r| < 0.35. */
FA_INLINE vreal expm1_small(vreal r, vreal rest) { return v_add(r, v_fma(v_mul(r, r), POLYNOMIAL(r, exp_coefficient), rest)); }

FA_INLINE vreal v_exp(vreal x)
{
    vreal t, rest;
    /* The constant comes first: v_max and v_min hand on a NaN in their second argument. */
    const vreal r = exp_reduce(v_min(v_set1(EXP_HIGHEST), v_max(v_set1(EXP_LOWEST), x)), &t, &rest);
    const vreal e = v_add(v_set1(1), expm1_small(r, rest));
    return v_scale(e, v_sub(t, v_set1(V_MAGIC)));
}

#if defined(FA_REAL_F32)

/* 1 / (1 + e^-(x + x_low)) as q 2^n with n <= 0, from e^-|x| so that nothing overflows. *t = n + V_MAGIC. x_low, the last bits of
   a large x, is added into r before the polynomial. */
FA_INLINE vreal logistic(vreal x, vreal x_low, vreal *t)
{
    const vreal one = v_set1(1), magic = v_set1(V_MAGIC);
    const vmask negative = v_lt(x, v_zero());
    vreal rest;
    const vreal main = exp_reduce(v_max(v_set1(LOGISTIC_LOWEST), v_negate(v_abs(x))), t, &rest);
    const vreal low = v_select(negative, x_low, v_negate(x_low)), r = v_add(main, low);
    const vreal e = v_add(one, expm1_small(r, v_add(rest, v_add(v_sub(main, r), low))));
    /* z = e 2^n; where that leaves the normal range it is lost in 1 + z anyway. */
    const vreal z = v_mul(e, power_of_two(v_max(v_set1(V_MAGIC - 126), *t)));
    const vreal sum = v_add(one, z), sum_low = v_sub(z, v_sub(sum, one));
    vreal q_low;
    const vreal q = two_quotient(v_select(negative, e, one), v_zero(), sum, sum_low, &q_low);
    *t = v_select(negative, *t, magic);
    return v_add(q, q_low);
}

FA_INLINE vreal v_sigmoid(vreal x)
{
    vreal t;
    const vreal q = logistic(x, v_zero(), &t);
    return scale_down(q, t);
}

/* factor / (1 + e^-(x + x_low)); `factor` must be finite where x is very negative. */
FA_INLINE vreal logistic_times(vreal factor, vreal x, vreal x_low)
{
    vreal t;
    const vreal q = logistic(x, x_low, &t);
    return v_scale(v_mul(factor, q), v_sub(t, v_set1(V_MAGIC)));
}

/* Below TANH_SMALL x + x^3 P(x^2), above it 1 - 2 / (e^2x + 1): neither cancels. */
FA_INLINE vreal v_tanh(vreal x)
{
    const vreal one = v_set1(1), two = v_set1(2);
    const vreal a = v_abs(x), w = v_mul(x, x);
    const vreal below = v_fma(v_mul(a, w), POLYNOMIAL(w, tanh_coefficient), a);
    vreal t, rest;
    const vreal r = exp_reduce(v_mul(two, v_min(v_set1(TANH_SATURATED), a)), &t, &rest);
    const vreal e = v_mul(v_add(one, expm1_small(r, rest)), power_of_two(t));
    const vreal above = v_sub(one, v_div(two, v_add(e, one)));
    return v_copysign(v_select(v_lt(a, v_set1(TANH_SMALL)), below, above), x);
}

/* x Phi(x), Phi the normal distribution. Near 0 Phi = 1/2 + x P(x^2). Elsewhere Phi(-a) = e^(-a^2 / 2) M(a), with M (Mills' ratio
   over sqrt(2 pi)) a polynomial in (a - k) / (a + k) over a + k: the relative error stays small down to the subnormals, which
   1 + erf cannot do. */
FA_INLINE vreal v_gelu(vreal x)
{
    const vreal half = v_set1(0.5f), minus_half = v_set1(-0.5f), magic = v_set1(V_MAGIC);
    const vreal small = v_mul(x, v_fma(x, POLYNOMIAL(v_mul(x, x), cdf_coefficient), half));

    const vreal a = v_min(v_set1(MILLS_END), v_abs(x));
    const vreal square = v_mul(a, a);
    vreal t, rest;
    const vreal square_low = v_mul(minus_half, v_product_error(a, a, square));
    const vreal main = exp_reduce(v_mul(minus_half, square), &t, &rest), r = v_add(main, square_low);
    const vreal p = expm1_small(r, v_add(rest, v_add(v_sub(main, r), square_low)));
    const vreal sum = v_add(a, v_set1(MILLS_PIVOT)), sum_low = v_sub(a, v_sub(sum, v_set1(MILLS_PIVOT)));
    const vreal u = v_div(v_sub(a, v_set1(MILLS_PIVOT)), sum);
    const vreal c = v_set1(mills_coefficient[0]);
    const vreal varying = v_fma(u, POLYNOMIAL_FROM(1, u, mills_coefficient), v_set1(mills_coefficient_low[0]));
    const vreal m = v_add(c, varying), m_low = v_add(v_sub(c, m), varying);
    vreal ratio_low;
    const vreal ratio = two_quotient(m, m_low, sum, sum_low, &ratio_low);
    const vreal change = v_fma(ratio, p, ratio_low);
    const vreal tail = v_add(ratio, change), tail_low = v_add(v_sub(ratio, tail), change);
    const vreal negative = v_negate(v_scale(product_once(a, tail, tail_low), v_sub(t, magic)));
    const vreal positive = v_fnma(x, scale_down(tail, t), x);

    const vreal large = v_select(v_lt(x, v_zero()), negative, v_select(v_lt(v_set1(MILLS_END), x), x, positive));
    return v_select(v_lt(v_abs(x), v_set1(CDF_SMALL)), small, large);
}

#else

/* 1 + (e^r - 1) as the rounded sum and the rest. */
FA_INLINE vreal exp_split(vreal r, vreal rest, vreal *low)
{
    const vreal one = v_set1(1);
    const vreal s = v_fma(v_mul(r, r), POLYNOMIAL(r, exp_coefficient), rest), p = v_add(r, s), e = v_add(one, p);
    *low = v_add(v_sub(p, v_sub(e, one)), v_add(v_sub(r, p), s));
    return e;
}

/* As for float. */
FA_INLINE vreal logistic_times(vreal factor, vreal x, vreal x_low)
{
    const vreal one = v_set1(1), zero = v_zero();
    const vmask negative = v_lt(x, zero);
    vreal t, rest, e_low, sum_low, quotient_low;
    const vreal main = exp_reduce(v_max(v_set1(LOGISTIC_LOWEST), v_negate(v_abs(x))), &t, &rest);
    const vreal low = v_select(negative, x_low, v_negate(x_low)), r = v_add(main, low);
    const vreal e = exp_split(r, v_add(rest, v_add(v_sub(main, r), low)), &e_low);
    const vreal n = v_sub(t, v_set1(V_MAGIC));
    const vreal sum = two_sum(one, v_scale(e, n), &sum_low);
    sum_low = v_add(sum_low, v_scale(e_low, n));
    const vreal quotient = two_quotient(v_select(negative, e, one), v_select(negative, e_low, zero), sum, sum_low, &quotient_low);
    const vreal result = v_scale(product_once(factor, quotient, quotient_low), v_select(negative, n, zero));
    /* Beyond this the quotient is 1; and the halves of a huge factor would overflow where product_once takes them apart. */
    return v_select(v_lt(v_set1(LOGISTIC_SATURATED), x), factor, result);
}

FA_INLINE vreal v_sigmoid(vreal x) { return logistic_times(v_set1(1), x, v_zero()); }

FA_INLINE vreal v_tanh(vreal x)
{
    const vreal one = v_set1(1), two = v_set1(2);
    const vreal a = v_abs(x), w = v_mul(x, x);
    const vreal below = v_fma(v_mul(a, w), POLYNOMIAL(w, tanh_coefficient), a);
    vreal t, rest, e_low, sum_low, quotient_low, difference_low;
    const vreal r = exp_reduce(v_mul(two, v_min(v_set1(TANH_SATURATED), a)), &t, &rest);
    const vreal e = exp_split(r, rest, &e_low), n = v_sub(t, v_set1(V_MAGIC));
    const vreal sum = two_sum(v_scale(e, n), one, &sum_low);
    const vreal quotient = two_quotient(two, v_zero(), sum, v_add(sum_low, v_scale(e_low, n)), &quotient_low);
    const vreal difference = two_sum(one, v_negate(quotient), &difference_low);
    const vreal above = v_add(difference, v_sub(difference_low, quotient_low));
    return v_copysign(v_select(v_lt(a, v_set1(TANH_SMALL)), below, above), x);
}

FA_INLINE vreal v_gelu(vreal x)
{
    const vreal zero = v_zero(), one = v_set1(1), half = v_set1(0.5), minus_half = v_set1(-0.5);
    vreal low, t, rest, e_low;

    const vreal w = v_mul(x, x);
    const vreal c = v_set1(cdf_coefficient[0]), c_low = v_set1(cdf_coefficient_low[0]);
    const vreal slope = v_fma(w, POLYNOMIAL_FROM(1, w, cdf_coefficient), c_low);
    const vreal first = v_mul(x, c);
    const vreal near = two_sum(half, first, &low);
    low = v_add(low, v_fma(x, slope, v_product_error(x, c, first)));
    const vreal small = product_once(x, near, low);

    const vreal a = v_min(v_set1(MILLS_END), v_abs(x));
    const vreal square = v_mul(a, a);
    const vreal square_low = v_mul(minus_half, v_product_error(a, a, square));
    const vreal main = exp_reduce(v_mul(minus_half, square), &t, &rest), r = v_add(main, square_low);
    const vreal e = exp_split(r, v_add(rest, v_add(v_sub(main, r), square_low)), &e_low);
    const vreal n = v_sub(t, v_set1(V_MAGIC));

    vreal sum_low, inverse_low, u_low;
    const vreal sum = two_sum(a, v_set1(MILLS_PIVOT), &sum_low);
    const vreal inverse = two_quotient(one, zero, sum, sum_low, &inverse_low);
    const vreal twice = v_set1(2 * MILLS_PIVOT);
    const vreal u = two_sum(one, v_negate(v_mul(twice, inverse)), &u_low);
    u_low = v_fnma(twice, inverse_low, u_low);
    vreal m = POLYNOMIAL_FROM(MILLS_SPLIT, u, mills_coefficient), m_low = zero;
    FA_UNROLL
    for (int i = MILLS_SPLIT - 1; i >= 0; i--) {
        vreal product_low, sum_rest;
        const vreal product = two_product(m, m_low, u, u_low, &product_low);
        m = two_sum(v_set1(mills_coefficient[i]), product, &sum_rest);
        m_low = v_add(v_add(sum_rest, product_low), v_set1(mills_coefficient_low[i]));
    }
    vreal ratio_low, tail_low, left_low;
    const vreal ratio = two_product(m, m_low, inverse, inverse_low, &ratio_low);
    const vreal tail = two_product(ratio, ratio_low, e, e_low, &tail_low);
    const vreal left = two_product(a, zero, tail, tail_low, &left_low);
    const vreal negative = v_scale(v_negate(v_add(left, left_low)), n);
    const vreal upper = two_sum(one, v_negate(v_scale(tail, n)), &low);
    const vreal positive = product_once(x, upper, v_sub(low, v_scale(tail_low, n)));

    const vreal large = v_select(v_lt(x, zero), negative, v_select(v_lt(v_set1(MILLS_END), x), x, positive));
    return v_select(v_lt(v_abs(x), v_set1(CDF_SMALL)), small, large);
}

#endif

/* ---- gates of recurrent cells ----
   Beside the rounding of the sums that go into a gate, 3 ULP are nothing, and a step has five of these per unit: no subnormals, no
   double length, divisions left to the caller, who can share one between two gates. */

#define MOST_ABREAST 8 /* vectors, of gate_exps and what else advances so */

#if defined(FA_REAL_F32)
#define GATE_LOWEST (-88.3f) /* e^88.3 is below 2^127.5, where the power of two has its end */
#define GATE_HIGHEST 69.0f   /* a sigmoid rounds to 1 */
#define GATE_TANH_END 10.0f  /* tanh(10) rounds to 1 */
#else
#define GATE_LOWEST (-709.0)
#define GATE_HIGHEST 650.0
#define GATE_TANH_END 20.0
#endif

/* x[i] = n ln 2 + r becomes 2^n (1 + (e^r - 1)) - less. The steps of the numbers are interleaved, a few of each: one after the other, each
   would wait for itself, as a processor looks ahead no further than the steps of one or two. */
FA_INLINE void gate_exps(vreal *x, const int count, const real less)
{
    const vreal magic = v_set1(V_MAGIC);
    vreal t[MOST_ABREAST], p[MOST_ABREAST];
    FA_UNROLL
    for (int i = 0; i < count; i++) {
        t[i] = v_fma(x[i], v_set1(LOG2_E), magic);
        const vreal n = v_sub(t[i], magic);
        x[i] = v_fnma(n, v_set1(LN2_LOW), v_fnma(n, v_set1(LN2_HIGH), x[i]));
    }
    FA_UNROLL
    for (int i = 0; i < count; i++) p[i] = v_fma(v_mul(x[i], x[i]), POLYNOMIAL(x[i], exp_coefficient), x[i]);
    FA_UNROLL
    for (int i = 0; i < count; i++) {
        const vreal scale = power_of_two(t[i]);
        x[i] = v_fma(p[i], scale, less == 0 ? scale : v_sub(scale, v_set1(less)));
    }
}

FA_INLINE vreal gate_exp(vreal x, const real less)
{
    gate_exps(&x, 1, less);
    return x;
}

/* sigmoid(x) = 1 / gate_sigmoid(x) = 1 / (1 + e^-x); 0 for x below GATE_LOWEST, where e^-x has no or hardly any room: a state of any
   size is forgotten then. */
FA_INLINE vreal gate_sigmoid(vreal x)
{
    const vreal lowest = v_set1(GATE_LOWEST), y = v_min(v_set1(GATE_HIGHEST), v_max(lowest, x));
    return v_select(v_lt(x, lowest), v_set1(REAL_INFINITY), v_add(v_set1(1), gate_exp(v_negate(y), 0)));
}

/* tanh(x) = t / (t + 2) with t = gate_tanh(x) = e^2x - 1, accurate near 0 too. */
FA_INLINE vreal gate_tanh(vreal x)
{
    const vreal y = v_min(v_set1(GATE_TANH_END), v_max(v_set1(-GATE_TANH_END), x));
    return gate_exp(v_add(y, y), 1);
}

FA_INLINE vreal v_silu(vreal x) { return logistic_times(v_max(v_set1(LOGISTIC_LOWEST), x), x, v_zero()); }

/* NaN stays NaN: v_max hands on its second argument. */
FA_INLINE vreal v_relu(vreal x) { return v_max(v_zero(), x); }

/* x / 2 (1 + tanh(u)) = x / (1 + e^-2u) with 2u = x (A + B x^2). e^-2u turns the rounding of 2u into a relative error up to a
   hundred times as large, so 2u is carried in double length. */
FA_INLINE vreal v_gelu_tanh(vreal x)
{
#if defined(FA_REAL_F32)
    const vreal A = v_set1(0x1.988454p+0f), A_low = v_set1(-0x1.857936p-25f); /* 2 sqrt(2 / pi) */
    const vreal B = v_set1(0x1.2444f2p-4f), B_low = v_set1(0x1.49b16ap-29f);  /* 0.044715 A */
    const vreal end = v_set1(12);                                             /* gelu(-12) rounds to 0 */
#else
    const vreal A = v_set1(0x1.9884533d43651p+0), A_low = v_set1(-0x1.cbc0d30ebfd15p-54); /* 2 sqrt(2 / pi) */
    const vreal B = v_set1(0x1.2444f2a4d8b4bp-4), B_low = v_set1(-0x1.6c843a29d1c7p-61);  /* 0.044715 A */
    const vreal end = v_set1(22);                                                         /* gelu(-22) rounds to 0 */
#endif
    const vreal y = v_max(v_negate(end), v_min(end, x));
    vreal sum_low, low;
    const vreal w = v_mul(y, y), w_low = v_product_error(y, y, w);
    vreal product_low;
    const vreal product = two_product(w, w_low, B, B_low, &product_low);
    const vreal sum = two_sum(A, product, &sum_low);
    const vreal u = two_product(sum, v_add(sum_low, v_add(product_low, A_low)), y, v_zero(), &low);
    return logistic_times(v_max(v_negate(end), x), u, low);
}

#endif
