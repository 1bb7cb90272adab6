/* attention_values by matrix tiles (FA_AMX): attention_values.c has the contract. */
#include "attention_values.h"
#include "../common.h"

/* store_values of one row whose products are in memory. */
FA_INLINE void store_row(real *dst, stored *out, const real *o, const real *products, fa_index nv, fa_index columns,
                         const real *alpha, const real *sum)
{
    if (nv == FA_NV && columns >= PANEL) {
        tile_acc acc;
        FA_UNROLL
        for (int v = 0; v < FA_NV; v++) acc[0][v] = v_load(products + v * VL);
        store_values(dst, out, 0, o, 0, acc, 1, FA_NV, PANEL, alpha, sum);
        return;
    }
    for (fa_index d = 0; d < nv * VL; d += VL) {
        tile_acc acc = {{v_load(products + d)}};
        store_values(dst ? dst + d : NULL, out ? out + d : NULL, 0, o ? o + d : NULL, 0, acc, 1, 1, columns - d, alpha, sum);
    }
}

void KERNEL(attention_values)(void *dst, fa_index lddst, const real *o, fa_index ldo, const real *p, fa_index rows, const real *v,
                              fa_index keys, const fa_index *begin, const fa_index *end, fa_index D, const real *alpha,
                              const real *sum, rows_to_come *next)
{
    const fa_index padded = packed_size(keys);
    const row_split split = split_rows(rows, TILE);
    for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
        mr = tile_height(split, t);
        const key_range range = tile_keys(begin + r, end + r, mr);
        const fa_index from = range.begin / FA_PACKED, k_size = (range.end - range.begin) / FA_PACKED;
        ask_for_lines(next);
        if (range.end == 0 && o && !sum) continue;
        t_configure(mr);
        for (fa_index first = 0; first < D; first += PANEL) {
            const fa_index nv = panel_vectors(D, first);
            real part[TILE * PANEL] FA_ALIGN(64);
            matrix_product(part, PANEL, mr, nv, p + r * ATTENTION_STRIDE + from, ATTENTION_STRIDE, 0, fa_max(TILE_K, k_size),
                           v + first * padded + from * nv * VL, nv, k_size);
            for (fa_index i = r; i < r + mr; i++) {
                const real *row = part + (i - r) * PANEL;
                if (sum)
                    store_row(NULL, (stored *)dst + i * lddst + first, o ? o + i * ldo + first : NULL, row, nv, D - first,
                              alpha + i, sum + i);
                else
                    store_row((real *)dst + i * lddst + first, NULL, o ? o + i * ldo + first : NULL, row, nv, D - first,
                              alpha + i, NULL);
            }
        }
    }
}
