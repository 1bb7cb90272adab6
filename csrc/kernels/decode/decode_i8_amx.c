/* decode_scores_i8 by matrix tiles (FA_BYTE_TILES): decode_i8.c has the equations, decode_amx.h the pipeline. */
#include "decode_i8.h"
#include "decode_amx.h"

#define TILE_QUERIES (VL / DIGITS) /* a column of a tile is a digit */

/* At most TILE_QUERIES queries, those from `first` on, and the rows of their scores. */
typedef struct {
    real *s;
    const decode_digits *q;
    fa_index first, rows;
    const decode_rows *scales;
    fa_index end; /* of the keys */
} few_queries;

/* A slice: [4 dimensions][digit of a query], zeros for those that are missing. */
FA_INLINE void transpose_digits(real *operand, const void *context, fa_index first, fa_index size)
{
    const few_queries *x = context;
    memset(operand, 0, (size_t)(size * VL) * sizeof *operand);
    for (fa_index r = 0; r < x->rows; r++) {
        const int32_t *words = x->q->words + (x->first + r) * x->q->ld + first * DIGITS;
        for (fa_index i = 0; i < size; i++) memcpy(operand + i * VL + r * DIGITS, words + i * DIGITS, DIGITS * sizeof *words);
    }
}

/* The scales of the keys [j, j + VL); lanes that nobody reads repeat the last one. */
FA_INLINE vreal load_scales(const decode_rows *scales, fa_index j, fa_index end)
{
    const fa_index n = fa_min(VL, end - j);
    fa_index together;
    const real *scale = find_row(scales, j, &together);
    if (FA_LIKELY(fa_min(together, n) >= VL)) return v_load(scale);
    const void *row[VL];
    real copied[VL];
    find_rows(row, scales, j, n);
    for (fa_index i = 0; i < VL; i++) memcpy(copied + i, row[fa_min(i, n - 1)], sizeof *copied);
    return v_load(copied);
}

/* Scores of VL keys from j on, from sums [key][digit of a query]. */
FA_INLINE void store_sums(const void *context, const real *product, fa_index j)
{
    const few_queries *x = context;
    const vreal scales = load_scales(x->scales, j, x->end);
    if (x->rows == 1) {
        vreal t[4];
        v_load_columns(t, product, VL);
        const vint sums[DIGITS] = {v_int_bits(t[0]), v_int_bits(t[1]), v_int_bits(t[2])};
        store_scores(x->s + j, sums, x->q, x->first, scales);
        return;
    }
    vreal t[VL];
    FA_UNROLL
    for (int c = 0; c < VL; c++) t[c] = v_load(product + c * VL);
    v_transpose(t);
    for (fa_index r = 0; r < x->rows; r++) {
        const vint sums[DIGITS] = {v_int_bits(t[r * DIGITS]), v_int_bits(t[r * DIGITS + 1]), v_int_bits(t[r * DIGITS + 2])};
        store_scores(x->s + r * ATTENTION_STRIDE + j, sums, x->q, x->first + r, scales);
    }
}

/* decode_i8.c has the contract; `buffer` is not needed. */
void KERNEL(decode_scores_i8)(real *s, const decode_digits *q, fa_index rows, const decode_rows *k, const decode_rows *scales,
                              fa_index begin, fa_index end, fa_index D, void *buffer)
{
    const key_operand keys = {k, begin, end, D};
    (void)buffer;
    for (fa_index r = 0; r < rows; r += TILE_QUERIES) {
        const few_queries queries = {s + r * ATTENTION_STRIDE, q, r, fa_min(TILE_QUERIES, rows - r), scales, end};
        multiply_all_keys(T_SIGNED, &keys, transpose_digits, store_sums, &queries);
    }
}
