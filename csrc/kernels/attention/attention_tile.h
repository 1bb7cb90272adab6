/* What the kernels of forward and backward attention share: panels, the keys of a tile, 2^x. */
#ifndef FA_ATTENTION_TILE_H
#define FA_ATTENTION_TILE_H

#include "attention.h"
#include "../common.h"
#include "../gemm/tile.h"

#define TILE TILE_ROWS(FA_NV)
#define ATTENTION_ROWS (FA_AMX ? TILE / 2 : TILE) /* of which a group has two: with FA_AMX, together one tile */
#define PANEL (FA_NV * VL)
#define PANEL_TILES 4
/* Rounding by V_MAGIC, and V_MAGIC - R, are exact below this; larger rows have R taken off first. */
#define SHIFT_LIMIT REAL_POWER(REAL_MANTISSA_BITS - 2)
#define REAL_POWER(n) ((real)((int64_t)1 << (n)))

/* Vectors in the panel that starts at `first` of `size` columns. */
FA_INLINE fa_index panel_vectors(fa_index size, fa_index first) { return fa_min(FA_NV, fa_ceil_div(size - first, VL)); }

/* Keys and dimensions in a step of the register tile. */
#define TILE_STEP (TILE_K * FA_PACKED)

/* Places of `size` elements in a packed operand, padded. */
FA_INLINE fa_index packed_size(fa_index size) { return fa_round_up(fa_ceil_div(size, FA_PACKED), TILE_K); }

typedef struct {
    fa_index begin, end;
} key_range;

/* The keys that any of the rows attends to; or 0 to 0. */
FA_INLINE key_range keys_of_rows(const fa_index *begin, const fa_index *end, fa_index rows)
{
    key_range range = {INT64_MAX, 0};
    for (fa_index r = 0; r < rows; r++) {
        if (end[r] <= begin[r]) continue;
        range.begin = fa_min(range.begin, begin[r]);
        range.end = fa_max(range.end, end[r]);
    }
    return range.end == 0 ? (key_range){0, 0} : range;
}

/* The same widened to whole packed elements. */
FA_INLINE key_range packed_keys(const fa_index *begin, const fa_index *end, fa_index rows)
{
    const key_range range = keys_of_rows(begin, end, rows);
    return (key_range){range.begin / FA_PACKED * FA_PACKED, fa_round_up(range.end, FA_PACKED)};
}

/* The same widened to whole steps. */
FA_INLINE key_range tile_keys(const fa_index *begin, const fa_index *end, fa_index rows)
{
    const key_range range = keys_of_rows(begin, end, rows);
    return (key_range){range.begin / TILE_STEP * TILE_STEP, fa_round_up(range.end, TILE_STEP)};
}

/* Tiles that a panel passes in a row, while it is in the first-level cache, and the keys of each. */
typedef struct {
    fa_index tiles, row[PANEL_TILES + 1];
    key_range range[PANEL_TILES];
} tile_run;

/* Those from tile t0 and row r0 on. */
FA_INLINE void take_tiles(tile_run *run, row_split split, fa_index t0, fa_index r0, const score_block *b)
{
    run->tiles = fa_min(PANEL_TILES, split.tiles - t0);
    run->row[0] = r0;
    for (fa_index t = 0, r = r0; t < run->tiles; t++) {
        const fa_index rows = tile_height(split, t0 + t);
        run->range[t] = packed_keys(b->begin + r, b->end + r, rows);
        run->row[t + 1] = r += rows;
    }
}

/* Rows to be prefetched with each of so many tiles. */
FA_INLINE fa_index rows_per_tile(const prefetch_rows *x, fa_index tiles)
{
    fa_index rows = 0;
    for (; x; x = x->then) rows += x->count;
    return fa_ceil_div(rows, fa_max(1, tiles));
}

/* Prefetches the rows of tile i: a few at a time, spread over a product, where all at once would stand in its way. */
FA_INLINE void prefetch_part(const prefetch_rows *x, fa_index i, fa_index per_tile)
{
    if (per_tile == 0) return;
    for (fa_index begin = i * per_tile, end = begin + per_tile; x && end > 0; begin -= x->count, end -= x->count, x = x->then)
        for (fa_index r = fa_max(0, begin); r < fa_min(x->count, end); r++)
            for (fa_index at = 0; at < x->bytes; at += FA_CACHE_LINE) FA_PREFETCH_FAR((const char *)x->first + r * x->step + at);
}

FA_INLINE vreal finite_or_zero(vreal x) { return v_select(v_is_nan(v_sub(x, x)), v_zero(), x); }

/* What the sums of a block tell of its values. Those of a row whose scores are NaN tell nothing: all bits. */
FA_INLINE int values_found(const real *part, fa_index ld, fa_index rows, fa_index D)
{
    vreal bad = v_zero();
    for (fa_index r = 0; r < rows; r++)
        for (fa_index d = 0; d < D; d += VL) bad = v_fma(v_load(part + r * ld + d), v_set1((real)LARGE_PROBE), bad);
    if (FA_LIKELY(!v_any(v_is_nan(v_sub(bad, bad))))) return 0;
    bad = v_zero();
    for (fa_index r = 0; r < rows; r++)
        for (fa_index d = 0; d < D; d += VL) bad = v_fma(v_load(part + r * ld + d), v_zero(), bad); /* 0 inf, 0 NaN are NaN */
    return v_any(v_is_nan(bad)) ? VALUES_NOT_FINITE | VALUES_LARGE : VALUES_LARGE;
}

FA_INLINE void fill(real *row, fa_index first, fa_index end)
{
    for (fa_index j = first; j < end; j += VL) v_store_n(row + j, v_zero(), fa_min(VL, end - j));
}

/* 2^(x - R) for magic = V_MAGIC - R and lowest = R + V_EXPONENT_FLOOR, where the result is exactly 0. A degree-5 (float)
   polynomial: off by 2^-23.4, half of what the score itself is off by. With FA_PAIRS one of degree 3, off by 2^-13.3: the
   result is rounded to bfloat16, which is off by up to 2^-9. Numbers are interleaved, as in gate_exps. */
#if FA_PAIRS
#define EXP2_COEFFICIENT exp2_coefficient_bf16
#else
#define EXP2_COEFFICIENT exp2_coefficient
#endif
FA_INLINE void exp2_of_all(vreal *x, const int count, vreal magic, vreal lowest)
{
    vreal t[MOST_ABREAST];
    FA_UNROLL
    for (int i = 0; i < count; i++) {
        const vreal y = v_max(lowest, x[i]);
        t[i] = v_add(y, magic);
        x[i] = v_sub(y, v_sub(t[i], magic));
    }
    FA_UNROLL
    for (int i = 0; i < count; i++) x[i] = v_fma(POLYNOMIAL(x[i], EXP2_COEFFICIENT), x[i], v_set1(1));
    FA_UNROLL
    for (int i = 0; i < count; i++) x[i] = v_add_exponent(x[i], t[i]);
}
FA_INLINE vreal exp2_shifted(vreal x, vreal magic, vreal lowest)
{
    exp2_of_all(&x, 1, magic, lowest);
    return x;
}

#endif
