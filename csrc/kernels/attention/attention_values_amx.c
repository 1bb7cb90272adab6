/* attention_values by matrix tiles (FA_AMX): attention_values.c has the contract. */
#include "attention_values.h"
#include "../common.h"

/* store_values of one row whose products are in memory. */
FA_INLINE void store_row(value_rows to, const real *products, fa_index nv, fa_index columns)
{
    if (nv == FA_NV && columns >= PANEL) {
        tile_acc acc;
        FA_UNROLL
        for (int v = 0; v < FA_NV; v++) acc[0][v] = v_load(products + v * VL);
        store_values(to, acc, 1, FA_NV, PANEL);
        return;
    }
    for (fa_index d = 0; d < nv * VL; d += VL) {
        tile_acc acc = {{v_load(products + d)}};
        store_values(values_from(&to, 0, d), acc, 1, 1, columns - d);
    }
}

void KERNEL(attention_values)(const value_rows *to, const score_block *p, const real *v, fa_index D, const prefetch_rows *next)
{
    const fa_index padded = packed_size(p->keys);
    const row_split split = split_rows(p->rows, TILE);
    const fa_index ahead = rows_per_tile(next, split.tiles);
    for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
        mr = tile_height(split, t);
        const key_range range = tile_keys(p->begin + r, p->end + r, mr);
        const fa_index from = range.begin / FA_PACKED, k_size = (range.end - range.begin) / FA_PACKED;
        prefetch_part(next, t, ahead);
        if (range.end == 0 && to->o && !to->sum) continue;
        t_configure(mr);
        for (fa_index first = 0; first < D; first += PANEL) {
            const fa_index nv = panel_vectors(D, first);
            real part[TILE * PANEL] FA_ALIGN(64);
            matrix_product(part, PANEL, mr, nv, p->s + r * ATTENTION_STRIDE + from, ATTENTION_STRIDE, 0, fa_max(TILE_K, k_size),
                           v + first * padded + from * nv * VL, nv, k_size);
            for (fa_index i = r; i < r + mr; i++) store_row(values_from(to, i, first), part + (i - r) * PANEL, nv, D - first);
        }
    }
}
