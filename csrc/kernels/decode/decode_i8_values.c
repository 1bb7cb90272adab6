/* part = sum over j of (p_j vscale_j) v_j for an int8 cache: decode_i8.c has the scores.

   Where products of bytes are an instruction (FA_BYTE_DOTS), and in matrix tiles, weights become whole numbers below 2^24 as three
   digits, with a power of two for each row and block: a weight is off by 2^-25 of the largest one at most, as float itself is off there.
   Sums over the keys of a block are exact. Elsewhere bytes become reals in registers, and sums are chains as in decode.c. */
#if defined(FA_REAL_F32)
#include "decode_i8_values.h"
#include "../gemm/tile.h"

#if FA_BYTE_DOTS
FA_INLINE void vector_columns(real *part, fa_index ld, const weights *w, fa_index rows, const void *const *row, fa_index column,
                              fa_index keys, fa_index columns, fa_index next)
{
    if (rows == 1)
        sum_columns(part, ld, w, 1, row, column, keys, columns, next);
    else
        sum_columns(part, ld, w, 2, row, column, keys, columns, next);
}

/* part = (p vscale) v over the keys [begin, end); whole vectors of it are written. p is 0 or a probability throughout, and becomes
   p vscale. *found: a scale is not finite, and counted as 0; one is large. */
void KERNEL(decode_values_i8)(real *part, fa_index ld, real *p, fa_index rows, const decode_rows *v, const decode_rows *scales,
                              fa_index begin, fa_index end, fa_index D, int *found)
{
    digit_values(part, ld, p, rows, v, scales, begin, end, D, found, vector_columns);
}
#else
#define VALUE_ROWS 3
#define CHUNK_BYTES 4096
#define CHUNK_KEYS 64
#define AHEAD_CHUNKS 4 /* so far ahead values are prefetched */
#if FA_REGISTERS == 32
#define VALUE_VECTORS 8
#else
#define VALUE_VECTORS 2
#endif

/* A tile of rows of part, and the rows of so many values from a column on, of which `columns` are there. */
typedef struct {
    real *part;
    const real *w;
    const void *const *row;
    fa_index ld, column, keys, columns;
    int first; /* part is not added to */
} value_tile;

/* part[r] += w v for nv vectors of columns, all there if there are several. */
FA_INLINE void add_values(const void *tile, const int mr, const int nv)
{
    const value_tile *t = tile;
    const fa_index ld = t->ld, columns = nv == 1 && t->columns < VL ? t->columns : 0;
    real *part = t->part + t->column;
    vreal acc[VALUE_ROWS][VALUE_VECTORS];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int u = 0; u < nv; u++) acc[r][u] = t->first ? v_zero() : v_load(part + r * ld + u * VL);
    }
    for (fa_index j = 0; j < t->keys; j++) {
        const int8_t *v = (const int8_t *)t->row[j] + t->column;
        vreal weight[VALUE_ROWS];
        FA_UNROLL
        for (int r = 0; r < mr; r++) weight[r] = v_broadcast(t->w + r * ATTENTION_STRIDE + j);
        FA_UNROLL
        for (int u = 0; u < nv; u++) {
            const vreal x = columns ? v_load_i8_n(v + u * VL, columns - u * VL) : v_load_i8(v + u * VL);
            FA_UNROLL
            for (int r = 0; r < mr; r++) acc[r][u] = v_fma(weight[r], x, acc[r][u]);
        }
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int u = 0; u < nv; u++) v_store(part + r * ld + u * VL, acc[r][u]);
    }
}

FA_INLINE void value_chunk(real *part, fa_index ld, const real *w, fa_index rows, const void *const *row, fa_index keys,
                           fa_index D, const int first)
{
    const row_split split = split_rows(rows, VALUE_ROWS);
    for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
        mr = tile_height(split, t);
        for (fa_index column = 0, nv; column < D; column += nv * VL) {
            const value_tile tile = {part + r * ld, w + r * ATTENTION_STRIDE, row, ld, column, keys, D - column, first};
            nv = D - column >= VALUE_VECTORS * VL ? VALUE_VECTORS : 1;
            if (nv > 1)
                tile_dispatch(add_values, &tile, mr, VALUE_ROWS, VALUE_VECTORS);
            else
                tile_dispatch(add_values, &tile, mr, VALUE_ROWS, 1);
        }
    }
}

/* part = (p vscale) v over the keys [begin, end); whole vectors of it are written, and as many rows behind it for a second chain. p is
   0 or a probability throughout, and becomes p vscale. *found: a scale is not finite, and counted as 0; one is large. */
void KERNEL(decode_values_i8)(real *part, fa_index ld, real *p, fa_index rows, const decode_rows *v, const decode_rows *scales,
                              fa_index begin, fa_index end, fa_index D, int *found)
{
    const fa_index most = fa_max(1, fa_min(CHUNK_KEYS, CHUNK_BYTES / fa_max(1, D)));
    real *next = part + rows * ld, scale[ATTENTION_KEYS + VL];
    *found = gather_scales(scale, scales, begin, end);
    for (fa_index r = 0; r < rows; r++)
        for (fa_index j = begin; j < end; j += VL) scaled_weights(p + r * ATTENTION_STRIDE + j, scale + j - begin, end - j);
    for (fa_index j0 = begin, last; j0 < end; j0 = last) {
        last = fa_min(end, (j0 / CHAIN_KEYS + 1) * CHAIN_KEYS);
        for (fa_index j = j0, keys; j < last; j += keys) {
            const void *row[CHUNK_KEYS];
            keys = fa_min(most, last - j);
            find_rows(row, v, j, keys);
            if (v->table) prefetch_values(v, j + AHEAD_CHUNKS * most, keys, D);
            value_chunk(j0 == begin ? part : next, ld, p + j, rows, row, keys, D, j == j0);
        }
        if (j0 == begin) continue;
        for (fa_index r = 0; r < rows; r++)
            for (fa_index d = r * ld; d < r * ld + D; d += VL) v_store(part + d, v_add(v_load(part + d), v_load(next + d)));
    }
}
#endif
#endif
