/* Products with weights stored in fewer bits: c (+)= a b with panels of b in bfloat16, or in int8 with a scale for each column. The
   numbers are widened in registers, exactly, and the arithmetic is that of float: one chain of multiply-adds per element, split at
   multiples of k_block and added in order, as in gemm.c. With few rows a product is as fast as its weights arrive, and they are half
   or a quarter of the bytes.

   Float only: double has no use for weights of less than half its bits. */
#include "../common.h"

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

/* A k block of one panel with all tiles, or of some panels with a single row. */
typedef struct {
    real *c;
    const real *a, *scale;
    const void *b;
    fa_index ldc, c_panel, at, panel_stride, k_size, a_tile; /* at: where the block begins in b */
    row_split split;
    int accumulate;
} narrow_block;

FA_INLINE void multiply_tile(const narrow_block *t, const int mr, const int nv, const narrow_type type)
{
    vreal acc[ROW_SIDES][TILE_MAX_ROWS][3];
    narrow_product(acc, 1, mr, nv, t->a, 1, TILE_ROWS(nv), t->b, t->at, 0, t->k_size, type);
    store_narrow(t->c, t->ldc, acc[0], mr, nv, t->scale, t->accumulate);
}
FA_INLINE void tile_bf16(const void *tile, const int mr, const int nv) { multiply_tile(tile, mr, nv, BF16); }
FA_INLINE void tile_i8(const void *tile, const int mr, const int nv) { multiply_tile(tile, mr, nv, INT8); }

FA_INLINE void multiply_tiles(const narrow_block *block, tile_body *body, const int nv)
{
    narrow_block t = *block;
    for (fa_index i = 0; i < t.split.tiles; i++, t.a += t.a_tile) {
        const fa_index mr = tile_height(t.split, i);
        tile_dispatch(body, &t, mr, TILE_ROWS(nv), nv);
        t.c += mr * t.ldc;
    }
}

FA_INLINE void multiply_row(const narrow_block *t, const int side, const int nv, const narrow_type type)
{
    vreal acc[ROW_SIDES][TILE_MAX_ROWS][3];
    narrow_product(acc, side, 1, nv, t->a, 0, 1, t->b, t->at, t->panel_stride, t->k_size, type);
    FA_UNROLL
    for (int s = 0; s < side; s++)
        store_narrow(t->c + s * t->c_panel, 0, acc[s], 1, nv, t->scale ? t->scale + s * nv * VL : NULL, t->accumulate);
}

FA_NOINLINE void tiles_2_bf16(const narrow_block *t) { multiply_tiles(t, tile_bf16, 2); }
FA_NOINLINE void tiles_3_bf16(const narrow_block *t) { multiply_tiles(t, tile_bf16, 3); }
FA_NOINLINE void tiles_2_i8(const narrow_block *t) { multiply_tiles(t, tile_i8, 2); }
FA_NOINLINE void tiles_3_i8(const narrow_block *t) { multiply_tiles(t, tile_i8, 3); }
FA_NOINLINE void row_2_bf16(const narrow_block *t) { multiply_row(t, 1, 2, BF16); }
FA_NOINLINE void row_3_bf16(const narrow_block *t) { multiply_row(t, 1, 3, BF16); }
FA_NOINLINE void row_2_i8(const narrow_block *t) { multiply_row(t, 1, 2, INT8); }
FA_NOINLINE void row_3_i8(const narrow_block *t) { multiply_row(t, 1, 3, INT8); }
FA_NOINLINE void row_sides_2_bf16(const narrow_block *t) { multiply_row(t, ROW_SIDES_OF(2), 2, BF16); }
FA_NOINLINE void row_sides_3_bf16(const narrow_block *t) { multiply_row(t, ROW_SIDES_OF(3), 3, BF16); }
FA_NOINLINE void row_sides_2_i8(const narrow_block *t) { multiply_row(t, ROW_SIDES_OF(2), 2, INT8); }
FA_NOINLINE void row_sides_3_i8(const narrow_block *t) { multiply_row(t, ROW_SIDES_OF(3), 3, INT8); }

/* [nv - 2]: of all tiles and a panel, of a single row and a panel, of a single row and ROW_SIDES_OF(nv) panels */
typedef void block_product(const narrow_block *t);
static block_product *const products_bf16[2][3] = {{tiles_2_bf16, row_2_bf16, row_sides_2_bf16},
                                                   {tiles_3_bf16, row_3_bf16, row_sides_3_bf16}};
static block_product *const products_i8[2][3] = {{tiles_2_i8, row_2_i8, row_sides_2_i8}, {tiles_3_i8, row_3_i8, row_sides_3_i8}};

FA_INLINE void narrow_panels(const panel_product *product, block_product *const products[2][3])
{
    const panel_product p = *product;
    const fa_index k_block = K_BLOCK(p.nv), most = TILE_ROWS(p.nv), step = p.m == 1 ? 1 : most;
    narrow_block t = {.b = p.b, .ldc = p.ldc, .c_panel = p.c_panel, .panel_stride = p.panel_stride, .a_tile = most * p.k_size};
    t.split = split_rows(p.m, most);
    for (fa_index i = 0, side; i < p.panels; i += side) {
        side = p.m == 1 && i + ROW_SIDES_OF(p.nv) <= p.panels ? ROW_SIDES_OF(p.nv) : 1;
        t.c = p.c + i * p.c_panel;
        t.scale = p.scale ? p.scale + i * p.nv * VL : NULL;
        for (fa_index k = 0; k == 0 || k < p.k_size; k += k_block) {
            t.k_size = fa_min(k_block, p.k_size - k);
            t.at = i * p.panel_stride + k * p.nv * VL;
            t.a = p.a + k * step;
            t.accumulate = p.accumulate || k > 0;
            products[p.nv - 2][p.m > 1 ? 0 : side > 1 ? 2 : 1](&t);
        }
    }
}

void KERNEL(gemm_panels_bf16)(const panel_product *product) { narrow_panels(product, products_bf16); }
void KERNEL(gemm_panels_i8)(const panel_product *product) { narrow_panels(product, products_i8); }

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
