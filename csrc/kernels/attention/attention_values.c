/* The second half of blocked attention: values weighted by probabilities, and what becomes of O in the end (attention.c has the
   equations and the layouts).

     O = alpha O + P V
     out = O / sum,  lse = ln sum + R ln 2 */
#include "attention_values.h"
#include "../common.h"
#include "nonfinite.h"

#include <math.h>
#include <string.h>

#define LN2_REST -0x1.8432a1b0e2634p-43 /* ln 2 - 0x1.62e42fefa4p-1 */

#if !FA_AMX /* attention_values_amx.c */
/* The sums over the keys of a block are chains of CHAIN_KEYS: one of 512 has a larger error than NumPy's product, whose BLAS cuts it
   at 256 to 384. */
FA_INLINE void keep_part(real *part, tile_acc acc, const int mr, const int nv)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) v_store(part + (r * nv + v) * VL, acc[r][v]);
    }
}
FA_INLINE void add_part(tile_acc acc, const real *part, const int mr, const int nv)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) acc[r][v] = v_add(v_load(part + (r * nv + v) * VL), acc[r][v]);
    }
}

#define VALUE_TILE(mr, nv)                                                                                            \
    for (fa_index j = range.begin, next = chain_end, more = 0;; more = 1, j = next) {                                 \
        if (more) {                                                                                                   \
            keep_part(part, acc, mr, nv);                                                                             \
            next = fa_min(j + CHAIN_KEYS, range.end);                                                                 \
        }                                                                                                             \
        tile_product(acc, mr, nv, p_tile + (j - range.begin) / FA_PACKED, ATTENTION_STRIDE, 1,                        \
                     panel + j / FA_PACKED * (nv) * VL, (next - j) / FA_PACKED);                                      \
        if (more) add_part(acc, part, mr, nv);                                                                        \
        if (next == range.end) break;                                                                                 \
    }                                                                                                                 \
    store_values(sum ? NULL : (real *)dst + r * lddst + first, sum ? (stored *)dst + r * lddst + first : NULL, lddst, \
                 o ? o + r * ldo + first : NULL, ldo, acc, mr, nv, columns, alpha + r, sum ? sum + r : NULL)
#define VALUE_PANEL(nv) TILE_SWITCH_6(mr, VALUE_TILE, nv)

/* dst = alpha o + p v, or without o (NULL) in the first block of a row; divided by sum, if that is given, in its last one: then
   dst is `stored`. dst and o may be the same. Without sum, whole vectors of dst are written. */
void KERNEL(attention_values)(void *dst, fa_index lddst, const real *o, fa_index ldo, const real *p, fa_index rows, const real *v,
                              fa_index keys, const fa_index *begin, const fa_index *end, fa_index D, const real *alpha,
                              const real *sum, rows_to_come *next)
{
    const fa_index padded = packed_size(keys);
    const row_split split = split_rows(rows, TILE);
    for (fa_index first = 0; first < D; first += PANEL) {
        const fa_index nv = panel_vectors(D, first), columns = D - first;
        const real *panel = v + first * padded;
        for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
            mr = tile_height(split, t);
            const key_range range = tile_keys(begin + r, end + r, mr);
            const fa_index chain_end = fa_min(range.end, (range.begin / CHAIN_KEYS + 1) * CHAIN_KEYS);
            const real *p_tile = p + r * ATTENTION_STRIDE + range.begin / FA_PACKED;
            ask_for_lines(next);
            if (range.end == 0 && o && !sum) continue;
            real part[TILE_ROWS(FA_NV) * PANEL];
            tile_acc acc;
            switch (nv) {
            case 1: VALUE_PANEL(1) break;
#if FA_NV == 4
            case 2: VALUE_PANEL(2) break;
            case 3: VALUE_PANEL(3) break;
#endif
            default: VALUE_PANEL(FA_NV)
            }
        }
    }
}
#endif

/* o = alpha o, for BLAS, which adds to it. */
void KERNEL(attention_scale_rows)(real *o, fa_index ldo, fa_index rows, fa_index D, const real *alpha)
{
    for (fa_index r = 0; r < rows; r++)
        for (fa_index d = 0; d < D; d += VL) v_store(o + r * ldo + d, v_mul(v_load(o + r * ldo + d), v_broadcast(alpha + r)));
}

/* p of one key, as attention_softmax stored it. */
FA_INLINE real probability(const real *row, fa_index j)
{
#if FA_PAIRS
    stored pair[FA_PACKED];
    memcpy(pair, row + j / FA_PACKED, sizeof pair);
    return real_of(pair[j % FA_PACKED]);
#else
    return row[j];
#endif
}

/* o += p v over the values that are not finite, for the rows whose score s (before the softmax) does not exclude the key. */
void KERNEL(attention_patch_values)(real *o, fa_index ldo, const real *p, const real *s, fa_index rows, const fa_index *begin,
                                    const fa_index *end, const stored *v, fa_index ldv, fa_index D)
{
    nonfinite_part part;
    const key_range keys = keys_of_rows(begin, end, rows);
    for (fa_index d = 0; d < D; d += NONFINITE_COLUMNS)
        for (fa_index j0 = keys.begin; j0 < keys.end; j0 += NONFINITE_ROWS) {
            const fa_index n = fa_min(NONFINITE_ROWS, keys.end - j0), columns = fa_min(NONFINITE_COLUMNS, D - d);
            if (!take_nonfinite(&part, v + j0 * ldv + d, ldv, n, columns)) continue;
            for (fa_index r = 0; r < rows; r++) {
                const real *weights = p + r * ATTENTION_STRIDE, *scores = s + r * ATTENTION_STRIDE;
                nonfinite_list list = {.count = 0};
                for (fa_index j = fa_max(j0, begin[r]); j < fa_min(j0 + n, end[r]); j++)
                    if (part.any[j - j0] && scores[j] != -REAL_INFINITY) list_row(&list, j - j0, probability(weights, j));
                add_nonfinite(o + r * ldo + d, &part, &list, columns);
            }
        }
}

/* R ln 2 + ln sum, rounded once but for ln sum itself: the product with the 37 bits of ln 2 is exact, the sum's rounding error is
   added back. */
FA_INLINE real log_of(real reference, real sum)
{
    const double R = (double)reference, high = R * 0x1.62e42fefa4p-1, low = log((double)sum), total = high + low;
    const double part = total - high, rest = (high - (total - part)) + (low - part);
    return (real)(isfinite(total) ? total + (rest + R * LN2_REST) : total);
}

/* out = o / sum, lse = ln sum + R ln 2; zeros and -inf for a row that attended to nothing, whose o is not read. out or lse may be
   NULL. */
void KERNEL(attention_finish)(stored *out, fa_index ldout, const real *o, fa_index ldo, fa_index rows, fa_index D,
                              const real *reference, const real *sum, real *lse)
{
    for (fa_index r = 0; out && r < rows; r++) {
        const vreal divisor = divisor_of(sum[r]);
        for (fa_index d = 0; d < D; d += VL) {
            const vreal y = sum[r] == 0 ? v_zero() : divided(v_load(o + r * ldo + d), divisor);
            if (D - d >= VL)
                v_store_stored(out + r * ldout + d, y);
            else
                v_store_stored_n(out + r * ldout + d, y, D - d);
        }
    }
    for (fa_index r = 0; lse && r < rows; r++) lse[r] = sum[r] == 0 ? -REAL_INFINITY : log_of(reference[r], sum[r]);
}

/* Whether an element of out is not finite though the sum of its row is: a sum of large values may have overflowed. */
void KERNEL(attention_overflows)(int *overflows, const stored *out, fa_index ldout, fa_index rows, fa_index D, const real *sum)
{
    vreal bad = v_zero();
    for (fa_index r = 0; r < rows; r++)
        for (fa_index d = 0; isfinite(sum[r]) && d < D; d += VL)
            bad = v_fma(load_stored_some(out + r * ldout + d, D - d), v_zero(), bad);
    *overflows = v_any(v_is_nan(bad));
}

/* out = o / sum where out is not finite. A mean of finite numbers is none but finite, however its last bit is rounded. */
void KERNEL(attention_recover_values)(stored *out, fa_index ldout, const real *o, fa_index ldo, fa_index rows, fa_index D,
                                      const real *sum)
{
    const vreal most = v_set1(REAL_LARGEST);
    for (fa_index r = 0; r < rows; r++)
        for (fa_index d = 0; sum[r] != 0 && d < D; d += VL) {
            stored *to = out + r * ldout + d;
            const fa_index count = fa_min(VL, D - d);
            const vreal before = v_load_stored_n(to, count), x = v_load(o + r * ldo + d), y = v_div(x, v_set1(sum[r]));
            const vreal mean = v_copysign(v_min(most, v_abs(y)), y);
            const vreal after = v_select(v_is_nan(v_sub(x, x)), y, mean);
            v_store_stored_n(to, v_select(v_is_nan(v_sub(before, before)), after, before), count);
        }
}
