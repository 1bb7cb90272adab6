/* The element-wise half of the recurrent cells, for one panel of units and all rows of a step. `gates` holds the sums of the products,
   row after row, a vector of units per gate; bias likewise, for one row.

     rnn   h' = f(a)
     lstm  i = s(a_i + p_i c), f = s(a_f + p_f c), g = tanh(a_g), c' = f c + i g, o = s(a_o + p_o c'), h' = o tanh(c')
           with coupled gates f = 1 - i; with a clip, c' is brought into [-clip, clip]
     gru   r = s(x_r + h_r), z = s(x_z + h_z), n = tanh(x_n + b_n + r (h_n + b_hn)), h' = n + z (h - n)
           with reset before the product: n = tanh(x_n + (r h) W_n' + b_n), in two calls, for the product lies between them

   with s the sigmoid. A gate clip clips the arguments of s, of f and of the tanh of g and n. Gate orders: lstm i, f, g, o (coupled i, g, o); gru r, z, n; bias of gru r, z, n, hn; peephole i, f, o (coupled i, o). The states are rows of ld
   that start at a multiple of VL; their lanes beyond `units` stay finite, being functions of zero weights. */
#include "../common.h"

FA_INLINE void store_units(real *y, vreal h, fa_index units)
{
    if (FA_LIKELY(units >= VL))
        v_store(y, h);
    else if (units > 0)
        v_store_n(y, h, units);
}

/* What the backward pass needs of row r: quantity `number`. */
FA_INLINE void save(const cell_rows *a, fa_index r, int number, vreal x)
{
    store_units(a->saved[r] + a->first + number * a->plane, x, a->units);
}

FA_INLINE vreal inverse(vreal a) { return v_div(v_set1(1), a); }

/* NaN stays NaN: v_min and v_max hand on their second argument. */
FA_INLINE vreal limited(vreal a, real limit) { return v_min(v_set1(limit), v_max(v_set1(-limit), a)); }

/* What goes into an activation; `clips` is known when a kernel is compiled. */
FA_INLINE vreal clipped(vreal a, const cell_rows *at, const int clips) { return clips ? limited(a, at->gate_clip) : a; }

FA_INLINE vreal biased(const real *gates, const real *bias, int gate)
{
    return v_add(v_load(gates + gate * VL), v_load(bias + gate * VL));
}

/* tanh from gate_tanh. */
FA_INLINE vreal tanh_from(vreal t) { return v_div(t, v_add(t, v_set1(2))); }

FA_INLINE vreal rnn_activation(vreal a, int activation)
{
    if (activation == FA_RELU) return v_relu(a);
    return activation == FA_TANH ? v_tanh(a) : v_sigmoid(a);
}

FA_INLINE void rnn_rows(const cell_rows *at, real *h, const real *gates, int activation, const int clips)
{
    const cell_rows a = *at;
    for (fa_index r = 0; r < a.rows; r++, gates += 2 * VL)
        for (int v = 0; v < 2; v++) {
            const vreal next = rnn_activation(clipped(biased(gates, a.bias, v), &a, clips), activation);
            v_store(h + r * a.ld + a.first + v * VL, next);
            if (a.y) store_units(a.y[r] + a.first + v * VL, next, a.units - v * VL);
        }
}

void KERNEL(rnn_gates)(const cell_rows *at, real *h, const real *gates, int activation)
{
    if (at->gate_clip > 0)
        rnn_rows(at, h, gates, activation, 1);
    else
        rnn_rows(at, h, gates, activation, 0);
}

/* c' from the sums of the gates i, f, g; what is to be saved of these goes to gate[0..2]. */
FA_INLINE vreal lstm_cell(vreal gate[3], vreal i, vreal f, vreal g, vreal before, int save_gates)
{
    i = gate_sigmoid(i);
    f = gate_sigmoid(f);
    g = gate_tanh(g);
    if (save_gates) {
        gate[0] = inverse(i);
        gate[1] = inverse(f);
        gate[2] = tanh_from(g);
    }
    return v_add(v_div(before, f), v_div(g, v_mul(i, v_add(g, v_set1(2)))));
}

/* The same with f = 1 - i. */
FA_INLINE vreal coupled_cell(vreal gate[3], vreal i, vreal g, vreal before)
{
    gate[0] = inverse(gate_sigmoid(i));
    gate[1] = tanh_from(gate_tanh(g));
    return v_fma(gate[0], gate[1], v_mul(v_sub(v_set1(1), gate[0]), before));
}

FA_INLINE void lstm_rows(const cell_rows *at, real *h, real *c, const real *gates, const real *peephole, real clip,
                         const int coupled, const int clips)
{
    const cell_rows a = *at;
    const real *bias = a.bias;
    const int last = coupled ? 2 : 3; /* gate o, and the first row of what is saved after the gates */
    const vreal peep_i = peephole ? v_load(peephole) : v_zero();
    const vreal peep_f = peephole && !coupled ? v_load(peephole + VL) : v_zero();
    const vreal peep_o = peephole ? v_load(peephole + (last - 1) * VL) : v_zero(), two = v_set1(2);
    for (fa_index r = 0; r < a.rows; r++, gates += (last + 1) * VL) {
        real *cell = c + r * a.ld + a.first;
        const vreal before = v_load(cell);
        vreal i = biased(gates, bias, 0), o = biased(gates, bias, last), gate[3], after;
        if (peephole) i = v_fma(peep_i, before, i);
        i = clipped(i, &a, clips);
        const vreal g = clipped(biased(gates, bias, last - 1), &a, clips);
        if (coupled) {
            after = coupled_cell(gate, i, g, before);
        } else {
            vreal f = biased(gates, bias, 1);
            if (peephole) f = v_fma(peep_f, before, f);
            after = lstm_cell(gate, i, clipped(f, &a, clips), g, before, a.saved != NULL);
        }
        if (clip > 0) after = limited(after, clip);
        if (peephole) o = v_fma(peep_o, after, o);
        o = gate_sigmoid(clipped(o, &a, clips));
        const vreal t = gate_tanh(after);
        const vreal next = v_div(t, v_mul(o, v_add(t, two)));
        if (a.saved) {
            FA_UNROLL
            for (int n = 0; n < last; n++) save(&a, r, n, gate[n]);
            save(&a, r, last, inverse(o));
            save(&a, r, last + 1, after);
        }
        v_store(cell, after);
        v_store(h + r * a.ld + a.first, next);
        if (a.y) store_units(a.y[r] + a.first, next, a.units);
    }
}

void KERNEL(lstm_gates)(const cell_rows *at, real *h, real *c, const real *gates, const real *peephole, real clip, int coupled)
{
    const int clips = at->gate_clip > 0;
    if (coupled && clips)
        lstm_rows(at, h, c, gates, peephole, clip, 1, 1);
    else if (coupled)
        lstm_rows(at, h, c, gates, peephole, clip, 1, 0);
    else if (clips)
        lstm_rows(at, h, c, gates, peephole, clip, 0, 1);
    else
        lstm_rows(at, h, c, gates, peephole, clip, 0, 0);
}

FA_INLINE void gru_gates_of_rows(const cell_rows *at, real *h, const real *before, const real *gates_x, const real *gates_h,
                                 const int clips)
{
    const cell_rows a = *at;
    const real *bias = a.bias;
    for (fa_index r = 0; r < a.rows; r++, gates_x += 3 * VL, gates_h += 3 * VL) {
        const vreal reset = gate_sigmoid(clipped(v_add(biased(gates_x, bias, 0), v_load(gates_h)), &a, clips));
        const vreal update = gate_sigmoid(clipped(v_add(biased(gates_x, bias, 1), v_load(gates_h + VL)), &a, clips));
        const vreal inner = v_add(v_load(gates_h + 2 * VL), v_load(bias + 3 * VL));
        const vreal n = v_tanh(clipped(v_add(v_div(inner, reset), biased(gates_x, bias, 2)), &a, clips));
        const vreal next = v_add(v_div(v_sub(v_load(before + r * a.ld + a.first), n), update), n);
        if (a.saved) {
            save(&a, r, 0, inverse(reset));
            save(&a, r, 1, inverse(update));
            save(&a, r, 2, n);
            save(&a, r, 3, inner);
        }
        v_store(h + r * a.ld + a.first, next);
        if (a.y) store_units(a.y[r] + a.first, next, a.units);
    }
}

void KERNEL(gru_gates)(const cell_rows *at, real *h, const real *before, const real *gates_x, const real *gates_h)
{
    if (at->gate_clip > 0)
        gru_gates_of_rows(at, h, before, gates_x, gates_h, 1);
    else
        gru_gates_of_rows(at, h, before, gates_x, gates_h, 0);
}

/* First half of gru with reset before the product: reset_h = r h, update = 1 / z. */
FA_INLINE void gru_reset_of_rows(const cell_rows *at, real *reset_h, real *update, const real *before, const real *gates_x,
                                 const real *gates_h, const int clips)
{
    const cell_rows a = *at;
    const real *bias = a.bias;
    for (fa_index r = 0; r < a.rows; r++, gates_x += 3 * VL, gates_h += 2 * VL) {
        const fa_index i = r * a.ld + a.first;
        const vreal reset = gate_sigmoid(clipped(v_add(biased(gates_x, bias, 0), v_load(gates_h)), &a, clips));
        const vreal z = gate_sigmoid(clipped(v_add(biased(gates_x, bias, 1), v_load(gates_h + VL)), &a, clips));
        v_store(update + i, z);
        if (a.saved) {
            save(&a, r, 0, inverse(reset));
            save(&a, r, 1, inverse(z));
        }
        v_store(reset_h + i, v_div(v_load(before + i), reset));
    }
}

void KERNEL(gru_reset)(const cell_rows *at, real *reset_h, real *update, const real *before, const real *gates_x,
                       const real *gates_h)
{
    if (at->gate_clip > 0)
        gru_reset_of_rows(at, reset_h, update, before, gates_x, gates_h, 1);
    else
        gru_reset_of_rows(at, reset_h, update, before, gates_x, gates_h, 0);
}

/* Second half. Rows of gates_n are panels of two vectors of units; the caller points at the right one. */
FA_INLINE void gru_update_of_rows(const cell_rows *at, real *h, const real *before, const real *update, const real *gates_x,
                                  const real *gates_n, const int clips)
{
    const cell_rows a = *at;
    const real *bias = a.bias;
    for (fa_index r = 0; r < a.rows; r++, gates_x += 3 * VL, gates_n += 2 * VL) {
        const fa_index i = r * a.ld + a.first;
        const vreal inner = v_add(v_load(gates_n), v_load(bias + 3 * VL));
        const vreal n = v_tanh(clipped(v_add(biased(gates_x, bias, 2), inner), &a, clips));
        const vreal next = v_add(v_div(v_sub(v_load(before + i), n), v_load(update + i)), n);
        if (a.saved) save(&a, r, 2, n);
        v_store(h + i, next);
        if (a.y) store_units(a.y[r] + a.first, next, a.units);
    }
}

void KERNEL(gru_update)(const cell_rows *at, real *h, const real *before, const real *update, const real *gates_x,
                        const real *gates_n)
{
    if (at->gate_clip > 0)
        gru_update_of_rows(at, h, before, update, gates_x, gates_n, 1);
    else
        gru_update_of_rows(at, h, before, update, gates_x, gates_n, 0);
}
