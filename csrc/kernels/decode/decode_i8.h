/* What the files of the int8 cache share. */
#ifndef FA_DECODE_I8_H
#define FA_DECODE_I8_H

#include "../common.h"

/* Scores of VL keys and a query from the sums of its digits. */
FA_INLINE void store_scores(real *s, const vint sums[DIGITS], const decode_digits *q, fa_index row, vreal scales)
{
    const vreal low = v_fma(v_real_of(sums[1]), v_set1(256), v_real_of(sums[0]));
    const vreal x = v_mul(v_fma(v_real_of(sums[2]), v_set1(65536), low), scales);
    const vreal y = v_fma(x, v_broadcast(q->high + row), v_mul(x, v_broadcast(q->low + row)));
    v_store(s, v_select(v_is_nan(y), v_set1((real)__builtin_nanf("")), y));
}

#endif
