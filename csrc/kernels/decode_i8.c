/* Attention with few queries on an int8 cache: keys and values are bytes with a scale for each token and head.

     s_j = log2(e) scale kscale_j q k_j       decode_scores_i8: sums of whole numbers, exact, then three products in float
     part = sum over j of (p_j vscale_j) v_j  decode_values_i8: bytes become reals in registers; chains as in decode.c

   Keys are multiplied four bytes at a time into 32-bit sums (VPDPBUSD where there is one). For that q becomes whole numbers as well,
   of 24 bits in three digits: q is off by 2^-24 of the largest element of its row, as much as float itself is off there, where one
   digit alone would have an error as large as the cache's own. All instruction sets have the same sums.

   32 bits limit the dimension, to FA_CACHE_LONGEST_I8. */
#include "attention.h"
#include "common.h"
#include "tile.h"

#include <math.h>
#include <string.h>

#if defined(FA_REAL_F32)

#define LARGEST 8290176 /* the largest whole number whose digits are at most 127, the lower two being the lowest they can */
#define PREFETCH_BYTES 16384
#define LINE 64
#define SCORE_ROWS 4 /* rows that pass over keys together */
#define VALUE_ROWS 3
#define CHUNK_BYTES 4096
#define CHUNK_KEYS 64
#define AHEAD_CHUNKS 4             /* so far ahead values are asked for */
#define BLOCK_LINES (VL * VL / 16) /* of VL rows by VL words */
#if defined(FA_ISA_AVX512)
#define VALUE_VECTORS 8
#else
#define VALUE_VECTORS 2
#endif

/* q[rows, D] to digits, with the scale of scores, in two pieces, in the factor. A row with NaN or infinity has the factor NaN. */
void KERNEL(decode_digits_of)(const decode_digits *dst, const real *q, fa_index ldq, fa_index rows, fa_index D, real scale_high,
                              real scale_low)
{
    for (fa_index r = 0; r < rows; r++, q += ldq) {
        int32_t *words = dst->words + r * dst->ld, *start = dst->start + r * DIGITS;
        double largest = 0;
        int finite = 1;
        for (fa_index d = 0; d < D; d++) {
            largest = fmax(largest, fabs((double)q[d]));
            finite &= isfinite(q[d]) != 0;
        }
        memset(words, 0, (size_t)dst->ld * sizeof *words);
        memset(start, 0, DIGITS * sizeof *start);
        const double unit = largest / LARGEST, factor = unit * ((double)scale_high + (double)scale_low);
        dst->high[r] = finite ? (real)factor : (real)__builtin_nanf("");
        dst->low[r] = finite && isfinite(dst->high[r]) ? (real)(factor - (double)dst->high[r]) : 0;
        if (!finite || largest == 0) continue;
        const double inverse = 1 / unit;
        for (fa_index d = 0; d < D; d++) {
            int32_t rest = (int32_t)lrint((double)q[d] * inverse);
            for (int i = 0; i < DIGITS; i++) {
                const int8_t digit = (int8_t)(uint8_t)rest;
                ((int8_t *)(words + d / 4 * DIGITS + i))[d % 4] = digit;
                start[i] -= 128 * digit;
                rest = (rest - digit) / 256;
            }
        }
    }
}

/* Scores of one tile of rows and VL keys, ld apart. */
FA_INLINE void score_tile(real *s, const decode_digits *q, fa_index first, const int mr, const int8_t *k, fa_index ld, fa_index D,
                          vreal scales, const int8_t *ahead)
{
    const vreal nan = v_set1((real)__builtin_nanf(""));
    const int32_t *words = q->words + first * q->ld;
    vint acc[SCORE_ROWS][DIGITS];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int i = 0; i < DIGITS; i++) acc[r][i] = v_broadcast_int(q->start + (first + r) * DIGITS + i);
    }
    for (fa_index d = 0; d < D; d += 4 * VL, words += VL * DIGITS) {
        const int8_t *row = k + d;
        vreal a[VL];
        FA_UNROLL
        for (int i = 0; i < BLOCK_LINES; i++) FA_PREFETCH_FAR(ahead + d * VL + i * LINE);
        FA_UNROLL
        for (int i = 0; i < VL; i++) {
            if (i % 4 == 0) FA_OPAQUE(row);
            a[i] = FA_LIKELY(D - d >= 4 * VL) ? v_load_bytes(row + i % 4 * ld) : v_load_bytes_n(row + i % 4 * ld, D - d);
            if (i % 4 == 3) row += 4 * ld;
        }
        v_transpose(a);
        FA_UNROLL
        for (int u = 0; u < VL; u++) {
            const vint bytes = v_unsigned_bytes(a[u]);
            FA_UNROLL
            for (int r = 0; r < mr; r++) {
                FA_UNROLL
                for (int i = 0; i < DIGITS; i++)
                    acc[r][i] = v_dot_bytes(bytes, v_broadcast_int(words + r * q->ld + u * DIGITS + i), acc[r][i]);
            }
        }
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        const vreal low = v_fma(v_real_of(acc[r][1]), v_set1(256), v_real_of(acc[r][0]));
        const vreal x = v_mul(v_fma(v_real_of(acc[r][2]), v_set1(65536), low), scales);
        const vreal y = v_fma(x, v_broadcast(q->high + first + r), v_mul(x, v_broadcast(q->low + first + r)));
        v_store(s + r * ATTENTION_STRIDE, v_select(v_is_nan(y), nan, y));
    }
}

#define SCORE_TILE(mr, ahead) score_tile(s + r * ATTENTION_STRIDE + j, q, r, mr, row, ld, D, v_load(scale), ahead)

/* The scores of `rows` rows and the keys [begin, end), begin a multiple of VL; whole vectors of s are written. buffer: as in
   decode_scores. */
void KERNEL(decode_scores_i8)(real *s, const decode_digits *q, fa_index rows, const decode_rows *k, const decode_rows *scales,
                              fa_index begin, fa_index end, fa_index D, void *buffer)
{
    const tile_deal deal = deal_rows(rows, SCORE_ROWS);
    const fa_index distance = fa_max(1, PREFETCH_BYTES / (fa_max(1, D) * VL)) * VL;
    for (fa_index j = begin; j < end; j += VL) {
        const fa_index n = fa_min(VL, end - j);
        fa_index together, ld = k->ld;
        const int8_t *row = find_row(k, j, &together), *ahead = row;
        real part[VL];
        const real *scale = find_row(scales, j, &together);
        if (FA_UNLIKELY(fa_min(together, n) < VL)) {
            const void *rows_of[VL], *scale_of[VL];
            find_rows(rows_of, k, j, n);
            find_rows(scale_of, scales, j, n);
            for (fa_index i = 0; i < VL; i++) {
                const fa_index from = fa_min(i, n - 1); /* lanes that nobody reads repeat the last key */
                memcpy((int8_t *)buffer + i * D, rows_of[from], (size_t)D);
                memcpy(part + i, scale_of[from], sizeof *part);
            }
            row = ahead = buffer;
            ld = D;
            scale = part;
        } else if (j + distance + VL <= k->keys) {
            ahead = find_row(k, j + distance, &together);
        }
        for (fa_index t = 0, r = 0, mr; t < deal.tiles; t++, r += mr) {
            mr = rows_of_tile(deal, t);
            TILE_SWITCH_4(mr, SCORE_TILE, ahead)
        }
    }
}

/* part[r] += w v over `keys` keys and nv vectors of columns. */
FA_INLINE void value_tile(real *part, fa_index ld, const int mr, const int nv, const real *w, const void *const *row,
                          fa_index column, fa_index keys, const int first, const fa_index columns)
{
    vreal acc[SCORE_ROWS][VALUE_VECTORS];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int u = 0; u < nv; u++) acc[r][u] = first ? v_zero() : v_load(part + r * ld + u * VL);
    }
    for (fa_index j = 0; j < keys; j++) {
        const int8_t *v = (const int8_t *)row[j] + column;
        vreal weight[SCORE_ROWS];
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

/* NaN for the rows that attend to a key whose scale is not finite: those whose score s (before the softmax) is not -inf. */
void KERNEL(decode_patch_i8)(real *part, fa_index ld, const real *s, fa_index rows, const fa_index *begin, const fa_index *end,
                             const decode_rows *scales, fa_index D)
{
    for (fa_index r = 0; r < rows; r++)
        for (fa_index j = begin[r]; j < end[r]; j++) {
            fa_index together;
            const real *scale = find_row(scales, j, &together);
            if (isfinite(*scale) || s[r * ATTENTION_STRIDE + j] == -REAL_INFINITY) continue;
            for (fa_index d = 0; d < D; d += VL) v_store(part + r * ld + d, v_set1((real)__builtin_nanf("")));
            break;
        }
}

#endif
