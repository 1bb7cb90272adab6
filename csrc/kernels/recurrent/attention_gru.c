/* The element-wise half of a GRU step whose input gates come in two parts, in plain rows:

     r = sigmoid(x_r + c_r + h_r),  z = sigmoid(x_z + c_z + h_z),  n = tanh(x_n + c_n + r h_n),  h' = n + z (h - n)

   x and c hold r, z, n; sums_h holds n, r, z, as da of gru_backward does; biases are in the sums. Saved are r, z, n, h_n. */
#include "../common.h"
#include "../rows/rows.h"

void KERNEL(gru_rows)(real_rows h, real_rows saved, const_rows before, const_rows x, const_rows c, const_rows sums_h,
                      fa_index rows, fa_index H)
{
    const vreal one = v_set1(1);
    for (fa_index row = 0; row < rows; row++) {
        for (fa_index u = 0; u < H; u += VL) {
            const fa_index left = H - u;
            const vreal inner = load_some(sums_h.p + u, left);
            const vreal x_r = v_add(load_some(x.p + u, left), load_some(c.p + u, left));
            const vreal x_z = v_add(load_some(x.p + H + u, left), load_some(c.p + H + u, left));
            const vreal x_n = v_add(load_some(x.p + 2 * H + u, left), load_some(c.p + 2 * H + u, left));
            const vreal r = v_div(one, gate_sigmoid(v_add(x_r, load_some(sums_h.p + H + u, left))));
            const vreal z = v_div(one, gate_sigmoid(v_add(x_z, load_some(sums_h.p + 2 * H + u, left))));
            const vreal n = v_tanh(v_fma(r, inner, x_n));
            store_some(h.p + u, v_fma(z, v_sub(load_some(before.p + u, left), n), n), left);
            if (!saved.p) continue;
            store_some(saved.p + u, r, left);
            store_some(saved.p + H + u, z, left);
            store_some(saved.p + 2 * H + u, n, left);
            store_some(saved.p + 3 * H + u, inner, left);
        }
        h.p += h.ld, before.p += before.ld, x.p += x.ld, c.p += c.ld, sums_h.p += sums_h.ld;
        if (saved.p) saved.p += saved.ld;
    }
}
