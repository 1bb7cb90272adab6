/* The inside of blocked attention, on one group of query rows and one block of keys:

     S = Q K'        scores             [rows, keys]     q carries scale * log2(e), so that P = 2^S
     P = 2^(S - R)   softmax            R: an integer near the largest score of the row so far
     O = alpha O + P V                  alpha = 2^(R before - R)

   R is an integer: taking it off an exponent is exact, so P has the bits of 2^S whatever R is, and O keeps its bits when it is
   rescaled. The result of a row depends on the key blocks only through the order in which their sums are added.

   Buffers: q packed by attention_pack_queries, tile after tile of [D padded][TILE]; k by attention_pack_keys, panels of
   FA_NV vectors of keys, [D padded][keys of the panel], the last one as many vectors wide as it has keys for; v by
   attention_pack_values, panels of FA_NV vectors of columns, [keys padded][columns of the panel], likewise. "padded" is to TILE_K,
   with zeros. s and p are rows of ATTENTION_STRIDE, o rows of ldo >= D rounded up to VL.

   Row r attends to the keys [begin[r], end[r]) of the block, less what the masks exclude by -inf. Other scores may hold
   anything and are never read into arithmetic. */
#include "common.h"
#include "attention.h"
#include "tile.h"

#include <math.h>

#define TILE TILE_ROWS(FA_NV)
#define PANEL (FA_NV * VL)
/* Rounding by V_MAGIC, and V_MAGIC - R, are exact below this; larger rows have R taken off first. */
#define REFERENCE_LIMIT REAL_POWER(REAL_MANTISSA_BITS - 2)
#define REAL_POWER(n) ((real)((int64_t)1 << (n)))

/* Vectors in the panel that starts at `first` of `size` columns. */
FA_INLINE fa_index panel_vectors(fa_index size, fa_index first) { return fa_min(FA_NV, fa_ceil_div(size - first, VL)); }

/* The keys that any row of a tile attends to, widened to whole steps of TILE_K. */
typedef struct {
    fa_index begin, end;
} key_range;

FA_INLINE key_range tile_keys(const fa_index *begin, const fa_index *end, fa_index rows)
{
    key_range range = {INT64_MAX, 0};
    for (fa_index r = 0; r < rows; r++) {
        if (end[r] <= begin[r]) continue;
        range.begin = fa_min(range.begin, begin[r]);
        range.end = fa_max(range.end, end[r]);
    }
    if (range.end == 0) return (key_range){0, 0};
    return (key_range){range.begin / TILE_K * TILE_K, fa_round_up(range.end, TILE_K)};
}

void KERNEL(attention_pack_queries)(real *dst, const real *q, fa_index ldq, fa_index rows, fa_index D, real scale_high,
                                    real scale_low)
{
    const real *row[TILE];
    const tile_deal deal = deal_rows(rows, TILE);
    const fa_index padded = fa_round_up(D, TILE_K), size = padded * TILE;
    const vreal high = v_set1(scale_high), low = v_set1(scale_low), nan = v_set1((real)__builtin_nanf(""));
    for (fa_index t = 0; t < deal.tiles; t++, dst += size) {
        const fa_index mr = rows_of_tile(deal, t);
        for (fa_index r = 0; r < mr; r++, q += ldq) row[r] = q;
        KERNEL(pack_rows)(dst, row, mr, FA_NV, D, padded);
        for (fa_index i = 0; i < size; i += VL) {
            /* scale log2(e) in two pieces: one rounding of it would shift all scores of a row alike. */
            const vreal x = v_load(dst + i), y = v_fma(x, high, v_mul(x, low));
            v_store(dst + i, v_select(v_is_nan(y), nan, y));
        }
    }
}

void KERNEL(attention_pack_keys)(real *dst, const real *k, fa_index ldk, fa_index keys, fa_index D)
{
    const fa_index padded = fa_round_up(D, TILE_K);
    for (fa_index first = 0; first < keys; first += PANEL) {
        const fa_index nv = panel_vectors(keys, first);
        for (fa_index v = 0; v < nv; v++) {
            const fa_index key = first + v * VL;
            KERNEL(pack_columns)
            (dst + first * padded + v * VL, nv * VL, k + key * ldk, ldk, fa_min(VL, keys - key), D, padded);
        }
    }
}

/* A vector of values; *bad collects lanes that are not finite, and those become 0. */
FA_INLINE vreal finite_values(const real *v, fa_index count, vmask *bad)
{
    const vreal x = count == VL ? v_load(v) : v_load_n(v, count);
    const vmask is_bad = v_is_nan(v_sub(x, x)); /* inf - inf and NaN - NaN */
    *bad = v_or(*bad, is_bad);
    return v_select(is_bad, v_zero(), x);
}

/* Values that are not finite are stored as 0 and reported: 0 * NaN would reach rows that do not attend to them.
   attention_patch_values adds them to the rows that do. */
void KERNEL(attention_pack_values)(real *dst, const real *v, fa_index ldv, fa_index keys, fa_index D, int *nonfinite)
{
    const fa_index padded = fa_round_up(keys, TILE_K);
    vmask bad = v_first(0);
    for (fa_index first = 0; first < D; first += PANEL) {
        const fa_index nv = panel_vectors(D, first);
        real *panel = dst + first * padded;
        for (fa_index j = 0; j < keys; j++) {
            for (fa_index u = 0; u < nv; u++) {
                const fa_index d = first + u * VL;
                v_store(panel + (j * nv + u) * VL, finite_values(v + j * ldv + d, fa_min(VL, D - d), &bad));
            }
        }
        for (fa_index i = keys * nv; i < padded * nv; i++) v_store(panel + i * VL, v_zero());
    }
    *nonfinite = v_any(bad);
}

/* Values row by row, for BLAS: dst[j * ld + d], with the same treatment of what is not finite. */
void KERNEL(attention_copy_values)(real *dst, fa_index ld, const real *v, fa_index ldv, fa_index keys, fa_index D,
                                   int *nonfinite)
{
    vmask bad = v_first(0);
    for (fa_index j = 0; j < keys; j++)
        for (fa_index d = 0; d < D; d += VL) {
            const fa_index count = fa_min(VL, D - d);
            v_store_n(dst + j * ld + d, finite_values(v + j * ldv + d, count, &bad), count);
        }
    *nonfinite = v_any(bad);
}

FA_INLINE void store_scores(real *s, tile_acc acc, const int mr, const int nv)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) v_store(s + r * ATTENTION_STRIDE + v * VL, acc[r][v]);
    }
}

#define SCORE_TILE(mr, nv)                                        \
    tile_product(acc, mr, nv, q_tile, 1, TILE, panel, padded);    \
    store_scores(s_tile + first, acc, mr, nv)
#define SCORE_PANEL(nv) TILE_SWITCH_6(mr, SCORE_TILE, nv)

void KERNEL(attention_scores)(real *s, const real *q, fa_index rows, const real *k, fa_index keys, const fa_index *begin,
                              const fa_index *end, fa_index D)
{
    const fa_index padded = fa_round_up(D, TILE_K);
    const tile_deal deal = deal_rows(rows, TILE);
    for (fa_index first = 0; first < keys; first += PANEL) {
        const fa_index nv = panel_vectors(keys, first);
        const real *panel = k + first * padded;
        for (fa_index t = 0, r = 0; t < deal.tiles; t++) {
            const fa_index mr = rows_of_tile(deal, t);
            const key_range range = tile_keys(begin + r, end + r, mr);
            const real *q_tile = q + t * TILE * padded;
            real *s_tile = s + r * ATTENTION_STRIDE;
            r += mr;
            if (range.end <= first || range.begin >= first + PANEL) continue;
            tile_acc acc;
            switch (nv) {
            case 1: SCORE_PANEL(1) break;
#if FA_NV == 4
            case 2: SCORE_PANEL(2) break;
            case 3: SCORE_PANEL(3) break;
#endif
            default: SCORE_PANEL(FA_NV)
            }
        }
    }
}

/* Makes the NaNs of products that BLAS computed the default NaN; packing has done so for attention_scores. */
void KERNEL(attention_plain_scores)(real *s, fa_index rows, const fa_index *begin, const fa_index *end)
{
    const vreal nan = v_set1((real)__builtin_nanf(""));
    for (fa_index r = 0; r < rows; r++, s += ATTENTION_STRIDE)
        for (fa_index j = begin[r] / VL * VL; j < end[r]; j += VL) {
            const vreal x = v_load(s + j);
            v_store(s + j, v_select(v_is_nan(x), nan, x));
        }
}

/* s = -inf where the mask is 0. */
void KERNEL(attention_mask_bool)(real *s, fa_index rows, const fa_index *begin, const fa_index *end, const uint8_t *mask,
                                 fa_index ldmask)
{
    const vreal excluded = v_set1(-REAL_INFINITY);
    for (fa_index r = 0; r < rows; r++, s += ATTENTION_STRIDE, mask += ldmask) {
        for (fa_index j = begin[r] / VL * VL; j < end[r]; j += VL) {
            uint8_t last[VL] = {0};
            const uint8_t *bytes = mask + j;
            if (end[r] - j < VL) {
                for (fa_index i = 0; i < end[r] - j; i++) last[i] = bytes[i];
                bytes = last;
            }
            v_store(s + j, v_select(v_mask_bytes(bytes), v_load(s + j), excluded));
        }
    }
}

/* s = s + mask log2(e), and -inf where the mask is -inf, whatever s was. */
void KERNEL(attention_mask_add)(real *s, fa_index rows, const fa_index *begin, const fa_index *end, const real *mask,
                                fa_index ldmask)
{
    const vreal excluded = v_set1(-REAL_INFINITY), nan = v_set1((real)__builtin_nanf("")), log2_e = v_set1(LOG2_E);
    for (fa_index r = 0; r < rows; r++, s += ATTENTION_STRIDE, mask += ldmask) {
        for (fa_index j = begin[r] / VL * VL; j < end[r]; j += VL) {
            const vreal m = v_load_n(mask + j, fa_min(VL, end[r] - j));
            const vreal sum = v_fma(m, log2_e, v_load(s + j));
            v_store(s + j, v_select(v_eq(m, excluded), excluded, v_select(v_is_nan(sum), nan, sum)));
        }
    }
}

FA_INLINE void fill(real *row, fa_index first, fa_index end)
{
    for (fa_index j = first; j < end; j++) row[j] = 0;
}

/* 2^n of an integer n <= 0; 0 below the normal range, NaN for NaN. */
FA_INLINE real exact_power(real n)
{
    if (n < -(REAL_EXPONENT_BIAS - 1)) return 0;
    return v_reduce_max(power_of_two(v_set1(n + V_MAGIC))) + (n - n);
}

/* The largest score of a row, the lanes outside [begin, end) of its first and last vector made -inf. */
FA_INLINE real row_maximum(real *row, fa_index begin, fa_index end)
{
    const vreal excluded = v_set1(-REAL_INFINITY);
    const fa_index first = begin / VL * VL, last = fa_round_up(end, VL) - VL;
    if (first < begin) v_store(row + first, v_select(v_first(begin - first), excluded, v_load(row + first)));
    if (end < last + VL) v_store(row + last, v_select(v_first(end - last), v_load(row + last), excluded));
    vreal top0 = v_load(row + first), top1 = top0;
    fa_index j = first + VL;
    for (; j + 3 * VL <= last; j += 4 * VL) {
        top0 = v_max(v_max(top0, v_load(row + j)), v_load(row + j + VL));
        top1 = v_max(v_max(top1, v_load(row + j + 2 * VL)), v_load(row + j + 3 * VL));
    }
    for (; j <= last; j += VL) top0 = v_max(top0, v_load(row + j));
    return v_reduce_max(v_max(top0, top1));
}

/* 2^(x - R) for magic = V_MAGIC - R and lowest = R + V_EXPONENT_FLOOR, where the result is exactly 0. A degree-5 (float) polynomial:
   off by 2^-23.4, half of what the score itself is off by. */
FA_INLINE vreal exp2_shifted(vreal x, vreal magic, vreal lowest)
{
    const vreal y = v_max(lowest, x);
    const vreal t = v_add(y, magic), r = v_sub(y, v_sub(t, magic));
    return v_add_exponent(v_fma(POLYNOMIAL(r, exp2_coefficient), r, v_set1(1)), t);
}

/* Scores to probabilities, and the state of the rows. `fill_keys` > 0: rows are zero up to there; 0: as far as attention_values
   reads. A row that attends to nothing keeps its state, with alpha = 1. NaN and +inf scores make the sum NaN. */
void KERNEL(attention_softmax)(real *s, fa_index rows, const fa_index *begin, const fa_index *end, fa_index fill_keys,
                               real *reference, real *sum, real *alpha)
{
    const tile_deal deal = deal_rows(rows, TILE);
    for (fa_index r = 0; r < rows; r++)
        alpha[r] = end[r] > begin[r] ? row_maximum(s + r * ATTENTION_STRIDE, begin[r], end[r]) : -REAL_INFINITY;
    for (fa_index t = 0, r = 0; t < deal.tiles; t++) {
        const fa_index mr = rows_of_tile(deal, t);
        const key_range range = fill_keys ? (key_range){0, fill_keys} : tile_keys(begin + r, end + r, mr);
        for (fa_index last = r + mr; r < last; r++) {
            real *row = s + r * ATTENTION_STRIDE;
            const real top = alpha[r], before = reference[r];
            alpha[r] = 1;
            if (top == -REAL_INFINITY) {
                fill(row, range.begin, range.end);
                continue;
            }
            const fa_index v0 = begin[r] / VL * VL, v1 = fa_round_up(end[r], VL);
            real R, shifted;
            if (FA_LIKELY(top < REFERENCE_LIMIT && top > -REFERENCE_LIMIT && before < REFERENCE_LIMIT)) {
                R = (top + V_MAGIC) - V_MAGIC;
                shifted = R = R > before ? R : before;
            } else {
                R = v_reduce_max(v_round(v_set1(top)));
                R = R > before ? R : before;
                for (fa_index j = v0; j < v1; j += VL) v_store(row + j, v_sub(v_load(row + j), v_set1(R)));
                shifted = 0;
            }
            const vreal magic = v_set1(V_MAGIC - shifted), lowest = v_set1(shifted + V_EXPONENT_FLOOR);
            vreal total = v_zero();
#pragma GCC unroll 2
            for (fa_index j = v0; j < v1; j += VL) {
                const vreal p = exp2_shifted(v_load(row + j), magic, lowest);
                v_store(row + j, p);
                total = v_add(total, p);
            }
            fill(row, range.begin, v0);
            fill(row, v1, range.end);
            reference[r] = R;
            alpha[r] = exact_power(before - R);
            sum[r] = sum[r] * alpha[r] + v_reduce_add(total);
        }
    }
}

FA_INLINE void add_values(real *o, fa_index ldo, tile_acc acc, const int mr, const int nv, const real *alpha)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        const vreal factor = v_broadcast(alpha + r);
        FA_UNROLL
        for (int v = 0; v < nv; v++) {
            real *p = o + r * ldo + v * VL;
            v_store(p, v_fma(v_load(p), factor, acc[r][v]));
        }
    }
}

#define VALUE_TILE(mr, nv)                                                                                        \
    tile_product(acc, mr, nv, p_tile, ATTENTION_STRIDE, 1, panel + range.begin * (nv) * VL, range.end - range.begin); \
    add_values(o + r * ldo + first, ldo, acc, mr, nv, alpha + r)
#define VALUE_PANEL(nv) TILE_SWITCH_6(mr, VALUE_TILE, nv)

/* o = alpha o + p v. */
void KERNEL(attention_values)(real *o, fa_index ldo, const real *p, fa_index rows, const real *v, fa_index keys,
                              const fa_index *begin, const fa_index *end, fa_index D, const real *alpha)
{
    const fa_index padded = fa_round_up(keys, TILE_K);
    const tile_deal deal = deal_rows(rows, TILE);
    for (fa_index first = 0; first < D; first += PANEL) {
        const fa_index nv = panel_vectors(D, first);
        const real *panel = v + first * padded;
        for (fa_index t = 0, r = 0, mr; t < deal.tiles; t++, r += mr) {
            mr = rows_of_tile(deal, t);
            const key_range range = tile_keys(begin + r, end + r, mr);
            const real *p_tile = p + r * ATTENTION_STRIDE + range.begin;
            if (range.end == 0) continue;
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

/* o = alpha o, for BLAS, which adds to it. */
void KERNEL(attention_scale_rows)(real *o, fa_index ldo, fa_index rows, fa_index D, const real *alpha)
{
    for (fa_index r = 0; r < rows; r++)
        for (fa_index d = 0; d < D; d += VL) v_store(o + r * ldo + d, v_mul(v_load(o + r * ldo + d), v_broadcast(alpha + r)));
}

/* o += p v over the values that are not finite, for the rows whose score s (before the softmax) does not exclude the key. Rare,
   so plain: the sums are NaN or infinite whatever the order. */
void KERNEL(attention_patch_values)(real *o, fa_index ldo, const real *p, const real *s, fa_index rows,
                                    const fa_index *begin, const fa_index *end, const real *v, fa_index ldv, fa_index D)
{
    for (fa_index r = 0; r < rows; r++)
        for (fa_index j = begin[r]; j < end[r]; j++) {
            if (s[r * ATTENTION_STRIDE + j] == -REAL_INFINITY) continue;
            for (fa_index d = 0; d < D; d++)
                if (!isfinite(v[j * ldv + d])) o[r * ldo + d] += p[r * ATTENTION_STRIDE + j] * v[j * ldv + d];
        }
}

/* out = o / sum, lse = ln sum + R ln 2; zeros and -inf for a row that attended to nothing. lse may be NULL. */
void KERNEL(attention_finish)(real *out, fa_index ldout, const real *o, fa_index ldo, fa_index rows, fa_index D,
                              const real *reference, const real *sum, real *lse)
{
    for (fa_index r = 0; r < rows; r++, out += ldout, o += ldo) {
        const vreal divisor = v_set1(sum[r] == 0 ? 1 : sum[r]);
        for (fa_index d = 0; d < D; d += VL) {
            const vreal y = v_div(v_load(o + d), divisor);
            if (D - d >= VL)
                v_store(out + d, y);
            else
                v_store_n(out + d, y, D - d);
        }
        if (lse) lse[r] = sum[r] == 0 ? -REAL_INFINITY : (real)((double)reference[r] * 0x1.62e42fefa39efp-1 + log(sum[r]));
    }
}
