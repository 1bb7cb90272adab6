/* Rows of a table by number, for results that no cache holds: stores that do not read what they overwrite move a third less. */
#include "../common.h"

#define AHEAD 4096 /* bytes of the table that are prefetched: its rows come in no order that a processor could foresee */

FA_INLINE void prefetch_row(const char *row, fa_index bytes)
{
    for (fa_index at = 0; at < bytes; at += FA_CACHE_LINE) FA_PREFETCH(row + at);
}

void KERNEL(gather_rows)(void *y, const void *x, const fa_index *id, fa_index rows, fa_index bytes)
{
    const fa_index ahead = 1 + AHEAD / bytes;
    char *to = y;
    for (fa_index i = 0; i < rows; i++, to += bytes) {
        const char *from = (const char *)x + id[i] * bytes;
        if (i + ahead < rows) prefetch_row((const char *)x + id[i + ahead] * bytes, bytes);
        for (fa_index at = 0; at < bytes; at += VL * (fa_index)sizeof(real))
            v_stream((real *)(to + at), v_load((const real *)(from + at)));
    }
    v_end_stream();
}
