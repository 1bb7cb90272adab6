/* decode_values_i8 by matrix tiles (FA_BYTE_TILES), but for a single row: decode_i8_values.c has the contract. */
#include "decode_i8_values.h"

FA_INLINE void tile_columns(real *part, fa_index ld, const weights *w, fa_index rows, const void *const *row, fa_index column,
                            fa_index keys, fa_index columns, fa_index next)
{
    if (rows == 1) {
        sum_columns(part, ld, w, 1, row, column, keys, columns, next);
        return;
    }
    const uint64_t there = mask_of(columns);
    int32_t words[T_K * WIDTH] FA_ALIGN(64), sums[T_ROWS * WIDTH] FA_ALIGN(64);
    t_configure(2 * T_ROWS);
    t_sums_zero();
    for (fa_index j = 0; j < keys; j += KEY_STEP) {
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
void KERNEL(decode_values_i8)(real *part, fa_index ld, real *p, fa_index rows, const decode_rows *v, const decode_rows *scales,
                              fa_index begin, fa_index end, fa_index D, int *found)
{
    digit_values(part, ld, p, rows, v, scales, begin, end, D, found, tile_columns);
}
