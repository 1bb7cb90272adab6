/* dx = dy f'(x), element by element, with q = sigmoid(-|x|), s = sigmoid(x), Phi and phi the normal distribution and its density:

     relu     x > 0                          sigmoid    q - q^2: small derivatives keep their digits on both sides
     tanh     1 - tanh(x)^2                  silu       s + x (q - q^2)
     gelu     Phi(x) + x phi(x)              gelu_tanh  s(u) + x (q - q^2)(u) u',   u = x (A + B x^2), u' = A + 3 B x^2

   Where f' is 0 or 1 to the last bit, x is replaced by the nearest such point, so no infinity is multiplied by 0. NaN gives NaN,
   also in relu. dx may be dy or x. */
#include "group.h"

#if defined(FA_REAL_F32)
#define SILU_END 115.0f
#define GELU_END 15.0f
#define GELU_TANH_END 12.0f
#else
#define SILU_END 760.0
#define GELU_END 40.0
#define GELU_TANH_END 22.0
#endif
#define INVERSE_ROOT_2_PI REAL(0x1.9884533d43651p-2)
#define GELU_TANH_A REAL(0x1.9884533d43651p+0) /* 2 sqrt(2 / pi) */
#define GELU_TANH_B REAL(0x1.2444f2a4d8b4bp-4) /* 0.044715 A */

FA_INLINE vreal limited(vreal x, real end) { return v_max(v_set1(-end), v_min(v_set1(end), x)); }

/* s(x), and its derivative. */
FA_INLINE vreal sigmoid_and_slope(vreal x, vreal *slope)
{
    const vreal q = v_sigmoid(v_negate(v_abs(x)));
    *slope = v_fnma(q, q, q);
    return v_select(v_lt(x, v_zero()), q, v_sub(v_set1(1), q));
}

FA_INLINE vreal relu_slope(vreal x) { return v_select(v_lt(v_zero(), x), v_set1(1), v_select(v_is_nan(x), x, v_zero())); }

FA_INLINE vreal tanh_slope(vreal x)
{
    const vreal t = v_tanh(x);
    return v_fnma(t, t, v_set1(1));
}

FA_INLINE vreal sigmoid_slope(vreal x)
{
    vreal slope;
    sigmoid_and_slope(x, &slope);
    return slope;
}

FA_INLINE vreal silu_slope(vreal x)
{
    const vreal y = limited(x, SILU_END);
    vreal slope;
    const vreal s = sigmoid_and_slope(y, &slope);
    return v_fma(y, slope, s);
}

FA_INLINE vreal gelu_tanh_slope(vreal x)
{
    const vreal y = limited(x, GELU_TANH_END), w = v_mul(y, y), A = v_set1(GELU_TANH_A), B = v_set1(GELU_TANH_B);
    vreal slope;
    const vreal s = sigmoid_and_slope(v_mul(y, v_fma(w, B, A)), &slope);
    return v_fma(v_mul(y, slope), v_fma(v_mul(v_set1(3), B), w, A), s);
}

/* Phi as in v_gelu: 1/2 + x P(x^2) near 0, elsewhere from Phi(-a) = e^(-a^2 / 2) M(a); here single length is enough. */
FA_INLINE vreal gelu_slope(vreal x)
{
    const vreal half = v_set1(REAL(0.5)), y = limited(x, GELU_END), a = v_abs(y), w = v_mul(y, y);
    const vreal density = v_exp(v_negate(v_mul(half, w)));
    const vreal sum = v_add(a, v_set1(MILLS_PIVOT)), u = v_div(v_sub(a, v_set1(MILLS_PIVOT)), sum);
    const vreal tail = v_mul(density, v_div(POLYNOMIAL(u, mills_coefficient), sum));
    const vreal small = v_fma(y, POLYNOMIAL(w, cdf_coefficient), half);
    const vreal large = v_select(v_lt(y, v_zero()), tail, v_sub(v_set1(1), tail));
    const vreal phi = v_select(v_lt(a, v_set1(CDF_SMALL)), small, large);
    return v_fma(v_mul(y, v_set1(INVERSE_ROOT_2_PI)), density, phi);
}

typedef struct {
    real *dx;
    const real *dy, *x;
    vreal (*slope)(vreal x);
} slope_walk;

FA_INLINE void slope_step(void *walk, fa_index i, const int vectors, fa_index left)
{
    const slope_walk *w = walk;
    vreal a[GROUP], d[GROUP];
    load_group(a, w->x + i, vectors, left);
    load_group(d, w->dy + i, vectors, left);
    FA_UNROLL
    for (int k = 0; k < vectors; k++) a[k] = v_mul(d[k], w->slope(a[k]));
    store_group(w->dx + i, a, vectors, left);
}

FA_INLINE void apply_slope(real *dx, const real *dy, const real *x, fa_index n, vreal (*slope)(vreal x))
{
    slope_walk walk = {dx, dy, x, slope};
    for_groups(n, slope_step, &walk);
}

void KERNEL(map_backward)(real *dx, const real *dy, const real *x, fa_index n, int activation)
{
    switch ((fa_activation)activation) {
    case FA_TANH: apply_slope(dx, dy, x, n, tanh_slope); break;
    case FA_SIGMOID: apply_slope(dx, dy, x, n, sigmoid_slope); break;
    case FA_RELU: apply_slope(dx, dy, x, n, relu_slope); break;
    case FA_GELU: apply_slope(dx, dy, x, n, gelu_slope); break;
    case FA_GELU_TANH: apply_slope(dx, dy, x, n, gelu_tanh_slope); break;
    case FA_SILU: apply_slope(dx, dy, x, n, silu_slope); break;
    case FA_EXP: apply_slope(dx, dy, x, n, v_exp); break;
    case FA_IDENTITY: break; /* callers have dy already */
    }
}

/* y = silu(gate) up: dgate = dy up silu'(gate), dup = dy silu(gate). */
void KERNEL(silu_gated_backward)(real *dgate, real *dup, const real *dy, const real *gate, const real *up, fa_index n)
{
    for (fa_index i = 0; i < n; i += VL) {
        const fa_index count = n - i;
        const vreal d = load_some(dy + i, count), g = load_some(gate + i, count), u = load_some(up + i, count);
        store_some(dgate + i, v_mul(v_mul(d, u), silu_slope(g)), count);
        store_some(dup + i, v_mul(d, v_silu(g)), count);
    }
}
