/* What the files of the values of the int8 cache share: scales, and sums of weights that are whole numbers. */
#ifndef FA_DECODE_I8_VALUES_H
#define FA_DECODE_I8_VALUES_H

#include "../attention/attention.h"
#include "../common.h"

#include <math.h>
#include <string.h>

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
#define KEY_STEP (4 * T_K)
#else
#define VALUE_ROWS 2
#define DIGIT_ROWS (VALUE_ROWS * DIGITS)
#define KEY_STEP SUM_KEYS /* keys, to whose multiples weights are padded */
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
        for (fa_index j = 0; j < fa_round_up(keys, KEY_STEP); j += VL)
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
   further, is prefetched: the hardware does not see that the other half of what it skips comes next. */
FA_INLINE void load_words(vint words[4], const void *const *row, fa_index column, uint64_t there, fa_index next)
{
    vreal x[4];
    FA_UNROLL
    for (int i = 0; i < 4; i++) {
        const int8_t *from = (const int8_t *)row[i] + column;
        FA_PREFETCH(from + next);
        x[i] = v_load_bytes_of(from, there);
    }
    v_interleave_bytes(words, x);
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
    v_unpermute_words(x);
    for (int u = 0; u < 4 && u * VL < columns; u++)
        v_store(part + u * VL, v_add(v_scale(x[u], v_set1(w->exponent[row])), v_set1(w->poison[row])));
}

/* part = w v for WIDTH columns from `column` on, in vectors, for one row or two. `row` is padded to a multiple of KEY_STEP. The columns that
   come `next`, so many bytes further, are prefetched meanwhile. */
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

/* part = w v for as many rows as pass together, and WIDTH columns from `column` on. */
typedef void value_columns(real *part, fa_index ld, const weights *w, fa_index rows, const void *const *row, fa_index column,
                           fa_index keys, fa_index columns, fa_index next);

/* decode_values_i8 by whole numbers, with the products of `sum`. */
FA_INLINE void digit_values(real *part, fa_index ld, real *p, fa_index rows, const decode_rows *v, const decode_rows *scales,
                            fa_index begin, fa_index end, fa_index D, int *found, value_columns *sum)
{
    const fa_index keys = end - begin;
    const void *row[ATTENTION_KEYS + KEY_STEP];
    real scale[ATTENTION_KEYS + VL];
    weights w;
    *found = gather_scales(scale, scales, begin, end);
    if (keys > 0) find_rows(row, v, begin, keys);
    if (v->table) prefetch_values(v, begin + rows_ahead(D), keys, D);
    for (fa_index j = keys; j < fa_round_up(keys, KEY_STEP); j++) row[j] = row[keys - 1]; /* times digits that are 0 */
    for (fa_index r = 0; r < rows; r += VALUE_ROWS) {
        const fa_index n = fa_min(VALUE_ROWS, rows - r);
        weigh(&w, p + r * ATTENTION_STRIDE + begin, scale, n, keys);
        for (fa_index column = 0; column < D; column += WIDTH) {
            const fa_index rest = D - column, next = r == 0 && rest > WIDTH ? WIDTH : 0;
            sum(part + r * ld, ld, &w, n, row, column, keys, fa_min(WIDTH, rest), next);
        }
    }
}
#endif

#endif
