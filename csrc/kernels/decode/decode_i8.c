/* Attention with few queries on an int8 cache: keys and values are bytes with a scale for each token and head.

     s_j = log2(e) scale kscale_j q k_j       decode_scores_i8: sums of whole numbers, exact, then three products in float
     part = sum over j of (p_j vscale_j) v_j  decode_values_i8 (decode_i8_values.c)

   Keys are multiplied four bytes at a time into 32-bit sums (VPDPBUSD where there is one), or in matrix tiles. For that q becomes whole
   numbers as well, of 24 bits in three digits: q is off by 2^-24 of the largest element of its row, as much as float itself is off
   there, where one digit alone would have an error as large as the cache's own. All instruction sets have the same sums.

   32 bits limit the dimension, to FA_CACHE_LONGEST_I8. */
#if defined(FA_REAL_F32)
#include "decode_i8.h"
#include "../attention/attention.h"
#include "../gemm/tile.h"

#include <math.h>
#include <string.h>

#define LARGEST 8290176 /* the largest whole number whose digits are at most 127, the lower two being the lowest they can */
#define DIGITS_OF_128 0x808080u
#define SCORE_ROWS 4               /* rows that pass over keys together */
#define BLOCK_LINES (VL * VL / 16) /* of VL rows by VL words */

/* q[rows, D] to digits, with the scale of scores, in two pieces, in the factor. A row with NaN or infinity has the factor NaN. */
void KERNEL(decode_digits_of)(const decode_digits *dst, const real *q, fa_index ldq, fa_index rows, fa_index D, real scale_high,
                              real scale_low)
{
    for (fa_index r = 0; r < rows; r++, q += ldq) {
        int32_t *words = dst->words + r * dst->ld, *start = dst->start + r * DIGITS;
        vreal top = v_zero(), bad = v_zero();
        for (fa_index d = 0; d < D; d += VL) {
            const vreal x = v_load_n(q + d, D - d);
            top = v_max(v_abs(x), top);
            bad = v_fma(x, v_zero(), bad); /* 0 inf and 0 NaN are NaN */
        }
        const real largest = v_reduce_max(top);
        const int finite = !v_any(v_is_nan(bad));
        memset(words, 0, (size_t)dst->ld * sizeof *words);
        memset(start, 0, DIGITS * sizeof *start);
        const double unit = (double)largest / LARGEST, factor = unit * ((double)scale_high + (double)scale_low);
        dst->high[r] = finite ? (real)factor : (real)__builtin_nanf("");
        dst->low[r] = finite && isfinite(dst->high[r]) ? (real)(factor - (double)dst->high[r]) : 0;
        if (!finite || largest == 0) continue;
        const double inverse = 1 / unit;
        int32_t sum[DIGITS] = {0};
        for (fa_index d = 0; d < D; d++) {
            /* A whole number and 128 of each digit: bytes that are none of them negative; then 128 off each byte. */
            const uint32_t word = ((uint32_t)lrint((double)q[d] * inverse) + DIGITS_OF_128) ^ DIGITS_OF_128;
            int8_t *digits = (int8_t *)(words + d / 4 * DIGITS) + d % 4;
            FA_UNROLL
            for (int i = 0; i < DIGITS; i++) {
                const int8_t digit = (int8_t)(uint8_t)(word >> 8 * i);
                digits[i * 4] = digit;
                sum[i] += digit;
            }
        }
        for (int i = 0; i < DIGITS; i++) start[i] = -128 * sum[i];
    }
}

#if !FA_BYTE_TILES /* decode_i8_amx.c */
/* A tile of rows, those of q from `first` on, and VL keys, ld apart; `ahead`: what is prefetched. */
typedef struct {
    real *s;
    const decode_digits *q;
    const int8_t *k, *ahead;
    fa_index first, ld, D;
    const real *scales; /* of the keys */
} key_tile;

FA_INLINE void score_keys(const void *tile, const int mr, const int ng)
{
    const key_tile *t = tile;
    const decode_digits *q = t->q;
    const fa_index first = t->first, ld = t->ld, D = t->D;
    const vreal scales = v_load(t->scales);
    const int32_t *words = q->words + first * q->ld;
    (void)ng;
    vint acc[SCORE_ROWS][DIGITS];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int i = 0; i < DIGITS; i++) acc[r][i] = v_broadcast_int(q->start + (first + r) * DIGITS + i);
    }
    for (fa_index d = 0; d < D; d += 4 * VL, words += VL * DIGITS) {
        const int8_t *row = t->k + d;
        vreal a[VL];
        FA_UNROLL
        for (int i = 0; i < BLOCK_LINES; i++) FA_PREFETCH_FAR(t->ahead + d * VL + i * FA_CACHE_LINE);
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
    for (int r = 0; r < mr; r++) store_scores(t->s + r * ATTENTION_STRIDE, acc[r], q, first + r, scales);
}

/* The scores of `rows` rows and the keys [begin, end), begin a multiple of VL; whole vectors of s are written. buffer: as in
   decode_scores. */
void KERNEL(decode_scores_i8)(real *s, const decode_digits *q, fa_index rows, const decode_rows *k, const decode_rows *scales,
                              fa_index begin, fa_index end, fa_index D, void *buffer)
{
    const row_split split = split_rows(rows, SCORE_ROWS);
    const fa_index distance = fa_max(1, AHEAD_BYTES / (fa_max(1, D) * VL)) * VL;
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
        for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
            mr = tile_height(split, t);
            const key_tile tile = {s + r * ATTENTION_STRIDE + j, q, row, ahead, r, ld, D, scale};
            tile_dispatch(score_keys, &tile, mr, SCORE_ROWS, 1);
        }
    }
}
#endif

/* A row of bytes with its scale. */
void KERNEL(decode_widen_i8)(real *dst, const int8_t *x, fa_index D, real scale)
{
    for (fa_index d = 0; d < D; d++) dst[d] = scale * (real)x[d];
}

/* NaN for the rows that attend to a key whose scale is not finite: those whose score s (before the softmax) is not -inf. */
void KERNEL(decode_patch_i8)(real *part, fa_index ld, const score_block *b, const decode_rows *scales, fa_index D)
{
    for (fa_index r = 0; r < b->rows; r++)
        for (fa_index j = b->begin[r]; j < b->end[r]; j++) {
            fa_index together;
            const real *scale = find_row(scales, j, &together);
            if (isfinite(*scale) || b->s[r * ATTENTION_STRIDE + j] == -REAL_INFINITY) continue;
            for (fa_index d = 0; d < D; d += VL) v_store(part + r * ld + d, v_set1((real)__builtin_nanf("")));
            break;
        }
}

#endif
