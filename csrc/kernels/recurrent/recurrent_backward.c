/* The element-wise half of the recurrent cells backward, for some units and all rows of a step. With D the gradient of h', of the
   output and of the later steps together, and in the names of recurrent.c:

     rnn   da = D f'(h'):  1 - h'^2, h' (1 - h'), or 1 where h' > 0; D itself for the identity, which a projection needs
     lstm  da_o = D tanh(c') o (1 - o),  C = dc' + D o (1 - tanh(c')^2) + p_o da_o,  da_i = C g i (1 - i),  da_f = C c f (1 - f),
           da_g = C i (1 - g^2),  dc = C f + p_i da_i + p_f da_f
           with coupled gates da_i = C (g - c) i (1 - i),  dc = C (1 - i) + p_i da_i; with a clip C is 0 where |c'| has reached it
     gru   da_n = D (1 - z) (1 - n^2),  da_z = D (h - n) z (1 - z),  da_r = da_n (h_n + b_hn) r (1 - r),  d(h_n) = da_n r,
           dh = D z + what the products with w_hh give
           with reset before the product: da_r = d(r h) h r (1 - r),  dh = D z + d(r h) r + ..., in two calls

   NaN and infinities go where this arithmetic takes them; a row depends on itself alone. */
#include "../common.h"

FA_INLINE vreal load_units(const real *p, fa_index units) { return FA_LIKELY(units >= VL) ? v_load(p) : v_load_n(p, units); }

FA_INLINE void store_units(real *p, vreal a, fa_index units)
{
    if (FA_LIKELY(units >= VL))
        v_store(p, a);
    else
        v_store_n(p, a, units);
}

/* 1 - a^2, and a (1 - a). */
FA_INLINE vreal tanh_slope(vreal a) { return v_fnma(a, a, v_set1(1)); }
FA_INLINE vreal sigmoid_slope(vreal a) { return v_mul(a, v_sub(v_set1(1), a)); }

/* The gradient of h': from the later steps, and from the output. */
FA_INLINE vreal sum_of_gradients(const real *dh, const real *const *dy, fa_index row, fa_index at, fa_index units)
{
    const vreal later = v_load(dh);
    return dy ? v_add(later, load_units(dy[row] + at, units)) : later;
}

void KERNEL(rnn_backward)(const cell_gradients *gradients, const real *dh, const real *const *y, int activation)
{
    const cell_gradients g = *gradients;
    real *da = g.da;
    for (fa_index r = 0; r < g.rows; r++, da += g.ldda, dh += g.ld)
        for (fa_index u = 0; u < g.units; u += VL) {
            const fa_index at = g.first + u, left = g.units - u;
            const vreal d = sum_of_gradients(dh + at, g.dy, r * g.row_step, at, left);
            if (activation == FA_IDENTITY) {
                store_units(da + at, d, left);
                continue;
            }
            const vreal h = load_units(y[r * g.row_step] + at, left);
            const vreal a = activation == FA_RELU   ? v_select(v_le(h, v_zero()), v_zero(), d)
                            : activation == FA_TANH ? v_mul(d, tanh_slope(h))
                                                    : v_mul(d, sigmoid_slope(h));
            store_units(da + at, a, left);
        }
}

FA_INLINE void lstm_rows(const cell_gradients *gradients, const real *dh, real *dc, const real *const *c_before,
                         const real *peephole, real clip, const int coupled)
{
    const cell_gradients s = *gradients;
    const fa_index H = s.H;
    real *da = s.da;
    const int last = coupled ? 2 : 3; /* gate o; g comes before it */
    const vreal zero = v_zero(), one = v_set1(1);
    for (fa_index r = 0; r < s.rows; r++, da += s.ldda, dh += s.ld, dc += s.ld)
        for (fa_index u = 0; u < s.units; u += VL) {
            const fa_index at = s.first + u, left = s.units - u;
            const real *gates = s.saved[r * s.row_step] + at;
            const vreal i = load_units(gates, left), f = coupled ? v_sub(one, i) : load_units(gates + H, left);
            const vreal g = load_units(gates + (last - 1) * H, left), o = load_units(gates + last * H, left);
            const vreal after = load_units(gates + (last + 1) * H, left), t = v_tanh(after);
            const vreal before = load_units(c_before[r * s.row_step] + at, left);
            const vreal d = sum_of_gradients(dh + at, s.dy, r * s.row_step, at, left);
            const vreal da_o = v_mul(v_mul(d, t), sigmoid_slope(o));
            vreal cell = v_fma(v_mul(d, o), tanh_slope(t), v_load(dc + at));
            if (peephole) cell = v_fma(load_units(peephole + (last - 1) * H + at, left), da_o, cell);
            if (clip > 0) cell = v_select(v_le(v_set1(clip), v_abs(after)), zero, cell);
            const vreal da_i = v_mul(v_mul(cell, coupled ? v_sub(g, before) : g), sigmoid_slope(i));
            vreal handed = v_mul(cell, f);
            if (peephole) handed = v_fma(load_units(peephole + at, left), da_i, handed);
            if (!coupled) {
                const vreal da_f = v_mul(v_mul(cell, before), sigmoid_slope(f));
                if (peephole) handed = v_fma(load_units(peephole + H + at, left), da_f, handed);
                store_units(da + H + at, da_f, left);
            }
            store_units(da + at, da_i, left);
            store_units(da + (last - 1) * H + at, v_mul(v_mul(cell, i), tanh_slope(g)), left);
            store_units(da + last * H + at, da_o, left);
            /* The lanes beyond the units stay zero. */
            v_store(dc + at, left >= VL ? handed : v_select(v_first(left), handed, zero));
        }
}

void KERNEL(lstm_backward)(const cell_gradients *gradients, const real *dh, real *dc, const real *const *c_before,
                           const real *peephole, real clip, int coupled)
{
    if (coupled)
        lstm_rows(gradients, dh, dc, c_before, peephole, clip, 1);
    else
        lstm_rows(gradients, dh, dc, c_before, peephole, clip, 0);
}

void KERNEL(gru_backward)(const cell_gradients *gradients, real *dh, const real *const *h_before, int reset_before)
{
    const cell_gradients g = *gradients;
    const fa_index H = g.H;
    real *da = g.da;
    for (fa_index r = 0; r < g.rows; r++, da += g.ldda, dh += g.ld)
        for (fa_index u = 0; u < g.units; u += VL) {
            const fa_index at = g.first + u, left = g.units - u;
            const real *gates = g.saved[r * g.row_step] + at;
            const vreal reset = load_units(gates, left), z = load_units(gates + H, left), n = load_units(gates + 2 * H, left);
            const vreal before = load_units(h_before[r * g.row_step] + at, left);
            const vreal d = sum_of_gradients(dh + at, g.dy, r * g.row_step, at, left);
            const vreal da_n = v_mul(v_mul(d, v_sub(v_set1(1), z)), tanh_slope(n));
            store_units(da + 2 * H + at, v_mul(v_mul(d, v_sub(before, n)), sigmoid_slope(z)), left);
            store_units(da + 3 * H + at, da_n, left);
            if (reset_before) {
                store_units(da + at, v_mul(reset, before), left);
            } else {
                store_units(da + at, v_mul(da_n, reset), left);
                store_units(da + H + at, v_mul(v_mul(da_n, load_units(gates + 3 * H, left)), sigmoid_slope(reset)), left);
            }
            v_store(dh + at, v_mul(d, z));
        }
}

void KERNEL(gru_reset_backward)(const cell_gradients *gradients, real *dh, const real *d_reset, const real *const *h_before)
{
    const cell_gradients g = *gradients;
    const fa_index H = g.H;
    real *da = g.da;
    for (fa_index r = 0; r < g.rows; r++, da += g.ldda, dh += g.ld, d_reset += g.ld)
        for (fa_index u = 0; u < g.units; u += VL) {
            const fa_index at = g.first + u, left = g.units - u;
            const vreal reset = load_units(g.saved[r * g.row_step] + at, left), d = v_load(d_reset + at);
            const vreal before = load_units(h_before[r * g.row_step] + at, left);
            store_units(da + H + at, v_mul(v_mul(d, before), sigmoid_slope(reset)), left);
            v_store(dh + at, v_fma(d, reset, v_load(dh + at)));
        }
}
