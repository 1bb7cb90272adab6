/* c = activation(c + bias), row by row, in place. */
#include "group.h"

/* Rows of a panel are shorter than a group of vectors: some of them pass through a block of so many elements. */
#define BLOCK (16 * GROUP * VL)

typedef void map_kernel(real *y, const real *x, fa_index n);

FA_INLINE vreal identity(vreal x) { return x; }

/* y = f(c + bias); the sums are kept where z is not NULL, and `plain` says that it is, and that bias is not: the usual case. */
FA_INLINE void bias_row(real *y, real *z, const real *c, const real *bias, fa_index n, vreal (*f)(vreal x), const int plain)
{
    fa_index j = 0;
    for (; j + VL <= n; j += VL) {
        const vreal x = plain || bias ? v_add(v_load(c + j), v_load(bias + j)) : v_load(c + j);
        if (!plain && z) v_store(z + j, x);
        v_store(y + j, f(x));
    }
    if (j < n) {
        vreal x = v_load_n(c + j, n - j);
        if (plain || bias) x = v_add(x, v_load_n(bias + j, n - j));
        if (!plain && z) v_store_n(z + j, x, n - j);
        v_store_n(y + j, f(x), n - j);
    }
}

FA_INLINE void short_function(real *c, real *z, fa_index ldc, const real *bias, fa_index rows, fa_index n, vreal (*f)(vreal x))
{
    for (fa_index i = 0; i < rows; i++) {
        if (bias && !z)
            bias_row(c + i * ldc, NULL, c + i * ldc, bias, n, f, 1);
        else
            bias_row(c + i * ldc, z ? z + i * ldc : NULL, c + i * ldc, bias, n, f, 0);
    }
}

FA_INLINE void copy_row(real *y, const real *x, fa_index n)
{
    fa_index j = 0;
    for (; j + VL <= n; j += VL) v_store(y + j, v_load(x + j));
    if (j < n) v_store_n(y + j, v_load_n(x + j, n - j), n - j);
}

static void long_function(real *c, real *z, fa_index ldc, const real *bias, fa_index rows, fa_index n, map_kernel *f)
{
    real block[BLOCK];
    const fa_index together = n < BLOCK / 4 ? BLOCK / fa_max(1, n) : 1;
    short_function(c, z, ldc, bias, rows, n, identity);
    if (together == 1 || rows == 1) {
        for (fa_index i = 0; i < rows; i++) f(c + i * ldc, c + i * ldc, n);
        return;
    }
    for (fa_index first = 0; first < rows; first += together) {
        const fa_index count = fa_min(together, rows - first);
        for (fa_index i = 0; i < count; i++) copy_row(block + i * n, c + (first + i) * ldc, n);
        f(block, block, count * n);
        for (fa_index i = 0; i < count; i++) copy_row(c + (first + i) * ldc, block + i * n, n);
    }
}

void KERNEL(bias_activation_rows)(real *c, real *z, fa_index ldc, const real *bias, fa_index rows, fa_index n, int activation)
{
    switch ((fa_activation)activation) {
    case FA_IDENTITY: short_function(c, z, ldc, bias, rows, n, identity); break;
    case FA_RELU: short_function(c, z, ldc, bias, rows, n, v_relu); break;
    case FA_TANH: long_function(c, z, ldc, bias, rows, n, KERNEL(map_tanh)); break;
    case FA_SIGMOID: long_function(c, z, ldc, bias, rows, n, KERNEL(map_sigmoid)); break;
    case FA_GELU: long_function(c, z, ldc, bias, rows, n, KERNEL(map_gelu)); break;
    case FA_GELU_TANH: long_function(c, z, ldc, bias, rows, n, KERNEL(map_gelu_tanh)); break;
    case FA_SILU: long_function(c, z, ldc, bias, rows, n, KERNEL(map_silu)); break;
    case FA_EXP: long_function(c, z, ldc, bias, rows, n, KERNEL(map_exp)); break;
    }
}
