/* Products of rows and columns that are bytes with scales (quantize.c):

     c[i, j] = 2^(e_i + e_j - 7) sum over groups g of (sum over k in g of a[i, k] b[k, j]) (s_ig s_gj) + bias[j]

   The inner sums are exact, 128 products of bytes in 32-bit integers. The outer one is a chain over rising g; its products and additions
   are rounded one by one, without multiply-adds, so that all instruction sets have the same bits. 2^-7 is that of the rotations. */
#if defined(FA_REAL_F32)
#include "../common.h"
#include "bytes.h"
#include "tile.h"

#define ROTATION_BITS 7
#define LEAST_EXPONENT (-250) /* of v_scale; all results are 0 there */

/* Rows of a register tile: sums, what v_dot_signed has of a row, and its temporaries. 3 rows in 16 registers: 76 against 80 Gop/s. */
#if FA_REGISTERS == 32
#define BYTE_ROWS 4
#else
#define BYTE_ROWS 2
#endif

typedef struct {
    const byte_product *p;
    fa_index first; /* row */
    const int8_t *bytes;
    const real *exponents, *scales, *bias;
    const int32_t *starts;
    real *c;
    fa_index columns;
} byte_tile;

FA_INLINE void store_row(real *c, vreal total, vreal exponent, const real *bias, fa_index count)
{
    const vreal power = v_max(exponent, v_set1(LEAST_EXPONENT)); /* of NaN the least */
    vreal y = v_select(v_is_nan(exponent), exponent, v_scale(total, power));
    if (bias) y = v_add(y, load_some(bias, count));
    store_some(c, y, count);
}

FA_INLINE void multiply_bytes(const void *tile, const int mr, const int nv)
{
    const byte_tile *t = tile;
    const byte_product *p = t->p;
    const fa_index padded = byte_padded(p->K), groups = byte_groups(p->K);
    const int8_t *a = p->a.q + t->first * padded, *b = t->bytes;
    const real *scale = p->a.scale + t->first * groups, *exponent = p->a.exponent + t->first;
    const int32_t *start = p->a.start + t->first * groups;
    vreal total[BYTE_ROWS][BYTE_VECTORS];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) total[r][v] = v_zero();
    }
    for (fa_index g = 0; g < groups; g++) {
        vint acc[BYTE_ROWS][BYTE_VECTORS];
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            FA_UNROLL
            for (int v = 0; v < nv; v++)
                acc[r][v] = FA_BYTE_DOTS ? v_load_int(t->starts + (g * nv + v) * VL) : v_broadcast_int(start + r * groups + g);
        }
        for (const int8_t *end = a + fa_min(BYTE_GROUP, padded - g * BYTE_GROUP); a != end; a += 8) {
            FA_UNROLL
            for (int k = 0; k < 8; k += 4, b += 4 * nv * VL) {
                FA_UNROLL
                for (int r = 0; r < mr; r++) {
                    const vbytes x = v_broadcast_bytes(a + r * padded + k);
                    FA_UNROLL
                    for (int v = 0; v < nv; v++) acc[r][v] = v_dot_signed(x, v_load_int(b + 4 * v * VL), acc[r][v]);
                }
            }
        }
        FA_UNROLL
        for (int v = 0; v < nv; v++) {
            const vreal of_columns = v_load(t->scales + (g * nv + v) * VL);
            FA_UNROLL
            for (int r = 0; r < mr; r++) {
                const vreal factor = v_mul(v_broadcast(scale + r * groups + g), of_columns);
                total[r][v] = v_add(total[r][v], v_mul(v_real_of(acc[r][v]), factor));
            }
        }
    }
    FA_UNROLL
    for (int v = 0; v < nv; v++) {
        const fa_index count = fa_min(VL, t->columns - v * VL);
        if (count <= 0) break;
        const vreal of_columns = v_load(t->exponents + v * VL);
        FA_UNROLL
        for (int r = 0; r < mr; r++)
            store_row(t->c + r * p->ldc + v * VL, total[r][v], v_add(of_columns, v_set1(exponent[r] - ROTATION_BITS)),
                      t->bias ? t->bias + v * VL : NULL, count);
    }
}

void KERNEL(gemm_bytes)(const byte_product *product)
{
    const byte_product p = *product;
    const fa_index width = BYTE_VECTORS * VL, padded = byte_padded(p.K), groups = byte_groups(p.K),
                   size = byte_panel_size(width, p.K);
    const row_split split = split_rows(p.rows, BYTE_ROWS);
    const char *panel = p.panels;
    byte_tile t = {.p = &p};
    for (fa_index i = 0; i < p.count; i++, panel += size) {
        t.bytes = (const int8_t *)panel;
        t.exponents = (const real *)(const void *)(panel + width * padded);
        t.scales = t.exponents + width;
        t.starts = (const int32_t *)(const void *)(t.scales + width * groups);
        t.columns = fa_min(width, p.columns - i * width);
        t.c = p.c + i * width;
        t.bias = p.bias ? p.bias + i * width : NULL;
        t.first = 0;
        for (fa_index n = 0; n < split.tiles; n++) {
            const fa_index mr = tile_height(split, n);
            tile_dispatch(multiply_bytes, &t, mr, BYTE_ROWS, BYTE_VECTORS);
            t.first += mr;
            t.c += mr * p.ldc;
        }
    }
}
#endif
