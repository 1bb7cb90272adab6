/* y = f(x), element by element. The last, partial vector goes through the same f with masked loads and stores. */
#include "../common.h"

typedef vreal element_function(vreal x);

FA_INLINE void map(stored *y, const stored *x, fa_index n, element_function *f)
{
    fa_index i = 0;
    for (; i + VL <= n; i += VL) v_store_stored(y + i, f(v_load_stored(x + i)));
    if (i < n) v_store_stored_n(y + i, f(v_load_stored_n(x + i, n - i)), n - i);
}

void KERNEL(map_exp)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_exp); }
void KERNEL(map_tanh)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_tanh); }
void KERNEL(map_sigmoid)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_sigmoid); }
void KERNEL(map_relu)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_relu); }
void KERNEL(map_gelu)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_gelu); }
void KERNEL(map_gelu_tanh)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_gelu_tanh); }
void KERNEL(map_silu)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_silu); }

FA_INLINE vreal identity(vreal x) { return x; }

/* With `z` the sums before the activation are kept, for the gradient. */
FA_INLINE void bias_rows(real *c, real *z, fa_index ldc, const real *bias, fa_index rows, fa_index n, element_function *f)
{
    for (fa_index i = 0; i < rows; i++) {
        real *row = c + i * ldc, *kept = z ? z + i * ldc : NULL;
        fa_index j = 0;
        for (; j + VL <= n; j += VL) {
            const vreal x = bias ? v_add(v_load(row + j), v_load(bias + j)) : v_load(row + j);
            if (kept) v_store(kept + j, x);
            v_store(row + j, f(x));
        }
        if (j < n) {
            vreal x = v_load_n(row + j, n - j);
            if (bias) x = v_add(x, v_load_n(bias + j, n - j));
            if (kept) v_store_n(kept + j, x, n - j);
            v_store_n(row + j, f(x), n - j);
        }
    }
}

void KERNEL(bias_activation_rows)(real *c, real *z, fa_index ldc, const real *bias, fa_index rows, fa_index n, int activation)
{
    switch ((fa_activation)activation) {
    case FA_IDENTITY: bias_rows(c, z, ldc, bias, rows, n, identity); break;
    case FA_TANH: bias_rows(c, z, ldc, bias, rows, n, v_tanh); break;
    case FA_SIGMOID: bias_rows(c, z, ldc, bias, rows, n, v_sigmoid); break;
    case FA_RELU: bias_rows(c, z, ldc, bias, rows, n, v_relu); break;
    case FA_GELU: bias_rows(c, z, ldc, bias, rows, n, v_gelu); break;
    case FA_GELU_TANH: bias_rows(c, z, ldc, bias, rows, n, v_gelu_tanh); break;
    case FA_SILU: bias_rows(c, z, ldc, bias, rows, n, v_silu); break;
    case FA_EXP: bias_rows(c, z, ldc, bias, rows, n, v_exp); break;
    }
}

/* silu(gate) up */
void KERNEL(silu_gated)(stored *y, const stored *gate, const stored *up, fa_index n)
{
    fa_index i = 0;
    for (; i + VL <= n; i += VL) v_store_stored(y + i, v_mul(v_silu(v_load_stored(gate + i)), v_load_stored(up + i)));
    if (i < n) {
        const vreal a = v_silu(v_load_stored_n(gate + i, n - i));
        v_store_stored_n(y + i, v_mul(a, v_load_stored_n(up + i, n - i)), n - i);
    }
}
