/* attention_scores by matrix tiles (FA_AMX): attention.c has the equations and the layouts. */
#include "attention_tile.h"
#include "../common.h"

FA_INLINE void scale_scores(real *s, fa_index rows, fa_index columns, vreal scale)
{
    for (fa_index r = 0; r < rows; r++, s += ATTENTION_STRIDE)
        for (fa_index j = 0; j < columns; j += VL) v_store(s + j, v_mul(v_load(s + j), scale));
}

/* The products of a tile's rows with the keys of its range, times the scale, if it is not 1: of each panel while the tiles multiply the
   next. */
FA_INLINE void score_rows(real *s, const real *q, fa_index slice, fa_index mr, const real *k, fa_index keys, key_range range,
                          fa_index padded, rows_to_come *next)
{
    const vreal scale = v_broadcast(q + QUERY_SLICE);
    const fa_index scaled = q[QUERY_SLICE] == 1 ? 0 : mr;
    real *before = s;
    fa_index unscaled = 0;
    if (range.end <= range.begin) return;
    t_configure(mr);
    for (fa_index first = range.begin / PANEL * PANEL; first < fa_min(keys, range.end); first += PANEL) {
        const fa_index nv = panel_vectors(keys, first), skipped = fa_max(0, range.begin - first) / VL;
        const fa_index part = fa_min(nv, fa_ceil_div(range.end - first, VL)) - skipped;
        real *to = s + first + skipped * VL;
        ask_for_lines(next);
        matrix_product(to, ATTENTION_STRIDE, mr, part, q, QUERY_STRIDE, slice, QUERY_SLICE, k + first * padded + skipped * VL, nv,
                       padded);
        scale_scores(before, scaled, unscaled, scale);
        before = to;
        unscaled = part * VL;
    }
    scale_scores(before, scaled, unscaled, scale);
}

void KERNEL(attention_scores)(real *s, const real *q, fa_index slice, fa_index rows, const real *k, fa_index keys,
                              const fa_index *begin, const fa_index *end, fa_index D, rows_to_come *next)
{
    const fa_index padded = packed_size(D);
    const row_split split = split_rows(rows, TILE);
    if (D == 0) { /* no slice of queries, hence no scale */
        for (fa_index r = 0; r < rows; r++) fill(s + r * ATTENTION_STRIDE, 0, fa_round_up(keys, FA_PACKED * VL));
        return;
    }
    for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
        mr = tile_height(split, t);
        score_rows(s + r * ATTENTION_STRIDE, q + r * QUERY_STRIDE, slice, mr, k, keys, tile_keys(begin + r, end + r, mr), padded,
                   next);
    }
}
