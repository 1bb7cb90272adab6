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

/* A register tile of probabilities and a panel of values, over the keys that the tile attends to. */
typedef struct {
    value_rows to;
    const real *p, *panel; /* p at the first key of the range */
    key_range range;
    fa_index columns;
} value_tile;

FA_INLINE void multiply_values(const void *tile, const int mr, const int nv)
{
    const value_tile *t = tile;
    const fa_index begin = t->range.begin, end = t->range.end;
    real part[TILE_ROWS(FA_NV) * PANEL];
    tile_acc acc;
    fa_index next = fa_min(end, (begin / CHAIN_KEYS + 1) * CHAIN_KEYS);
    for (fa_index j = begin, more = 0;; more = 1, j = next) {
        if (more) {
            keep_part(part, acc, mr, nv);
            next = fa_min(j + CHAIN_KEYS, end);
        }
        tile_product_any(acc, mr, nv, t->p + (j - begin) / FA_PACKED, ATTENTION_STRIDE, 1, t->panel + j / FA_PACKED * nv * VL,
                         (next - j) / FA_PACKED);
        if (more) add_part(acc, part, mr, nv);
        if (next == end) break;
    }
    store_values(t->to, acc, mr, nv, t->columns);
}

/* dst = alpha o + p v, or without o (NULL) in the first block of a row; divided by sum, if that is given, in its last one: then
   dst is `stored`. Without sum, whole vectors of dst are written. */
void KERNEL(attention_values)(const value_rows *to, const score_block *p, const real *v, fa_index D, const prefetch_rows *next)
{
    const fa_index padded = packed_size(p->keys);
    const row_split split = split_rows(p->rows, TILE);
    const fa_index ahead = rows_per_tile(next, fa_ceil_div(D, PANEL) * split.tiles);
    fa_index part_of_next = 0;
    for (fa_index t0 = 0, r0 = 0; t0 < split.tiles; t0 += PANEL_TILES) {
        tile_run run;
        take_tiles(&run, split, t0, r0, p);
        r0 = run.row[run.tiles];
        for (fa_index first = 0; first < D; first += PANEL) {
            const fa_index nv = panel_vectors(D, first);
            for (fa_index t = 0; t < run.tiles; t++) {
                const fa_index r = run.row[t], mr = run.row[t + 1] - r;
                const key_range range = run.range[t];
                prefetch_part(next, part_of_next++, ahead);
                if (range.end == 0 && to->o && !to->sum) continue;
                const value_tile tile = {values_from(to, r, first), p->s + r * ATTENTION_STRIDE + range.begin / FA_PACKED,
                                         v + first * padded, range, D - first};
                switch (nv) {
                case 1: tile_dispatch(multiply_values, &tile, mr, TILE, 1); break;
#if FA_NV == 4
                case 2: tile_dispatch(multiply_values, &tile, mr, TILE, 2); break;
                case 3: tile_dispatch(multiply_values, &tile, mr, TILE, 3); break;
#endif
                default: tile_dispatch(multiply_values, &tile, mr, TILE, FA_NV); break;
                }
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
void KERNEL(attention_patch_values)(real *o, fa_index ldo, const score_block *p, const real *s, const stored *v, fa_index ldv,
                                    fa_index D)
{
    const fa_index rows = p->rows, *begin = p->begin, *end = p->end;
    nonfinite_part part;
    const key_range keys = keys_of_rows(begin, end, rows);
    for (fa_index d = 0; d < D; d += NONFINITE_COLUMNS)
        for (fa_index j0 = keys.begin; j0 < keys.end; j0 += NONFINITE_ROWS) {
            const fa_index n = fa_min(NONFINITE_ROWS, keys.end - j0), columns = fa_min(NONFINITE_COLUMNS, D - d);
            if (!take_nonfinite(&part, v + j0 * ldv + d, ldv, n, columns)) continue;
            for (fa_index r = 0; r < rows; r++) {
                const real *weights = p->s + r * ATTENTION_STRIDE, *scores = s + r * ATTENTION_STRIDE;
                nonfinite_list list = {.count = 0};
                for (fa_index j = fa_max(j0, begin[r]); j < fa_min(j0 + n, end[r]); j++)
                    if (part.any[j - j0] && scores[j] != -REAL_INFINITY) list_row(&list, j - j0, probability(weights, j));
                add_nonfinite(o + r * ldo + d, &part, &list, columns);
            }
        }
}

/* R ln 2 + ln sum, rounded once but for ln sum itself: the product with the 37 bits of ln 2 is exact, the sum's rounding error is
   added back. */
FA_INLINE real log_of(real shift, real sum)
{
    const double R = (double)shift, high = R * 0x1.62e42fefa4p-1, low = log((double)sum), total = high + low;
    const double part = total - high, rest = (high - (total - part)) + (low - part);
    return (real)(isfinite(total) ? total + (rest + R * LN2_REST) : total);
}

/* out = o / sum, lse = ln sum + R ln 2; zeros and -inf for a row that attended to nothing, whose o is not read. out or lse may be
   NULL. */
void KERNEL(attention_finish)(stored *out, fa_index ldout, const real *o, fa_index ldo, fa_index rows, fa_index D,
                              const real *shift, const real *sum, real *lse)
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
    for (fa_index r = 0; lse && r < rows; r++) lse[r] = sum[r] == 0 ? -REAL_INFINITY : log_of(shift[r], sum[r]);
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
