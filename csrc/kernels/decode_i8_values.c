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

#define LARGE_SCALE (REAL_LARGEST / (real)(128 * LARGE_PROBE))

/* The scales of keys side by side, and a vector of zeros behind them. One that is not finite counts as 0;
   returns what is found, as of values. */
FA_NOINLINE int gather_scales(real *dst, const decode_rows *scales, fa_index begin, fa_index end)
{
    vreal bad = v_zero(), largest = v_zero();
    for (fa_index j = begin, n; j < end; j += n) {
        fa_index together;
        const real *scale = find_row(scales, j, &together);
        n = fa_min(fa_min(together, end - j), VL);
        const vreal x = v_load_n(scale, n), finite = v_select(v_is_nan(v_sub(x, x)), v_zero(), x);
        v_store(dst + j - begin, finite);
        bad = v_fma(x, v_zero(), bad);
        largest = v_max(finite, largest);
    }
    v_store(dst + end - begin, v_zero()); /* parts of a page need not end where vectors of `dst` do */
    return (v_any(v_is_nan(bad)) ? VALUES_NOT_FINITE : 0) | (v_any(v_le(v_set1(LARGE_SCALE), largest)) ? VALUES_LARGE : 0);
}

/* p[j] times the scale of j, in place. */
FA_INLINE vreal scaled_weights(real *p, const real *scale, fa_index count)
{
    const vreal x = v_mul(v_load_n(p, count), v_load(scale));
    v_store_n(p, x, count);
    return x;
}

#if FA_BYTE_DOTS
#define WEIGHT_BYTES (ATTENTION_KEYS + 64) /* of a digit of a row; no power of two */
#define WIDTH (4 * VL)                     /* columns that pass together */
#define WORD_KEYS 4                        /* whose bytes are a word */
#define SUM_KEYS 16 /* in a round of sum_columns: the compiler copies sums from register to register in each */
#if FA_BYTE_TILES
#define VALUE_ROWS (T_ROWS / DIGITS)
#define DIGIT_ROWS T_ROWS /* read whatever the rows are, as tiles are configured alike for keys and values */
#define STEP (4 * T_K)    /* keys */
#else
#define VALUE_ROWS 2
#define DIGIT_ROWS (VALUE_ROWS * DIGITS)
#define STEP SUM_KEYS
#endif

typedef struct {
    uint8_t digits[DIGIT_ROWS][WEIGHT_BYTES];
    real exponent[VALUE_ROWS], poison[VALUE_ROWS]; /* what a row's sums are scaled by; NaN if it has one, else 0 */
} weights;

FA_INLINE void weigh(weights *w, real *p, const real *scale, fa_index rows, fa_index keys)
{
    for (fa_index r = 0; r < rows; r++, p += ATTENTION_STRIDE) {
        vreal largest = v_zero(), bad = v_zero();
        int exponent;
        for (fa_index j = 0; j < keys; j += VL) {
            const vreal x = scaled_weights(p + j, scale + j, keys - j);
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

/* Of `columns` bytes. Compilers that know where it comes from make two loops, with branches between them. */
FA_INLINE uint64_t mask_of(fa_index columns)
{
    uint64_t mask = v_first_bytes(columns);
    FA_OPAQUE(mask);
    return mask;
}

/* Words of the columns [column, column + WIDTH) of four rows, of which those are there that the mask has. What is `next`, so many bytes
   further, is asked for: the hardware does not see that the other half of what it skips comes next. */
FA_INLINE void load_words(vint words[4], const void *const *row, fa_index column, uint64_t there, fa_index next)
{
    vreal x[4];
    FA_UNROLL
    for (int i = 0; i < 4; i++) {
        const int8_t *from = (const int8_t *)row[i] + column;
        FA_PREFETCH(from + next);
        x[i] = v_load_bytes_of(from, there);
    }
    v_weave_bytes(words, x);
}

/* Columns of a row of part from the sums of its digits. */
FA_INLINE void store_values(real *part, const int32_t *sums, const weights *w, fa_index row, fa_index columns)
{
    vreal x[4];
    sums += row * DIGITS * WIDTH;
    FA_UNROLL
    for (int u = 0; u < 4; u++) {
        vreal digit[DIGITS];
        FA_UNROLL
        for (int i = 0; i < DIGITS; i++) digit[i] = v_real_of(v_load_int(sums + i * WIDTH + u * VL));
        x[u] = v_fma(digit[2], v_set1(65536), v_fma(digit[1], v_set1(256), digit[0]));
    }
    v_unweave_bytes(x);
    for (int u = 0; u < 4 && u * VL < columns; u++)
        v_store(part + u * VL, v_add(v_scale(x[u], v_set1(w->exponent[row])), v_set1(w->poison[row])));
}

/* part = w v for WIDTH columns from `column` on, in vectors, for one row or two. `row` is padded to a multiple of STEP. The columns that
   come `next`, so many bytes further, are asked for meanwhile. */
FA_INLINE void sum_columns(real *part, fa_index ld, const weights *w, const int mr, const void *const *row, fa_index column,
                           fa_index keys, fa_index columns, fa_index next)
{
    const uint64_t there = mask_of(columns);
    int32_t sums[2 * DIGITS * WIDTH] FA_ALIGN(64);
    vint acc[2 * DIGITS][4];
    FA_UNROLL
    for (int i = 0; i < mr * DIGITS; i++) {
        FA_UNROLL
        for (int u = 0; u < 4; u++) acc[i][u] = v_int_bits(v_zero());
    }
    for (fa_index j = 0; j < keys; j += SUM_KEYS) {
        FA_UNROLL
        for (int n = 0; n < SUM_KEYS; n += WORD_KEYS) {
            vint words[4];
            load_words(words, row + j + n, column, there, next);
            FA_UNROLL
            for (int i = 0; i < mr * DIGITS; i++) {
                int32_t digits;
                memcpy(&digits, w->digits[i] + j + n, sizeof digits);
                const vint weight = v_broadcast_int(&digits);
                FA_UNROLL
                for (int u = 0; u < 4; u++) acc[i][u] = v_dot_bytes(weight, words[u], acc[i][u]);
            }
        }
    }
    FA_UNROLL
    for (int i = 0; i < mr * DIGITS; i++) {
        FA_UNROLL
        for (int u = 0; u < 4; u++) v_store_int(sums + i * WIDTH + u * VL, acc[i][u]);
    }
    for (int r = 0; r < mr; r++) store_values(part + r * ld + column, sums, w, r, columns);
}

#if FA_BYTE_TILES
/* The same in tiles. */
FA_INLINE void tile_columns(real *part, fa_index ld, const weights *w, fa_index rows, const void *const *row, fa_index column,
                            fa_index keys, fa_index columns, fa_index next)
{
    const uint64_t there = mask_of(columns);
    int32_t words[T_K * WIDTH] FA_ALIGN(64), sums[T_ROWS * WIDTH] FA_ALIGN(64);
    t_sums_zero();
    for (fa_index j = 0; j < keys; j += STEP) {
        for (int i = 0; i < T_K; i++) {
            vint x[4];
            load_words(x, row + j + WORD_KEYS * i, column, there, next);
            FA_UNROLL
            for (int u = 0; u < 4; u++) v_store_int(words + i * WIDTH + u * VL, x[u]);
        }
        t_sums_add(T_UNSIGNED, 4, (const real *)(w->digits[0] + j), WEIGHT_BYTES / (fa_index)sizeof(real), (const real *)words,
                   WIDTH);
    }
    t_sums_store(4, (real *)sums, WIDTH);
    for (fa_index r = 0; r < rows; r++) store_values(part + r * ld + column, sums, w, r, columns);
}
#endif

/* The same for as many rows as pass together. */
FA_INLINE void value_columns(real *part, fa_index ld, const weights *w, fa_index rows, const void *const *row, fa_index column,
                             fa_index keys, fa_index columns, fa_index next)
{
    if (rows == 1)
        sum_columns(part, ld, w, 1, row, column, keys, columns, next);
    else
#if FA_BYTE_TILES
        tile_columns(part, ld, w, rows, row, column, keys, columns, next);
#else
        sum_columns(part, ld, w, 2, row, column, keys, columns, next);
#endif
}

/* part = (p vscale) v over the keys [begin, end); whole vectors of it are written. p is 0 or a probability throughout, and becomes
   p vscale. *found: a scale is not finite, and counted as 0; one is large. */
void KERNEL(decode_values_i8)(real *part, fa_index ld, real *p, fa_index rows, const decode_rows *v, const decode_rows *scales,
                              fa_index begin, fa_index end, fa_index D, int *found)
{
    const fa_index keys = end - begin;
    const void *row[ATTENTION_KEYS + STEP];
    real scale[ATTENTION_KEYS + VL];
    weights w;
    *found = gather_scales(scale, scales, begin, end);
    if (keys > 0) find_rows(row, v, begin, keys);
    if (v->table) prefetch_values(v, begin + rows_ahead(D), keys, D);
    for (fa_index j = keys; j < fa_round_up(keys, STEP); j++) row[j] = row[keys - 1]; /* times digits that are 0 */
    for (fa_index r = 0; r < rows; r += VALUE_ROWS) {
        const fa_index n = fa_min(VALUE_ROWS, rows - r);
        weigh(&w, p + r * ATTENTION_STRIDE + begin, scale, n, keys);
#if FA_BYTE_TILES
        if (n > 1) t_configure(2 * T_ROWS);
#endif
        for (fa_index column = 0; column < D; column += WIDTH) {
            const fa_index rest = D - column, next = r == 0 && rest > WIDTH ? WIDTH : 0;
            value_columns(part + r * ld, ld, &w, n, row, column, keys, fa_min(WIDTH, rest), next);
        }
    }
}
#else
#define VALUE_ROWS 3
#define CHUNK_BYTES 4096
#define CHUNK_KEYS 64
#define AHEAD_CHUNKS 4 /* so far ahead values are asked for */
#if FA_REGISTERS == 32
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
