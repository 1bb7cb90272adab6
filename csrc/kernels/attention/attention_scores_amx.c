/* attention_product_nt by matrix tiles (FA_AMX): attention.c has the equations and the layouts. */
#include "attention_tile.h"
#include "../common.h"

FA_INLINE void scale_scores(real *s, fa_index rows, fa_index columns, vreal scale)
{
    for (fa_index r = 0; r < rows; r++, s += ATTENTION_STRIDE)
        for (fa_index j = 0; j < columns; j += VL) v_store(s + j, v_mul(v_load(s + j), scale));
}

/* The products of a tile's rows with the keys of its range, times the scale, if it is not 1: of each panel while the tiles multiply the
   next. */
FA_INLINE void score_rows(real *s, real factor, const real *q, fa_index slice, fa_index mr, const real *k, fa_index keys,
                          key_range range, fa_index padded)
{
    const vreal scale = v_set1(factor);
    const fa_index scaled = factor == 1 ? 0 : mr;
    real *before = s;
    fa_index unscaled = 0;
    if (range.end <= range.begin) return;
    t_configure(mr);
    for (fa_index first = range.begin / PANEL * PANEL; first < fa_min(keys, range.end); first += PANEL) {
        const fa_index nv = panel_vectors(keys, first), skipped = fa_max(0, range.begin - first) / VL;
        const fa_index part = fa_min(nv, fa_ceil_div(range.end - first, VL)) - skipped;
        real *to = s + first + skipped * VL;
        matrix_product(to, ATTENTION_STRIDE, mr, part, q, QUERY_STRIDE, slice, QUERY_SLICE, k + first * padded + skipped * VL, nv,
                       padded);
        scale_scores(before, scaled, unscaled, scale);
        before = to;
        unscaled = part * VL;
    }
    scale_scores(before, scaled, unscaled, scale);
}

void KERNEL(attention_product_nt)(const score_block *b, const real *q, fa_index slice, const real *k, fa_index D,
                                  const prefetch_rows *next)
{
    const fa_index padded = packed_size(D);
    const row_split split = split_rows(b->rows, TILE);
    const fa_index ahead = rows_per_tile(next, split.tiles);
    for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
        const real factor = D ? b->scale : 1; /* scores of no dimensions are +0 */
        mr = tile_height(split, t);
        prefetch_part(next, t, ahead);
        score_rows(b->s + r * ATTENTION_STRIDE, factor, q + r * QUERY_STRIDE, slice, mr, k, b->keys,
                   tile_keys(b->begin + r, b->end + r, mr), padded);
    }
}
