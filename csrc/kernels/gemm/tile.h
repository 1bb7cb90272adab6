/* The register tile that every matrix product of the library runs through: linear, recurrent and attention alike.

     acc[r][v] = sum over k of a[r, k] * b[k, v]          r < mr rows, v < nv vectors

   b is a packed panel: nv * VL columns side by side, k outside, so that one k is nv contiguous vectors. a is addressed as
   a[r * row_step + k * k_step]. mr, nv and both steps are compile-time constants at every call: the accumulators then
   live in registers, and no address arithmetic is left in the loop. That matters: with a hyperthread busy next door a core
   dispatches 3 instructions a cycle, and a tile needs about 1.7 per multiply-add. Whatever else touches `acc` has to be unrolled
   as well: one variable subscript, and the compiler stores all of it in each round of the loop, which costs 30 %.

   With FA_PAIRS each packed element of a and b is a pair of bfloat16, at neighbouring k, and k counts pairs.

   Each element is one chain of multiply-adds over ascending k from zero: the value of a row does not depend on mr, on
   its place in the tile, or on what the other rows hold. */
#ifndef FA_TILE_H
#define FA_TILE_H

#include "../../simd/simd.h"

/* Rows of a tile of nv vectors: as many accumulators as leave registers for nv vectors of b and one of a. 12 accumulators of 16
   registers (24 of 32) are also chains enough to keep two multiply-add ports of latency 4 busy. */
#if FA_AMX
#define TILE_ROWS(nv) (2 * T_ROWS)
#elif FA_REGISTERS == 32
#define TILE_ROWS(nv) ((nv) == 2 ? 12 : (nv) == 3 ? 8 : 6)
#else
#define TILE_ROWS(nv) ((nv) <= 2 ? 6 : (nv) == 3 ? 4 : 3)
#endif
#define TILE_MAX_ROWS 12
#define TILE_MAX_VECTORS 4

/* k runs in steps of this; operands are padded with zeros, which change no bit of a sum that began at +0. 8 against 4: +4 % at
   k = 64, the head size of attention. */
#if FA_AMX
#define TILE_K T_K
#else
#define TILE_K 8
#endif

typedef vreal tile_acc[TILE_MAX_ROWS][TILE_MAX_VECTORS];

/* acc += the products of `steps` k, a constant. */
FA_INLINE void tile_steps(tile_acc acc, const int mr, const int nv, const int width, const int steps, const real *restrict a,
                          const fa_index row_step, const fa_index k_step, const real *restrict b)
{
    FA_UNROLL
    for (int k = 0; k < steps; k++) {
        vreal bv[TILE_MAX_VECTORS];
        FA_UNROLL
        for (int v = 0; v < nv; v++) bv[v] = v_load(b + k * width * VL + v * VL);
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            const vreal x = v_broadcast(a + r * row_step + k * k_step);
            FA_UNROLL
            for (int v = 0; v < nv; v++) acc[r][v] = v_multiply_add(x, bv[v], acc[r][v]);
        }
    }
}

/* Of TILE_K. */
FA_INLINE void tile_step(tile_acc acc, const int mr, const int nv, const int width, const real *restrict a,
                         const fa_index row_step, const fa_index k_step, const real *restrict b)
{
    tile_steps(acc, mr, nv, width, TILE_K, a, row_step, k_step, b);
}

/* acc += the product with the first nv of the `width` vectors of a panel. */
FA_INLINE void tile_product_part(tile_acc acc, const int mr, const int nv, const int width, const real *restrict a,
                                 const fa_index row_step, const fa_index k_step, const real *restrict b, fa_index k_size)
{
    for (const real *end = b + k_size * width * VL; b != end; a += TILE_K * k_step, b += TILE_K * width * VL)
        tile_step(acc, mr, nv, width, a, row_step, k_step, b);
}

FA_INLINE void tile_zero(tile_acc acc, const int mr, const int nv)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) acc[r][v] = v_zero();
    }
}

FA_INLINE void tile_product(tile_acc acc, const int mr, const int nv, const real *restrict a, const fa_index row_step,
                            const fa_index k_step, const real *restrict b, fa_index k_size)
{
    tile_zero(acc, mr, nv);
    tile_product_part(acc, mr, nv, nv, a, row_step, k_step, b, k_size);
}

/* The same of any k_size: an operand that is zeros from there to its padding is not multiplied. */
FA_INLINE void tile_product_any(tile_acc acc, const int mr, const int nv, const real *restrict a, const fa_index row_step,
                                const fa_index k_step, const real *restrict b, fa_index k_size)
{
    const fa_index whole = k_size / TILE_K * TILE_K;
    tile_product(acc, mr, nv, a, row_step, k_step, b, whole);
    for (fa_index k = whole; k < k_size; k++) tile_steps(acc, mr, nv, nv, 1, a + k * k_step, row_step, k_step, b + k * nv * VL);
}

/* tile_product, and each step prefetches `lines` cache lines from `ahead` on: what is multiplied next, and far away. Spread over
   the steps they cost nothing; all at once they stand in the way of the operands. */
FA_INLINE void tile_product_ahead(tile_acc acc, const int mr, const int nv, const real *restrict a, const fa_index row_step,
                                  const fa_index k_step, const real *restrict b, fa_index k_size, const char *ahead,
                                  fa_index lines)
{
    tile_zero(acc, mr, nv);
    for (const real *end = b + k_size * nv * VL; b != end; a += TILE_K * k_step, b += TILE_K * nv * VL) {
        for (fa_index i = 0; i < lines; i++, ahead += FA_CACHE_LINE) FA_PREFETCH_FAR(ahead);
        tile_step(acc, mr, nv, nv, a, row_step, k_step, b);
    }
}

#if FA_AMX
/* c = a b for at most TILE_ROWS rows, which t_configure has been told of, and nv of the `width` vectors of a panel: through memory, as
   tiles have no other path to vectors. a in slices as t_product_2 has them. */
FA_INLINE void matrix_product(real *c, fa_index ldc, fa_index mr, fa_index nv, const real *a, fa_index lda, fa_index slice,
                              fa_index slice_k, const real *b, fa_index width, fa_index k_size)
{
    const fa_index ldb = width * VL;
    if (mr > T_ROWS) {
        for (fa_index v = 0; v < nv; v += 2) {
            if (v + 1 < nv)
                t_product_2(c + v * VL, ldc, 1, a, lda, slice, slice_k, b + v * VL, ldb, k_size);
            else
                t_product_2(c + v * VL, ldc, 0, a, lda, slice, slice_k, b + v * VL, ldb, k_size);
        }
        return;
    }
    switch (nv) {
    case 1: t_product_1(c, ldc, 1, a, lda, slice, slice_k, b, ldb, k_size); break;
    case 2: t_product_1(c, ldc, 2, a, lda, slice, slice_k, b, ldb, k_size); break;
    case 3: t_product_1(c, ldc, 3, a, lda, slice, slice_k, b, ldb, k_size); break;
    default: t_product_1(c, ldc, 4, a, lda, slice, slice_k, b, ldb, k_size); break;
    }
}
#endif

/* How rows are split into tiles of at most `most`: as evenly as possible, the larger first (13 = 5 + 4 + 4, not 6 + 6 + 1), because
   a tile of few rows has too few chains to hide the latency of the multiply-add. */
typedef struct {
    fa_index tiles, base, larger;
} row_split;

FA_INLINE row_split split_rows(fa_index rows, fa_index most)
{
    const fa_index tiles = fa_ceil_div(rows, most);
    return (row_split){tiles, tiles ? rows / tiles : 0, tiles ? rows % tiles : 0};
}
FA_INLINE fa_index tile_height(row_split split, fa_index tile) { return split.base + (tile < split.larger); }

/* body(tile, mr, nv) with mr a constant, 1 <= mr <= most: dispatch and body are inlined, so that each number of rows has code of its own,
   whose accumulators are registers. */
typedef void tile_body(const void *tile, const int mr, const int nv);
FA_INLINE void tile_case(tile_body *body, const void *tile, const int mr, const int most, const int nv)
{
    if (mr <= most) body(tile, mr, nv);
}
FA_INLINE void tile_dispatch(tile_body *body, const void *tile, fa_index mr, const int most, const int nv)
{
    switch (mr) {
    case 1: tile_case(body, tile, 1, most, nv); break;
    case 2: tile_case(body, tile, 2, most, nv); break;
    case 3: tile_case(body, tile, 3, most, nv); break;
    case 4: tile_case(body, tile, 4, most, nv); break;
    case 5: tile_case(body, tile, 5, most, nv); break;
    case 6: tile_case(body, tile, 6, most, nv); break;
    case 7: tile_case(body, tile, 7, most, nv); break;
    case 8: tile_case(body, tile, 8, most, nv); break;
    case 9: tile_case(body, tile, 9, most, nv); break;
    case 10: tile_case(body, tile, 10, most, nv); break;
    case 11: tile_case(body, tile, 11, most, nv); break;
    default: tile_case(body, tile, 12, most, nv); break;
    }
}

/* Runs CALL(mr, nv) with mr a constant. The number in the name is the most rows there are. */
#define TILE_SWITCH_3(mr, CALL, nv) \
    switch (mr) {                   \
    case 1: CALL(1, nv); break;     \
    case 2: CALL(2, nv); break;     \
    default: CALL(3, nv); break;    \
    }
#define TILE_SWITCH_4(mr, CALL, nv) \
    switch (mr) {                   \
    case 1: CALL(1, nv); break;     \
    case 2: CALL(2, nv); break;     \
    case 3: CALL(3, nv); break;     \
    default: CALL(4, nv); break;    \
    }
#define TILE_SWITCH_6(mr, CALL, nv) \
    switch (mr) {                   \
    case 1: CALL(1, nv); break;     \
    case 2: CALL(2, nv); break;     \
    case 3: CALL(3, nv); break;     \
    case 4: CALL(4, nv); break;     \
    case 5: CALL(5, nv); break;     \
    default: CALL(6, nv); break;    \
    }
#if FA_REGISTERS == 32
#define TILE_SWITCH_8(mr, CALL, nv) \
    switch (mr) {                   \
    case 1: CALL(1, nv); break;     \
    case 2: CALL(2, nv); break;     \
    case 3: CALL(3, nv); break;     \
    case 4: CALL(4, nv); break;     \
    case 5: CALL(5, nv); break;     \
    case 6: CALL(6, nv); break;     \
    case 7: CALL(7, nv); break;     \
    default: CALL(8, nv); break;    \
    }
#define TILE_SWITCH_12(mr, CALL, nv) \
    switch (mr) {                    \
    case 1: CALL(1, nv); break;      \
    case 2: CALL(2, nv); break;      \
    case 3: CALL(3, nv); break;      \
    case 4: CALL(4, nv); break;      \
    case 5: CALL(5, nv); break;      \
    case 6: CALL(6, nv); break;      \
    case 7: CALL(7, nv); break;      \
    case 8: CALL(8, nv); break;      \
    case 9: CALL(9, nv); break;      \
    case 10: CALL(10, nv); break;    \
    case 11: CALL(11, nv); break;    \
    default: CALL(12, nv); break;    \
    }
#endif

#endif
