/* Packing for blocked attention (kernels/attention/attention.c has the layouts): queries scaled, keys and values in panels. */
#include "attention_tile.h"
#include "../common.h"

#if !FA_PAIRS
/* y, the sum of two products with x, where it is not finite: NaN may be inf - inf; and a finite x out of range makes the scores of its
   row NaN, for attention_natural.c. */
static vreal scaled_infinities(vreal x, vreal high, vreal y)
{
    const vreal infinite = v_mul(x, high), nan = v_set1((real)__builtin_nanf(""));
    const vreal product = v_select(v_is_nan(v_sub(x, x)), infinite, nan);
    return v_select(v_is_nan(v_sub(y, y)), v_select(v_is_nan(product), nan, product), y);
}
#endif

/* dst = scale log2(e) q, slice after slice. The scale comes in two pieces: one rounding of it would shift all scores of a row
   alike. With FA_PAIRS q itself: the scale is that of the block of scores. */
void KERNEL(attention_pack_a)(real *dst, fa_index slice, const stored *q, fa_index ldq, fa_index rows, fa_index D,
                              real scale_high, real scale_low)
{
    const fa_index padded = packed_size(D);
#if FA_PAIRS
    (void)scale_high, (void)scale_low;
    for (fa_index d0 = 0; d0 < padded; d0 += QUERY_SLICE, dst += slice) {
        const fa_index size = fa_min(QUERY_SLICE, padded - d0);
        for (fa_index r = 0; r < rows; r++)
            for (fa_index d = 0; d < size; d += VL)
                v_store(dst + r * QUERY_STRIDE + d, v_load_pairs_n(q + r * ldq + 2 * (d0 + d), D - 2 * (d0 + d)));
    }
#else
    const vreal high = v_set1(scale_high), low = v_set1(scale_low);
    for (fa_index d0 = 0; d0 < padded; d0 += QUERY_SLICE, dst += slice) {
        const fa_index size = fa_min(QUERY_SLICE, padded - d0), filled = fa_min(QUERY_SLICE, D - d0);
        const stored *row = q + d0;
        real *to = dst;
        for (fa_index r = 0; r < rows; r++, row += ldq, to += QUERY_STRIDE)
            for (fa_index d = 0; d < size; d += VL) {
                const vreal x = load_stored_some(row + d, filled - d);
                vreal y = v_fma(x, high, v_mul(x, low));
                if (FA_UNLIKELY(v_any(v_is_nan(v_sub(y, y))))) y = scaled_infinities(x, high, y);
                v_store(to + d, y);
            }
    }
#endif
}

void KERNEL(attention_pack_bt)(real *dst, const stored *k, fa_index ldk, fa_index keys, fa_index D)
{
    const fa_index padded = packed_size(D);
    for (fa_index first = 0; first < keys; first += PANEL) {
        const fa_index nv = panel_vectors(keys, first);
        for (fa_index v = 0; v < nv; v++) {
            const fa_index key = first + v * VL;
            KERNEL(pack_columns)
            (dst + first * padded + v * VL, nv * VL, k + key * ldk, ldk, fa_min(VL, keys - key), D, padded);
        }
    }
}

/* What a pass over values finds. The first one only looks whether there is anything: in `large`, the sum of products with LARGE_PROBE.
   The second one makes 0 of what is not finite, and tells it from what is large. */
typedef struct {
    vreal not_finite, large;
} value_check;

#define LARGE_VALUE (REAL_LARGEST / (real)LARGE_PROBE)

FA_INLINE vreal checked_values(const stored *v, fa_index count, const int second, value_check *check)
{
    const vreal x = load_stored_some(v, count);
    if (!second) {
        check->large = v_fma(x, v_set1((real)LARGE_PROBE), check->large);
        return x;
    }
    const vreal finite = finite_or_zero(x);
    check->not_finite = v_fma(x, v_zero(), check->not_finite); /* 0 inf and 0 NaN are NaN */
    check->large = v_max(v_abs(finite), check->large);
    return finite;
}

FA_INLINE int anything_found(const value_check *check) { return v_any(v_is_nan(v_sub(check->large, check->large))); }
FA_INLINE int what_is_found(const value_check *check)
{
    const int not_finite = v_any(v_is_nan(check->not_finite)), large = v_any(v_le(v_set1(LARGE_VALUE), check->large));
    return (not_finite ? VALUES_NOT_FINITE : 0) | (large ? VALUES_LARGE : 0);
}

/* One vector of values for the products: those of a key, or with FA_PAIRS of two, the second missing after the last key. */
FA_INLINE vreal packed_values(const stored *v, fa_index ldv, fa_index keys, fa_index count, const int second_pass,
                              value_check *check)
{
    const vreal x = checked_values(v, count, second_pass, check);
#if FA_PAIRS
    return v_interleave(x, keys > 1 ? checked_values(v + ldv, count, second_pass, check) : v_zero());
#else
    (void)ldv, (void)keys;
    return x;
#endif
}

FA_INLINE int copy_panels(real *dst, const stored *v, fa_index ldv, fa_index keys, fa_index D, const int second_pass)
{
    const fa_index filled = fa_ceil_div(keys, FA_PACKED), padded = packed_size(keys);
    value_check check[FA_NV]; /* of the vectors of a panel: one chain of sums takes longer than the copies */
    FA_UNROLL
    for (int u = 0; u < FA_NV; u++) check[u] = (value_check){v_zero(), v_zero()};
    for (fa_index first = 0; first < D; first += PANEL) {
        const fa_index nv = panel_vectors(D, first);
        real *panel = dst + first * padded;
        const stored *row = v + first;
        if (D - first >= PANEL) {
            for (fa_index j = 0; j < filled; j++, row += FA_PACKED * ldv) {
                FA_UNROLL
                for (int u = 0; u < FA_NV; u++)
                    v_store(panel + (j * FA_NV + u) * VL,
                            packed_values(row + u * VL, ldv, keys - FA_PACKED * j, VL, second_pass, &check[second_pass ? 0 : u]));
            }
        } else {
            for (fa_index j = 0; j < filled; j++, row += FA_PACKED * ldv)
                for (fa_index u = 0; u < nv; u++)
                    v_store(panel + (j * nv + u) * VL,
                            packed_values(row + u * VL, ldv, keys - FA_PACKED * j, D - first - u * VL, second_pass, &check[0]));
        }
        for (fa_index i = filled * nv; i < padded * nv; i++) v_store(panel + i * VL, v_zero());
    }
    if (second_pass) return what_is_found(&check[0]);
    FA_UNROLL
    for (int u = 1; u < FA_NV; u++) check[0].large = v_add(check[0].large, check[u].large);
    return anything_found(&check[0]);
}

/* Values that are not finite are stored as 0 and reported: 0 * NaN would reach rows that do not attend to them.
   attention_patch_values adds them to the rows that do. The first pass only looks for them. */
void KERNEL(attention_pack_b)(real *dst, const stored *v, fa_index ldv, fa_index keys, fa_index D, int *found)
{
    *found = copy_panels(dst, v, ldv, keys, D, 0);
    if (*found) *found = copy_panels(dst, v, ldv, keys, D, 1);
}

/* Values row by row, for BLAS: dst[j * ld + d], with the same treatment of what is not finite. */
void KERNEL(attention_copy_values)(real *dst, fa_index ld, const stored *v, fa_index ldv, fa_index keys, fa_index D, int *found)
{
    value_check check = {v_zero(), v_zero()};
    for (fa_index j = 0; j < keys; j++)
        for (fa_index d = 0; d < D; d += VL) {
            const fa_index count = fa_min(VL, D - d);
            v_store_n(dst + j * ld + d, checked_values(v + j * ldv + d, count, 1, &check), count);
        }
    *found = what_is_found(&check);
}
