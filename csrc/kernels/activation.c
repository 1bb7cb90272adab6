/* y = f(x), element by element. The last, partial vector goes through the same f with masked loads and stores. */
#include "common.h"

#include "../activation.h"

#define MAP(name, f)                                                                 \
    void KERNEL(name)(stored * y, const stored *x, fa_index n)                       \
    {                                                                                \
        fa_index i = 0;                                                              \
        for (; i + VL <= n; i += VL) v_store_stored(y + i, f(v_load_stored(x + i))); \
        if (i < n) v_store_stored_n(y + i, f(v_load_stored_n(x + i, n - i)), n - i); \
    }

MAP(map_exp, v_exp)
MAP(map_tanh, v_tanh)
MAP(map_sigmoid, v_sigmoid)
MAP(map_relu, v_relu)
MAP(map_gelu, v_gelu)
MAP(map_gelu_tanh, v_gelu_tanh)
MAP(map_silu, v_silu)

FA_INLINE vreal identity(vreal x) { return x; }

/* The terms of a row: with `z` the sum before the activation is kept, for the gradient. */
#define BIAS_ROWS(f)                                                                           \
    for (fa_index i = 0; i < rows; i++) {                                                      \
        real *row = c + i * ldc, *kept = z ? z + i * ldc : NULL;                               \
        fa_index j = 0;                                                                        \
        for (; j + VL <= n; j += VL) {                                                         \
            const vreal x = bias ? v_add(v_load(row + j), v_load(bias + j)) : v_load(row + j); \
            if (kept) v_store(kept + j, x);                                                    \
            v_store(row + j, f(x));                                                            \
        }                                                                                      \
        if (j < n) {                                                                           \
            vreal x = v_load_n(row + j, n - j);                                                \
            if (bias) x = v_add(x, v_load_n(bias + j, n - j));                                 \
            if (kept) v_store_n(kept + j, x, n - j);                                           \
            v_store_n(row + j, f(x), n - j);                                                   \
        }                                                                                      \
    }                                                                                          \
    break;

void KERNEL(bias_activation_rows)(real *c, real *z, fa_index ldc, const real *bias, fa_index rows, fa_index n, int activation)
{
    switch ((fa_activation)activation) {
    case FA_IDENTITY: BIAS_ROWS(identity)
    case FA_TANH: BIAS_ROWS(v_tanh)
    case FA_SIGMOID: BIAS_ROWS(v_sigmoid)
    case FA_RELU: BIAS_ROWS(v_relu)
    case FA_GELU: BIAS_ROWS(v_gelu)
    case FA_GELU_TANH: BIAS_ROWS(v_gelu_tanh)
    case FA_SILU: BIAS_ROWS(v_silu)
    case FA_EXP: BIAS_ROWS(v_exp)
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
