/* What kernels on rows share: partial vectors, and sums that long rows do not spoil. Sums run in blocks of SUM_BLOCK vectors, and
   the blocks are added in double length. */
#ifndef FA_KERNELS_ROWS_H
#define FA_KERNELS_ROWS_H

#include "common.h"

/* A chain of 32 additions was off by up to 3 eps in rows of 64 to 257, and softmax promises 4 for the whole. */
#define SUM_BLOCK 8

typedef struct {
    vreal high, low;
} long_sum;

/* The first `count` lanes; a constant VL makes it a plain load or store. */
FA_INLINE vreal load_some(const real *p, fa_index count) { return count >= VL ? v_load(p) : v_load_n(p, count); }
FA_INLINE void store_some(real *p, vreal a, fa_index count)
{
    if (count >= VL)
        v_store(p, a);
    else
        v_store_n(p, a, count);
}

/* The same of what arrays hold. */
FA_INLINE vreal load_stored_some(const stored *p, fa_index count)
{
    return count >= VL ? v_load_stored(p) : v_load_stored_n(p, count);
}
FA_INLINE void store_stored_some(stored *p, vreal a, fa_index count)
{
    if (count >= VL)
        v_store_stored(p, a);
    else
        v_store_stored_n(p, a, count);
}

FA_INLINE void add_block(long_sum *total, vreal block)
{
    vreal rest;
    total->high = two_sum(total->high, block, &rest);
    total->low = v_add(total->low, rest);
}

/* At an overflow or an infinity there is no rest. */
FA_INLINE vreal lanes_total(const long_sum *total)
{
    const vreal x = v_add(total->high, total->low);
    return v_select(v_is_nan(x), total->high, x);
}
FA_INLINE real long_total(const long_sum *total)
{
    const double high = (double)v_reduce_add(total->high);
    return (real)(high - high == 0 ? high + (double)v_reduce_add(total->low) : high);
}

#endif
