/* Where the kernels of decode.c and decode_i8.c find the rows of keys, values or scales, in plain arrays and in pages. */
#ifndef FA_DECODE_H
#define FA_DECODE_H

#include "../../base.h"

/* Row j lies at base + slot * ld, with slot = first + j; or in pages of page_keys rows, the one at base + table[slot / page_keys] *
   page_step. Distances are in bytes. */
typedef struct {
    const void *base;
    const fa_index *table; /* NULL: no pages */
    fa_index page_step, page_keys;
    fa_index first, ld;
    fa_index keys; /* rows there are: prefetching ends there */
} decode_rows;

/* The address of row j, and how many rows from there on lie ld apart. */
FA_INLINE const void *find_row(const decode_rows *x, fa_index j, fa_index *together)
{
    const fa_index slot = x->first + j;
    *together = x->keys - j;
    if (!x->table) return (const char *)x->base + slot * x->ld;
    const fa_index in_page = slot % x->page_keys;
    *together = fa_min(*together, x->page_keys - in_page);
    return (const char *)x->base + x->table[slot / x->page_keys] * x->page_step + in_page * x->ld;
}

/* The addresses of the rows [j, j + n). */
FA_INLINE void find_rows(const void **row, const decode_rows *x, fa_index j, fa_index n)
{
    for (fa_index i = 0, together; i < n;) {
        const char *at = find_row(x, j + i, &together);
        const fa_index ld = x->ld, end = fa_min(n, i + together);
        for (; i + 4 <= end; i += 4, at += 4 * ld) { /* one after another each would wait for the one before */
            row[i] = at;
            row[i + 1] = at + ld;
            row[i + 2] = at + 2 * ld;
            row[i + 3] = at + 3 * ld;
        }
        for (; i < end; i++, at += ld) row[i] = at;
    }
}

/* So far ahead rows are prefetched, and how many that is, of so many bytes. */
#define AHEAD_BYTES 16384
FA_INLINE fa_index rows_ahead(fa_index bytes) { return fa_ceil_div(AHEAD_BYTES, fa_max(1, bytes)); }

/* Prefetches the rows [j, j + n) of so many bytes, as far as there are any: pages end the streams that the hardware finds by itself in
   an array. */
FA_INLINE void prefetch_values(const decode_rows *x, fa_index j, fa_index n, fa_index bytes)
{
    for (fa_index together; n > 0 && j < x->keys; j += together, n -= together) {
        const char *row = find_row(x, j, &together);
        together = fa_min(together, n);
        for (fa_index i = 0; i < together; i++)
            for (fa_index at = 0; at < bytes; at += FA_CACHE_LINE) FA_PREFETCH_FAR(row + i * x->ld + at);
    }
}

/* A query of an int8 cache as whole numbers of three digits, -128..127 each: q = (digit 2 * 65536 + digit 1 * 256 + digit 0) times the
   row's factor. */
#define DIGITS 3
typedef struct {
    int32_t *words; /* [rows, ld]: of 4 dimensions at a time the 4 bytes of each digit; 0 beyond the last */
    fa_index ld;
    int32_t *start;    /* [rows, DIGITS]: - 128 times the sum of the digits: bytes of keys are multiplied with 128 added */
    float *high, *low; /* [rows]: the factor, with that of the scores, in two pieces */
} decode_digits;

#endif
