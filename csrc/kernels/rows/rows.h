/* What kernels on rows share: sums that long rows do not spoil. Sums run in blocks of SUM_BLOCK vectors, and
   the blocks are added in double length. */
#ifndef FA_KERNELS_ROWS_H
#define FA_KERNELS_ROWS_H

#include "../common.h"

/* A chain of 32 additions was off by up to 3 eps in rows of 64 to 257, and softmax promises 4 for the whole. */
#define SUM_BLOCK 8

typedef struct {
    vreal high, low;
} long_sum;

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
