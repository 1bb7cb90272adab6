/* Element-wise loops: GROUP vectors together, whose chains of operations the compiler interleaves (INTERLEAVED in variants.py), then what
   is left, vector by vector. */
#ifndef FA_KERNELS_GROUP_H
#define FA_KERNELS_GROUP_H

#include "../common.h"

/* ns for a vector of gelu, silu and sigmoid by GROUP, in float (Zen 3, 16 registers): 1: 16.4, 9.7, 8.8; 2: 15.3, 8.7, 7.3; 4: 13.1, 6.7,
   6.2; 8: 14.0, 7.5, 6.8. The functions of double fill the registers sooner. Without multiply-add they are so long that their size counts. */
#if !FA_HAS_FMA
#define GROUP 1
#elif defined(FA_REAL_F32)
#define GROUP 4
#else
#define GROUP 2
#endif

FA_INLINE void load_group(vreal *a, const stored *x, const int vectors, fa_index n)
{
    FA_UNROLL
    for (int k = 0; k < vectors; k++) a[k] = vectors > 1 ? v_load_stored(x + k * VL) : load_stored_some(x, n);
}
FA_INLINE void store_group(stored *y, const vreal *a, const int vectors, fa_index n)
{
    FA_UNROLL
    for (int k = 0; k < vectors; k++)
        if (vectors > 1)
            v_store_stored(y + k * VL, a[k]);
        else
            store_stored_some(y, a[k], n);
}

/* Runs step(walk, i, vectors, n - i) for each group of the elements from i on: GROUP vectors, or one that may be partial. */
typedef void group_step(void *walk, fa_index i, const int vectors, fa_index left);
FA_INLINE void for_groups(fa_index n, group_step *step, void *walk)
{
    fa_index i = 0;
    for (; GROUP > 1 && i + GROUP * VL <= n; i += GROUP * VL) step(walk, i, GROUP, n - i);
    for (; i < n; i += VL) step(walk, i, 1, n - i);
}

#endif
