/* What is not finite among the rows of a second factor. The products take 0 in its place, for a weight of 0 excludes a row and
   0 inf is NaN; this adds it to the rows that do take it. A part of the factor at a time is copied, zeros in the place of numbers, and
   summed in registers: with NaN everywhere attention takes twice as long. */
#ifndef FA_NONFINITE_H
#define FA_NONFINITE_H

#include "attention_tile.h"
#include "../common.h"

#define NONFINITE_ROWS 16
#define NONFINITE_COLUMNS 128 /* 8 or 16 KB of a stack */
#define NONFINITE_VECTORS 4   /* sums side by side: the latency of a multiply-add */

typedef struct {
    real x[NONFINITE_ROWS][NONFINITE_COLUMNS];
    unsigned char any[NONFINITE_ROWS];
} nonfinite_part;

/* The rows of the part that a row of the result takes, and with which weights. */
typedef struct {
    real weight[NONFINITE_ROWS];
    unsigned char row[NONFINITE_ROWS];
    int count;
} nonfinite_list;

/* Returns whether there is anything. */
FA_INLINE int take_nonfinite(nonfinite_part *part, const stored *x, fa_index ldx, fa_index rows, fa_index columns)
{
    int found = 0;
    for (fa_index i = 0; i < rows; i++, x += ldx) {
        vreal bad = v_zero();
        for (fa_index d = 0; d < columns; d += VL) {
            const vreal a = load_stored_some(x + d, columns - d);
            v_store(part->x[i] + d, v_select(v_is_nan(v_sub(a, a)), a, v_zero()));
            bad = v_fma(a, v_zero(), bad); /* 0 inf and 0 NaN are NaN */
        }
        part->any[i] = (unsigned char)(v_any(v_is_nan(bad)) != 0);
        found |= part->any[i];
    }
    return found;
}

FA_INLINE void list_row(nonfinite_list *list, fa_index row, real weight)
{
    list->weight[list->count] = weight;
    list->row[list->count++] = (unsigned char)row;
}

FA_INLINE void add_vectors(real *dst, const nonfinite_part *part, const nonfinite_list *list, fa_index column, const int vectors,
                           fa_index count)
{
    vreal sum[NONFINITE_VECTORS];
    FA_UNROLL
    for (int v = 0; v < vectors; v++) sum[v] = v_zero();
    for (int i = 0; i < list->count; i++) {
        const vreal weight = v_broadcast(list->weight + i);
        const real *x = part->x[list->row[i]] + column;
        FA_UNROLL
        for (int v = 0; v < vectors; v++) sum[v] = v_fma(weight, v_load(x + v * VL), sum[v]);
    }
    FA_UNROLL
    for (int v = 0; v < vectors; v++) {
        const fa_index n = count - v * VL;
        const vreal before = v_load_n(dst + column + v * VL, n);
        const vreal after = v_select(v_is_nan(v_sub(sum[v], sum[v])), v_add(before, sum[v]), before);
        v_store_n(dst + column + v * VL, after, n);
    }
}

/* dst += the listed rows with their weights, where that is not finite. */
FA_INLINE void add_nonfinite(real *dst, const nonfinite_part *part, const nonfinite_list *list, fa_index columns)
{
    fa_index d = 0;
    if (!list->count) return;
    for (; d + NONFINITE_VECTORS * VL <= columns; d += NONFINITE_VECTORS * VL)
        add_vectors(dst, part, list, d, NONFINITE_VECTORS, NONFINITE_VECTORS * VL);
    for (; d < columns; d += VL) add_vectors(dst, part, list, d, 1, fa_min(VL, columns - d));
}

#endif
