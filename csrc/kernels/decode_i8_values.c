/* part = sum over j of (p_j vscale_j) v_j for an int8 cache: decode_i8.c has the scores.

   Where products of bytes are an instruction (FA_BYTE_DOTS), and in matrix tiles, weights become whole numbers below 2^24 as three
   digits, with a power of two for each row and block: a weight is off by 2^-25 of the largest one at most, as float itself is off there.
   Sums over the keys of a block are exact. Elsewhere bytes become reals in registers, and sums are chains as in decode.c. */
#include "attention.h"
#include "common.h"
#include "tile.h"

#include <math.h>
#include <string.h>

#if defined(FA_REAL_F32)

/* p[r][j] times the scale of j. A scale that is not finite counts as 0; returns whether there is one. */
FA_NOINLINE int scale_weights(real *p, fa_index rows, const decode_rows *scales, fa_index begin, fa_index end)
{
    vreal bad = v_zero();
    for (fa_index j = begin, n; j < end; j += n) {
        fa_index together;
        const real *scale = find_row(scales, j, &together);
        n = fa_min(fa_min(together, end - j), VL);
        const vreal x = v_load_n(scale, n), finite = v_select(v_is_nan(v_sub(x, x)), v_zero(), x);
        bad = v_fma(x, v_zero(), bad);
        for (fa_index r = 0; r < rows; r++) {
            real *row = p + r * ATTENTION_STRIDE + j;
            v_store_n(row, v_mul(v_load_n(row, n), finite), n);
        }
    }
    return v_any(v_is_nan(bad));
}

#if FA_BYTE_DOTS
#define WEIGHT_BYTES (ATTENTION_KEYS + 64) /* of a digit of a row; no power of two */
#define WIDTH (4 * VL)                     /* columns that pass together */
#define WORD_KEYS 4                        /* whose bytes are a word */
#define AHEAD_KEYS 64                      /* rows of pages that are asked for together */
#if FA_BYTE_TILES
#define VALUE_ROWS (T_ROWS / DIGITS)
#define STEP (4 * T_K) /* keys */
#else
#define VALUE_ROWS 2
#define STEP WORD_KEYS
#endif

typedef struct {
    uint8_t digits[VALUE_ROWS * DIGITS][WEIGHT_BYTES];
    real exponent[VALUE_ROWS], poison[VALUE_ROWS]; /* what a row's sums are scaled by; NaN if it has one, else 0 */
} weights;

FA_INLINE void weigh(weights *w, const real *p, fa_index rows, fa_index keys)
{
    for (fa_index r = 0; r < rows; r++, p += ATTENTION_STRIDE) {
        vreal largest = v_zero(), bad = v_zero();
        int exponent;
        for (fa_index j = 0; j < keys; j += VL) {
            const vreal x = v_load_n(p + j, keys - j);
            largest = v_max(x, largest);
            bad = v_fma(x, v_zero(), bad);
        }
        frexpf(v_any(v_is_nan(bad)) ? 0 : v_reduce_max(largest), &exponent);
        exponent = 24 - exponent;
        w->exponent[r] = (real)-exponent;
        w->poison[r] = v_reduce_add(bad);
        for (fa_index j = 0; j < fa_round_up(keys, STEP); j += VL)
            v_store_digits(w->digits[r * DIGITS] + j, WEIGHT_BYTES, v_scale(v_load_n(p + j, keys - j), v_set1((real)exponent)));
    }
}

/* Words of the columns [column, column + WIDTH) of four rows, of which `columns` are there. */
FA_INLINE void load_words(vint words[4], const void *const *row, fa_index column, fa_index columns)
{
    vreal x[4];
    FA_UNROLL
    for (int i = 0; i < 4; i++) {
        const int8_t *from = (const int8_t *)row[i] + column;
        x[i] = FA_LIKELY(columns >= WIDTH) ? v_load_bytes(from) : v_load_bytes_n(from, columns);
    }
    v_weave_bytes(words, x);
}

/* Columns of a row of part from the sums of its digits. */
FA_INLINE void store_values(real *part, const vint sums[DIGITS][4], const weights *w, fa_index row, fa_index columns)
{
    vreal x[4];
    FA_UNROLL
    for (int u = 0; u < 4; u++)
        x[u] = v_fma(v_real_of(sums[2][u]), v_set1(65536), v_fma(v_real_of(sums[1][u]), v_set1(256), v_real_of(sums[0][u])));
    v_unweave_bytes(x);
    for (int u = 0; u < 4 && u * VL < columns; u++)
        v_store(part + u * VL, v_add(v_scale(x[u], v_set1(w->exponent[row])), v_set1(w->poison[row])));
}

#if FA_BYTE_TILES
/* part = w v for WIDTH columns from `column` on. `row` is padded to a multiple of STEP; rows `ahead`, of as many bytes as there are
   columns, are asked for meanwhile. */
FA_INLINE void tile_columns(real *part, fa_index ld, const weights *w, fa_index rows, const void *const *row, fa_index column,
                            fa_index keys, fa_index columns, const decode_rows *ahead)
{
    int32_t words[T_K * WIDTH] FA_ALIGN(64), sums[T_ROWS][WIDTH] FA_ALIGN(64);
    t_sums_zero();
    for (fa_index j = 0; j < keys; j += STEP) {
        if (ahead && j % AHEAD_KEYS == 0) prefetch_values(ahead, j, AHEAD_KEYS, columns);
        for (int i = 0; i < T_K; i++) {
            vint x[4];
            load_words(x, row + j + 4 * i, column, columns);
            FA_UNROLL
            for (int u = 0; u < 4; u++) v_store_int(words + i * WIDTH + u * VL, x[u]);
        }
        t_sums_add(T_UNSIGNED, 4, (const real *)(w->digits[0] + j), WEIGHT_BYTES / (fa_index)sizeof(real), (const real *)words,
                   WIDTH);
    }
    t_sums_store(4, (real *)sums, WIDTH);
    for (fa_index r = 0; r < rows; r++) {
        vint x[DIGITS][4];
        FA_UNROLL
        for (int i = 0; i < DIGITS; i++) {
            FA_UNROLL
            for (int u = 0; u < 4; u++) x[i][u] = v_load_int(sums[r * DIGITS + i] + u * VL);
        }
        store_values(part + r * ld + column, x, w, r, columns);
    }
}
#endif

/* The same in vectors for one row or two. */
FA_INLINE void value_sums(real *part, fa_index ld, const weights *w, const int mr, const void *const *row, fa_index column,
                          fa_index keys, fa_index columns, const decode_rows *ahead)
{
    vint acc[2][DIGITS][4];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int i = 0; i < DIGITS; i++) {
            FA_UNROLL
            for (int u = 0; u < 4; u++) acc[r][i][u] = v_int_bits(v_zero());
        }
    }
    for (fa_index j = 0; j < keys; j += WORD_KEYS) {
        if (ahead && j % AHEAD_KEYS == 0) prefetch_values(ahead, j, AHEAD_KEYS, columns);
        vint words[4];
        load_words(words, row + j, column, columns);
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            FA_UNROLL
            for (int i = 0; i < DIGITS; i++) {
                int32_t digits;
                memcpy(&digits, w->digits[r * DIGITS + i] + j, sizeof digits);
                const vint weight = v_broadcast_int(&digits);
                FA_UNROLL
                for (int u = 0; u < 4; u++) acc[r][i][u] = v_dot_bytes(weight, words[u], acc[r][i][u]);
            }
        }
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) store_values(part + r * ld + column, acc[r], w, r, columns);
}

/* The same for as many rows as pass together. */
FA_INLINE void value_columns(real *part, fa_index ld, const weights *w, fa_index rows, const void *const *row, fa_index column,
                             fa_index keys, fa_index columns, const decode_rows *ahead)
{
    if (rows == 1)
        value_sums(part, ld, w, 1, row, column, keys, columns, ahead);
    else
#if FA_BYTE_TILES
        tile_columns(part, ld, w, rows, row, column, keys, columns, ahead);
#else
        value_sums(part, ld, w, 2, row, column, keys, columns, ahead);
#endif
}

/* part = (p vscale) v over the keys [begin, end); whole vectors of it are written. p is 0 or a probability throughout, and becomes
   p vscale. *nonfinite: a scale is not finite, and counted as 0. */
void KERNEL(decode_values_i8)(real *part, fa_index ld, real *p, fa_index rows, const decode_rows *v, const decode_rows *scales,
                              fa_index begin, fa_index end, fa_index D, int *nonfinite)
{
    const fa_index keys = end - begin, skipped = begin + rows_ahead(D);
    const void *row[ATTENTION_KEYS + STEP];
    decode_rows ahead = *v;
    weights w;
    ahead.first += skipped;
    ahead.keys -= skipped;
    *nonfinite = scale_weights(p, rows, scales, begin, end);
    if (keys > 0) find_rows(row, v, begin, keys);
    for (fa_index j = keys; j < fa_round_up(keys, STEP); j++) row[j] = row[keys - 1]; /* times digits that are 0 */
    for (fa_index r = 0; r < rows; r += VALUE_ROWS) {
        const fa_index n = fa_min(VALUE_ROWS, rows - r);
        weigh(&w, p + r * ATTENTION_STRIDE + begin, n, keys);
#if FA_BYTE_TILES
        if (n > 1) t_configure(n * DIGITS);
#endif
        for (fa_index column = 0; column < D; column += WIDTH)
            value_columns(part + r * ld, ld, &w, n, row, column, keys, D - column, r + column == 0 && v->table ? &ahead : NULL);
#if FA_BYTE_TILES
        if (n > 1) t_release();
#endif
    }
}
#else
#define VALUE_ROWS 3
#define CHUNK_BYTES 4096
#define CHUNK_KEYS 64
#define AHEAD_CHUNKS 4 /* so far ahead values are asked for */
#if defined(FA_ISA_AVX512)
#define VALUE_VECTORS 8
#else
#define VALUE_VECTORS 2
#endif

/* part[r] += w v over `keys` keys and nv vectors of columns. */
FA_INLINE void value_tile(real *part, fa_index ld, const int mr, const int nv, const real *w, const void *const *row,
                          fa_index column, fa_index keys, const int first, const fa_index columns)
{
    vreal acc[VALUE_ROWS][VALUE_VECTORS];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int u = 0; u < nv; u++) acc[r][u] = first ? v_zero() : v_load(part + r * ld + u * VL);
    }
    for (fa_index j = 0; j < keys; j++) {
        const int8_t *v = (const int8_t *)row[j] + column;
        vreal weight[VALUE_ROWS];
        FA_UNROLL
        for (int r = 0; r < mr; r++) weight[r] = v_broadcast(w + r * ATTENTION_STRIDE + j);
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

#define VALUE_TILE(mr, nv)                                                                             \
    value_tile(part + r * ld + column, ld, mr, nv, w + r * ATTENTION_STRIDE, row, column, keys, first, \
               (nv) == 1 && D - column < VL ? D - column : 0)

FA_INLINE void value_chunk(real *part, fa_index ld, const real *w, fa_index rows, const void *const *row, fa_index keys,
                           fa_index D, const int first)
{
    const tile_deal deal = deal_rows(rows, VALUE_ROWS);
    for (fa_index t = 0, r = 0, mr; t < deal.tiles; t++, r += mr) {
        mr = rows_of_tile(deal, t);
        for (fa_index column = 0, nv; column < D; column += nv * VL) {
            nv = D - column >= VALUE_VECTORS * VL ? VALUE_VECTORS : 1;
            if (nv > 1) {
                TILE_SWITCH_3(mr, VALUE_TILE, VALUE_VECTORS)
            } else {
                TILE_SWITCH_3(mr, VALUE_TILE, 1)
            }
        }
    }
}

/* part = (p vscale) v over the keys [begin, end); whole vectors of it are written, and as many rows behind it for a second chain. p is
   0 or a probability throughout, and becomes p vscale. *nonfinite: a scale is not finite, and counted as 0. */
void KERNEL(decode_values_i8)(real *part, fa_index ld, real *p, fa_index rows, const decode_rows *v, const decode_rows *scales,
                              fa_index begin, fa_index end, fa_index D, int *nonfinite)
{
    const fa_index most = fa_max(1, fa_min(CHUNK_KEYS, CHUNK_BYTES / fa_max(1, D)));
    real *next = part + rows * ld;
    *nonfinite = scale_weights(p, rows, scales, begin, end);
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
