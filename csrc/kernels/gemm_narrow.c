/* Products with weights stored in fewer bits: c (+)= a b with panels of b in bfloat16, or in int8 with a scale for each column. The
   numbers are widened in registers, exactly, and the arithmetic is that of float: one chain of multiply-adds per element, split at
   multiples of k_block and added in order, as in gemm.c. With few rows a product is as fast as its weights arrive, and they are half
   or a quarter of the bytes.

   Float only: double has no use for weights of less than half its bits. */
#include "common.h"

#include <math.h>

#if defined(FA_REAL_F32)
#include "gemm.h"
#include "tile.h"

/* The largest magnitude that int8 takes: symmetric, so that a weight and its negative are treated alike. */
#define INT8_LARGEST 127

typedef enum { BF16, INT8 } narrow_type;

/* Vector v of the rows k and k + 1 of a panel. bfloat16 of two rows lie in pairs, lane by lane: a load and two simple operations give
   both, where widening each row would cost more than the multiply-adds. */
FA_INLINE void load_two(vreal two[2], const void *b, fa_index at, const int k, const int v, const int nv, const narrow_type type)
{
    if (type == BF16) {
        v_load_bf16_pairs((const uint16_t *)b + at + (k * nv + 2 * v) * VL, &two[0], &two[1]);
    } else {
        two[0] = v_load_i8((const int8_t *)b + at + (k * nv + v) * VL);
        two[1] = v_load_i8((const int8_t *)b + at + ((k + 1) * nv + v) * VL);
    }
}

/* acc[s][r] = the product of mr rows, element k of row r at a[r * row_step + k * k_step], with panel s of `side`. */
FA_INLINE void narrow_product(vreal acc[ROW_SIDES][TILE_MAX_ROWS][3], const int side, const int mr, const int nv,
                              const real *restrict a, const fa_index row_step, const fa_index k_step, const void *restrict b,
                              fa_index b_at, fa_index panel_stride, fa_index k_size, const narrow_type type)
{
    FA_UNROLL
    for (int s = 0; s < side; s++) {
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            FA_UNROLL
            for (int v = 0; v < nv; v++) acc[s][r][v] = v_zero();
        }
    }
    for (fa_index end = b_at + k_size * nv * VL; b_at != end; a += TILE_K * k_step, b_at += TILE_K * nv * VL) {
        FA_UNROLL
        for (int k = 0; k < TILE_K; k += 2) {
            FA_UNROLL
            for (int s = 0; s < side; s++) {
                vreal bv[3][2];
                FA_UNROLL
                for (int v = 0; v < nv; v++) load_two(bv[v], b, b_at + s * panel_stride, k, v, nv, type);
                FA_UNROLL
                for (int i = 0; i < 2; i++) {
                    FA_UNROLL
                    for (int r = 0; r < mr; r++) {
                        const vreal x = v_broadcast(a + r * row_step + (k + i) * k_step);
                        FA_UNROLL
                        for (int v = 0; v < nv; v++) acc[s][r][v] = v_fma(x, bv[v][i], acc[s][r][v]);
                    }
                }
            }
        }
    }
}

/* c (+)= acc, or acc times the scale of its column. */
FA_INLINE void store_narrow(real *c, fa_index ldc, vreal acc[TILE_MAX_ROWS][3], const int mr, const int nv, const real *scale,
                            int accumulate)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) {
            real *p = c + r * ldc + v * VL;
            const vreal factor = scale ? v_load(scale + v * VL) : v_set1(1);
            v_store(p, accumulate ? v_fma(acc[r][v], factor, v_load(p)) : v_mul(acc[r][v], factor));
        }
    }
}

#define NARROW_TILE(mr, nv)                                                      \
    narrow_product(acc, 1, mr, nv, a, 1, TILE_ROWS(nv), b, at, 0, k_size, type); \
    store_narrow(c, ldc, acc[0], mr, nv, scale, accumulate)
#define DEFINE_NARROW(nv, SWITCH, TYPE, suffix)                                                                                  \
    FA_NOINLINE void panel_##nv##_##suffix(real *c, fa_index ldc, const real *a, fa_index a_tile, tile_deal deal, const void *b, \
                                           fa_index at, fa_index k_size, const real *scale, int accumulate)                      \
    {                                                                                                                            \
        for (fa_index t = 0; t < deal.tiles; t++, a += a_tile) {                                                                 \
            const fa_index mr = rows_of_tile(deal, t);                                                                           \
            vreal acc[ROW_SIDES][TILE_MAX_ROWS][3];                                                                              \
            const narrow_type type = TYPE;                                                                                       \
            SWITCH(mr, NARROW_TILE, nv)                                                                                          \
            c += mr * ldc;                                                                                                       \
        }                                                                                                                        \
    }
#define DEFINE_NARROW_ROW(side, nv, TYPE, suffix)                                                                            \
    FA_NOINLINE void row_##side##_##nv##_##suffix(real *c, fa_index c_panel, const real *a, const void *b, fa_index at,      \
                                                  fa_index panel_stride, fa_index k_size, const real *scale, int accumulate) \
    {                                                                                                                        \
        vreal acc[ROW_SIDES][TILE_MAX_ROWS][3];                                                                              \
        narrow_product(acc, side, 1, nv, a, 0, 1, b, at, panel_stride, k_size, TYPE);                                        \
        FA_UNROLL                                                                                                            \
        for (int s = 0; s < side; s++)                                                                                       \
            store_narrow(c + s * c_panel, 0, acc[s], 1, nv, scale ? scale + s * nv * VL : NULL, accumulate);                 \
    }

#if FA_REGISTERS == 32
#define SWITCH_2 TILE_SWITCH_12
#define SWITCH_3 TILE_SWITCH_8
#else
#define SWITCH_2 TILE_SWITCH_6
#define SWITCH_3 TILE_SWITCH_4
#endif

#define DEFINE_KERNEL(TYPE, suffix)                                                                                              \
    DEFINE_NARROW(2, SWITCH_2, TYPE, suffix)                                                                                     \
    DEFINE_NARROW(3, SWITCH_3, TYPE, suffix)                                                                                     \
    DEFINE_NARROW_ROW(4, 2, TYPE, suffix)                                                                                        \
    DEFINE_NARROW_ROW(2, 3, TYPE, suffix)                                                                                        \
    DEFINE_NARROW_ROW(1, 2, TYPE, suffix)                                                                                        \
    DEFINE_NARROW_ROW(1, 3, TYPE, suffix)                                                                                        \
    void KERNEL(gemm_panels_##suffix)(real * c, fa_index ldc, fa_index c_panel, const real *a, fa_index m, const void *b,        \
                                      const real *scale, fa_index panel_stride, fa_index n_panels, fa_index nv, fa_index k_size, \
                                      int accumulate)                                                                            \
    {                                                                                                                            \
        const fa_index k_block = K_BLOCK(nv), most = TILE_ROWS(nv), step = m == 1 ? 1 : most;                                    \
        const tile_deal deal = deal_rows(m, most);                                                                               \
        for (fa_index p = 0, side; p < n_panels; p += side) {                                                                    \
            side = m == 1 && p + ROW_SIDES_OF(nv) <= n_panels ? ROW_SIDES_OF(nv) : 1;                                            \
            const real *factor = scale ? scale + p * nv * VL : NULL;                                                             \
            for (fa_index k = 0; k == 0 || k < k_size; k += k_block) {                                                           \
                const fa_index kb = fa_min(k_block, k_size - k), at = p * panel_stride + k * nv * VL;                            \
                const real *ak = a + k * step;                                                                                   \
                real *to = c + p * c_panel;                                                                                      \
                const int add = accumulate || k > 0;                                                                             \
                if (side == 4)                                                                                                   \
                    row_4_2_##suffix(to, c_panel, ak, b, at, panel_stride, kb, factor, add);                                     \
                else if (side == 2)                                                                                              \
                    row_2_3_##suffix(to, c_panel, ak, b, at, panel_stride, kb, factor, add);                                     \
                else if (m == 1 && nv == 2)                                                                                      \
                    row_1_2_##suffix(to, c_panel, ak, b, at, panel_stride, kb, factor, add);                                     \
                else if (m == 1)                                                                                                 \
                    row_1_3_##suffix(to, c_panel, ak, b, at, panel_stride, kb, factor, add);                                     \
                else if (nv == 2)                                                                                                \
                    panel_2_##suffix(to, ldc, ak, most * k_size, deal, b, at, kb, factor, add);                                  \
                else                                                                                                             \
                    panel_3_##suffix(to, ldc, ak, most * k_size, deal, b, at, kb, factor, add);                                  \
            }                                                                                                                    \
        }                                                                                                                        \
    }
DEFINE_KERNEL(BF16, bf16)
DEFINE_KERNEL(INT8, i8)

/* One panel of `width` columns to bfloat16: element j of the rows k and k + 1 side by side. */
void KERNEL(pair_panel)(uint16_t *b, const real *panel, fa_index width, fa_index k_size)
{
    for (fa_index k = 0; k < k_size; k += 2, panel += 2 * width)
        for (fa_index j = 0; j < width; j += VL, b += 2 * VL) {
            uint16_t even[VL], odd[VL];
            v_store_bf16(even, v_load(panel + j));
            v_store_bf16(odd, v_load(panel + width + j));
            for (int i = 0; i < VL; i++) {
                b[2 * i] = even[i];
                b[2 * i + 1] = odd[i];
            }
        }
}

/* One panel of `width` columns: b = round(panel / scale), scale = the largest magnitude of its column / 127, 1 for a column of zeros. */
void KERNEL(quantize_panel)(int8_t *b, real *scale, const real *panel, fa_index width, fa_index k_size)
{
    for (fa_index j = 0; j < width; j++) {
        real largest = 0;
        for (fa_index k = 0; k < k_size; k++) largest = fmaxf(largest, fabsf(panel[k * width + j]));
        scale[j] = largest > 0 ? largest / INT8_LARGEST : 1;
        for (fa_index k = 0; k < k_size; k++) {
            /* The smallest scale may be subnormal, and the quotient a little too large. */
            const real q = rintf(panel[k * width + j] / scale[j]);
            b[k * width + j] = (int8_t)fminf(INT8_LARGEST, fmaxf(-INT8_LARGEST, q));
        }
    }
}
#endif
