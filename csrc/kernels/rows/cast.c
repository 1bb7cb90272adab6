/* Between the numbers of arrays and those of arithmetic: exact in one direction, rounded to nearest even in the other. */
#include "../common.h"

void KERNEL(widen)(real *y, const stored *x, fa_index n)
{
    fa_index i = 0;
    for (; i + VL <= n; i += VL) v_store(y + i, v_load_stored(x + i));
    if (i < n) v_store_n(y + i, v_load_stored_n(x + i, n - i), n - i);
}

void KERNEL(narrow)(stored *y, const real *x, fa_index n)
{
    fa_index i = 0;
    for (; i + VL <= n; i += VL) v_store_stored(y + i, v_load(x + i));
    if (i < n) v_store_stored_n(y + i, v_load_n(x + i, n - i), n - i);
}
