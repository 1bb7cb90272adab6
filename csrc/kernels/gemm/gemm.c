/* Packing, and the product of packed operands: c (+)= a b with a in tiles of rows, b in panels of columns (tile.h).

   Sums over k are split at multiples of k_block, a constant of the ISA, type and panel width, because a panel of k_block rows
   stays in the first-level cache while all tiles of a pass over it. Each part is a chain from zero; the parts are added in order.
   That is also closer to the exact sum than one long chain. */
#include "../common.h"
#include "gemm.h"
#include "tile.h"

/* NaNs become the default NaN, the only one whose low bits are 0: attention adds such bits to exponents (v_add_exponent). Pairs are
   loaded so. */
FA_INLINE vreal plain_nan(vreal a) { return FA_PAIRS ? a : v_select(v_is_nan(a), v_set1((real)__builtin_nanf("")), a); }

/* VL packed elements (reals or pairs), from the first `count` elements at p, count >= 0. */
#define VECTOR_ELEMENTS (FA_PACKED * VL)
FA_INLINE vreal load_packed(const stored *p, fa_index count)
{
#if FA_PAIRS
    return v_load_pairs_n(p, count);
#else
    return load_stored_some(p, count);
#endif
}

void KERNEL(pack_columns)(real *dst, fa_index step, const stored *src, fa_index ld, fa_index columns, fa_index k_size,
                          fa_index k_padded)
{
    fa_index k = 0;
    if (columns == VL) {
        for (; (k + VL) * FA_PACKED <= k_size; k += VL) {
            vreal t[VL];
#if FA_CONVERTS
            FA_UNROLL
            for (int i = 0; i < VL; i++) t[i] = load_packed(src + i * ld + k * FA_PACKED, VECTOR_ELEMENTS);
            v_transpose(t);
#else
            v_load_transposed(t, src + k, ld);
#endif
            FA_UNROLL
            for (int i = 0; i < VL; i++) v_store(dst + (k + i) * step, plain_nan(t[i]));
        }
    }
    for (; k * FA_PACKED < k_size; k += VL) {
        const fa_index count = k_size - k * FA_PACKED, packed = fa_min(VL, fa_ceil_div(count, FA_PACKED));
        vreal t[VL];
        for (int i = 0; i < VL; i++) t[i] = i < columns ? plain_nan(load_packed(src + i * ld + k * FA_PACKED, count)) : v_zero();
        v_transpose(t);
        for (int i = 0; i < packed; i++) v_store(dst + (k + i) * step, t[i]);
    }
    for (k = fa_ceil_div(k_size, FA_PACKED); k < k_padded; k++) v_store(dst + k * step, v_zero());
}

void KERNEL(pack_transposed)(real *dst, fa_index step, const stored *src, fa_index ld, fa_index columns, fa_index k_size,
                             fa_index k_padded)
{
    for (fa_index k = 0; k < k_padded * FA_PACKED; k += FA_PACKED, src += FA_PACKED * ld, dst += step) {
        const vreal row = k < k_size && columns > 0 ? load_stored_some(src, columns) : v_zero();
#if FA_PAIRS
        v_store(dst, v_interleave(row, k + 1 < k_size && columns > 0 ? load_stored_some(src + ld, columns) : v_zero()));
#else
        v_store(dst, row);
#endif
    }
}

#if FA_AMX
/* Rows that all tiles of a partition are packed and multiplied with: those of the larger ones, so that t_configure is called once. */
FA_INLINE fa_index common_height(row_split split) { return split.base + (split.larger > 0); }

/* Matrix tiles take rows: those of a step of k one after another, so that they fall on different cache sets. */
void KERNEL(pack_rows)(real *dst, const stored *const *rows, fa_index m, fa_index nv, fa_index k_size, fa_index k_padded)
{
    const fa_index most = TILE_ROWS(nv);
    const row_split split = split_rows(m, most);
    const fa_index height = common_height(split);
    (void)nv;
    for (fa_index t = 0; t < split.tiles; t++, dst += most * k_padded) {
        const fa_index mr = tile_height(split, t);
        for (fa_index r = 0; r < height; r++)
            for (fa_index k = 0; k < k_padded; k += T_K) {
                const fa_index count = r < mr ? k_size - k * FA_PACKED : 0;
                v_store(dst + k * height + r * T_K, count > 0 ? load_packed(rows[r] + k * FA_PACKED, count) : v_zero());
            }
        rows += mr;
    }
}
#else
/* One tile: dst[k * most + r] = rows[r][k]. Vectors of VL rows are stored whole, each over the end of the one before it, in
   ascending k; what the last ones write beyond the tile is the padding of the contract. The `next` rows behind those of the
   tile are prefetched: so many short streams are more than the hardware follows. */
FA_INLINE void pack_tile(real *dst, const stored *const *rows, fa_index mr, const fa_index most, fa_index k_size,
                         fa_index k_padded, fa_index next)
{
    enum { MAX_GROUPS = (TILE_MAX_ROWS + 1) / 2 };
    const fa_index groups = fa_ceil_div(most, VL);
    for (fa_index k = 0; k < k_padded; k += VL) {
        const fa_index count = fa_max(0, k_size - k * FA_PACKED);
        vreal t[MAX_GROUPS][VL];
        for (fa_index r = 0; r < next; r++) FA_PREFETCH(rows[mr + r] + k * FA_PACKED);
        for (fa_index g = 0; g < groups; g++) {
            for (int i = 0; i < VL; i++) {
                const fa_index r = g * VL + i;
                t[g][i] = r >= mr || count == 0 ? v_zero() : load_packed(rows[r] + k * FA_PACKED, count);
            }
            v_transpose(t[g]);
        }
        for (int i = 0; i < fa_min(VL, k_padded - k); i++)
            for (fa_index g = 0; g < groups; g++) v_store(dst + (k + i) * most + g * VL, t[g][i]);
    }
}

void KERNEL(pack_rows)(real *dst, const stored *const *rows, fa_index m, fa_index nv, fa_index k_size, fa_index k_padded)
{
    const fa_index most = TILE_ROWS(nv);
    const row_split split = split_rows(m, most);
    if (m == 1) {
        for (fa_index k = 0; k < k_padded; k += VL) {
            const fa_index count = fa_max(0, k_size - k * FA_PACKED);
            v_store(dst + k, count == 0 ? v_zero() : load_packed(rows[0] + k * FA_PACKED, count));
        }
        return;
    }
    for (fa_index t = 0; t < split.tiles; t++, dst += most * k_padded) {
        const fa_index mr = tile_height(split, t);
        pack_tile(dst, rows, mr, most, k_size, k_padded, t + 1 < split.tiles ? tile_height(split, t + 1) : 0);
        rows += mr;
    }
}
#endif

#if !FA_CONVERTS
/* Of each row k, `columns` elements from `column` on, at dst[k * step]: whole vectors up to `width`, zeros where there is nothing. */
FA_INLINE void copy_columns(real *dst, fa_index step, fa_index width, const real *const *rows, fa_index column, fa_index columns,
                            fa_index k_size, fa_index k_padded)
{
    for (fa_index k = 0; k < k_padded; k++, dst += step)
        for (fa_index v = 0; v < width; v += VL) {
            const fa_index count = k < k_size ? fa_max(0, fa_min(VL, columns - v)) : 0;
            const real *src = count ? rows[k] + column + v : NULL;
            v_store(dst + v, count == VL ? v_load(src) : count ? v_load_n(src, count) : v_zero());
        }
}

void KERNEL(copy_panel)(real *dst, const real *const *rows, fa_index column, fa_index columns, fa_index nv, fa_index k_size,
                        fa_index k_padded)
{
    copy_columns(dst, nv * VL, nv * VL, rows, column, columns, k_size, k_padded);
}

/* The last vector of a k runs into the next k, which is stored after it. */
void KERNEL(copy_tiles)(real *dst, const real *const *rows, fa_index column, fa_index m, fa_index nv, fa_index k_size,
                        fa_index k_padded)
{
    const fa_index most = m == 1 ? 1 : TILE_ROWS(nv); /* a single row is left as it is */
    const row_split split = split_rows(m, most);
    for (fa_index t = 0; t < split.tiles; t++, dst += most * k_padded) {
        const fa_index mr = tile_height(split, t);
        copy_columns(dst, most, most, rows, column, mr, k_size, k_padded);
        column += mr;
    }
}
#endif

#if FA_OWN_PRODUCTS
#if FA_AMX
/* c = part, or c += part, of `columns` columns. */
FA_INLINE void add_part(real *c, fa_index ldc, const real *part, fa_index ldpart, fa_index mr, fa_index columns, int accumulate)
{
    for (fa_index r = 0; r < mr; r++, c += ldc, part += ldpart)
        for (fa_index j = 0; j < columns; j += VL) {
            const fa_index count = fa_min(VL, columns - j);
            const vreal x = v_load(part + j);
            v_store_n(c + j, accumulate ? v_add(v_load_n(c + j, count), x) : x, count);
        }
}

void KERNEL(gemm_panels)(const panel_product *product)
{
    const panel_product p = *product;
    const fa_index k_block = K_BLOCK(p.nv), most = TILE_ROWS(p.nv);
    const row_split split = split_rows(p.m, most);
    const fa_index height = common_height(split);
    const real *b = p.b;
    real *c = p.c, part[TILE_ROWS(TILE_MAX_VECTORS) * TILE_MAX_VECTORS * VL] FA_ALIGN(64);
    if (p.m == 0) return;
    t_configure(height); /* p.next is not prefetched: tiles are done before it could be there */
    for (fa_index i = 0; i < p.panels; i++, b += p.panel_stride, c += p.c_panel) {
        const fa_index columns = i + 1 < p.panels ? p.nv * VL : p.last_columns;
        for (fa_index k = 0; k == 0 || k < p.k_size; k += k_block) {
            const fa_index kb = fa_min(k_block, p.k_size - k);
            const real *ak = p.a + k * height;
            real *to = c;
            for (fa_index t = 0, mr; t < split.tiles; t++, ak += most * p.k_size, to += mr * p.ldc) {
                mr = tile_height(split, t);
                const int direct = mr == height && columns == p.nv * VL && !p.accumulate && k == 0;
                matrix_product(direct ? to : part, direct ? p.ldc : p.nv * VL, height, p.nv, ak, T_K, height * T_K, T_K,
                               b + k * p.nv * VL, p.nv, kb);
                if (!direct) add_part(to, p.ldc, part, p.nv * VL, mr, columns, p.accumulate || k > 0);
            }
        }
    }
    t_release();
}
#else
FA_INLINE void add_tile(real *c, fa_index ldc, tile_acc acc, const int mr, const int nv, fa_index columns, int accumulate)
{
    if (FA_LIKELY(columns >= nv * VL)) {
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            FA_UNROLL
            for (int v = 0; v < nv; v++) {
                real *p = c + r * ldc + v * VL;
                v_store(p, accumulate ? v_add(v_load(p), acc[r][v]) : acc[r][v]);
            }
        }
        return;
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) {
            const fa_index count = fa_min(VL, columns - v * VL);
            real *p = c + r * ldc + v * VL;
            if (count > 0) v_store_n(p, accumulate ? v_add(v_load_n(p, count), acc[r][v]) : acc[r][v], count);
        }
    }
}

/* A register tile of a k block: rows of a from `a` on, whose products go to c; and the lines that it prefetches meanwhile. */
typedef struct {
    real *c;
    const real *a, *b;
    fa_index ldc, k_size, columns, lines;
    const char *ahead;
    int accumulate;
} gemm_tile;

FA_INLINE void multiply_tile(const void *tile, const int mr, const int nv)
{
    const gemm_tile *t = tile;
    tile_acc acc;
    tile_product_ahead(acc, mr, nv, t->a, 1, TILE_ROWS(nv), t->b, t->k_size, t->ahead, t->lines);
    add_tile(t->c, t->ldc, acc, mr, nv, t->columns, t->accumulate);
}

/* One k block of one panel with all tiles, which meanwhile prefetch so many bytes: of what comes after it. */
FA_INLINE void multiply_panel(gemm_tile t, fa_index a_tile, row_split split, fa_index bytes, const int nv)
{
    const fa_index steps = fa_max(1, t.k_size / TILE_K);
    t.lines = fa_ceil_div(bytes, split.tiles * steps * FA_CACHE_LINE);
    for (fa_index i = 0; i < split.tiles; i++, t.a += a_tile, t.ahead += steps * t.lines * FA_CACHE_LINE) {
        const fa_index mr = tile_height(split, i);
        tile_dispatch(multiply_tile, &t, mr, TILE_ROWS(nv), nv);
        t.c += mr * t.ldc;
    }
}
FA_NOINLINE void panel_2(gemm_tile t, fa_index a_tile, row_split split, fa_index bytes)
{
    multiply_panel(t, a_tile, split, bytes, 2);
}
FA_NOINLINE void panel_3(gemm_tile t, fa_index a_tile, row_split split, fa_index bytes)
{
    multiply_panel(t, a_tile, split, bytes, 3);
}
FA_NOINLINE void panel_4(gemm_tile t, fa_index a_tile, row_split split, fa_index bytes)
{
    multiply_panel(t, a_tile, split, bytes, 4);
}

/* One to three rows of a tile (a single one is left as it is) and `side` panels of nv vectors at a time: enough chains to hide the latency
   of a multiply-add, and enough streams from the second-level cache or beyond, where the panels come from, once per call. */
typedef struct {
    real *c;
    const real *a, *b;
    fa_index ldc, c_panel, panel_stride, k_size, columns;
    int accumulate;
} side_product;

FA_INLINE void multiply_sides(const side_product *product, const int mr, const int side, const int nv)
{
    const side_product p = *product;
    const fa_index k_step = mr == 1 ? 1 : TILE_ROWS(nv);
    const real *restrict a = p.a, *restrict b = p.b;
    tile_acc acc[ROW_SIDES];
    FA_UNROLL
    for (int s = 0; s < side; s++) tile_zero(acc[s], mr, nv);
    for (const real *end = b + p.k_size * nv * VL; b != end; a += TILE_K * k_step, b += TILE_K * nv * VL) {
        FA_UNROLL
        for (int k = 0; k < TILE_K; k++) {
            vreal x[3];
            FA_UNROLL
            for (int r = 0; r < mr; r++) x[r] = v_broadcast(a + k * k_step + r);
            FA_UNROLL
            for (int s = 0; s < side; s++) {
                FA_UNROLL
                for (int v = 0; v < nv; v++) {
                    const vreal column = v_load(b + s * p.panel_stride + (k * nv + v) * VL);
                    FA_UNROLL
                    for (int r = 0; r < mr; r++) acc[s][r][v] = v_multiply_add(x[r], column, acc[s][r][v]);
                }
            }
        }
    }
    FA_UNROLL
    for (int s = 0; s < side; s++)
        add_tile(p.c + s * p.c_panel, p.ldc, acc[s], mr, nv, s + 1 < side ? nv * VL : p.columns, p.accumulate);
}

#define DEFINE_SIDES(mr, side, nv) \
    FA_NOINLINE void sides_##mr##_##side##_##nv(const side_product *p) { multiply_sides(p, mr, side, nv); }
DEFINE_SIDES(1, 4, 2)
DEFINE_SIDES(1, 2, 3)
DEFINE_SIDES(1, 1, 2)
DEFINE_SIDES(1, 1, 3)
DEFINE_SIDES(1, 1, 4)
DEFINE_SIDES(2, 2, 2)
DEFINE_SIDES(2, 2, 3)
DEFINE_SIDES(3, 2, 2)

/* Panels side by side, and what multiplies them: of a single row some or one, [nv - 2]; of two and three rows two, or NULL. */
typedef void sides_product(const side_product *p);
static sides_product *const one_row[] = {sides_1_1_2, sides_1_1_3, sides_1_1_4};
static sides_product *const some_rows[3][3] = {
    {sides_1_4_2, sides_1_2_3, NULL}, {sides_2_2_2, sides_2_2_3, NULL}, {sides_3_2_2, NULL, NULL}};

FA_INLINE fa_index sides_of(const panel_product *p)
{
    if (p->m == 1) return ROW_SIDES_OF(p->nv);
    return p->cached && p->m <= 3 && some_rows[p->m - 1][p->nv - 2] ? 2 : 0;
}

/* Panels from i on, side by side; returns how many, 0 where there are too few or rows too many. */
FA_INLINE fa_index row_panels(const panel_product *p, fa_index i)
{
    const fa_index k_block = K_BLOCK(p->nv), most = sides_of(p), side = i + most <= p->panels ? most : p->m == 1;
    if (side == 0) return 0;
    side_product part = {.ldc = p->ldc, .c_panel = p->c_panel, .panel_stride = p->panel_stride, .c = p->c + i * p->c_panel};
    part.columns = i + side < p->panels ? p->nv * VL : p->last_columns;
    for (fa_index k = 0; k == 0 || k < p->k_size; k += k_block) {
        part.k_size = fa_min(k_block, p->k_size - k);
        part.a = p->a + k * (p->m == 1 ? 1 : TILE_ROWS(p->nv));
        part.b = (const real *)p->b + i * p->panel_stride + k * p->nv * VL;
        part.accumulate = p->accumulate || k > 0;
        (side == 1 ? one_row[p->nv - 2] : some_rows[p->m - 1][p->nv - 2])(&part);
    }
    return side;
}

void KERNEL(gemm_panels)(const panel_product *product)
{
    const panel_product p = *product;
    const fa_index k_block = K_BLOCK(p.nv), most = TILE_ROWS(p.nv);
    const row_split split = split_rows(p.m, most);
    if (p.m == 0) return;
    gemm_tile tile = {.ldc = p.ldc};
    for (fa_index i = 0, side; i < p.panels; i += side) {
        const real *b = (const real *)p.b + i * p.panel_stride;
        side = row_panels(&p, i);
        if (side > 0) continue;
        side = 1;
        tile.c = p.c + i * p.c_panel;
        tile.columns = i + 1 < p.panels ? p.nv * VL : p.last_columns;
        for (fa_index k = 0; k == 0 || k < p.k_size; k += k_block) {
            const fa_index kb = fa_min(k_block, p.k_size - k), left = p.k_size - k - kb;
            const int last = left <= 0 && i + 1 == p.panels;
            tile.a = p.a + k * most;
            tile.b = b + k * p.nv * VL;
            tile.k_size = kb;
            tile.accumulate = p.accumulate || k > 0;
            tile.ahead = left > 0 ? (const void *)(tile.b + kb * p.nv * VL) : last && p.next ? p.next : b + p.panel_stride;
            const fa_index ahead_k = last && !p.next ? 0 : fa_min(k_block, left > 0 ? left : p.k_size);
            const fa_index bytes = p.cached ? 0 : ahead_k * p.nv * VL * (fa_index)sizeof(real);
            switch (p.nv) {
            case 2: panel_2(tile, most * p.k_size, split, bytes); break;
            case 3: panel_3(tile, most * p.k_size, split, bytes); break;
            default: panel_4(tile, most * p.k_size, split, bytes); break;
            }
        }
    }
}
#endif
#endif

#if !FA_CONVERTS
#define SUM_ROWS 64 /* short chains: the sum over a batch is closer to the exact one than a single chain would be */

void KERNEL(sum_rows)(real *sum, const real *x, fa_index ldx, const real *const *y, fa_index rows, fa_index n)
{
    for (fa_index j = 0; j < n; j += VL) {
        const fa_index count = fa_min(VL, n - j);
        vreal total = v_load_n(sum + j, count);
        for (fa_index first = 0; first < rows; first += SUM_ROWS) {
            const fa_index end = fa_min(rows, first + SUM_ROWS);
            vreal part = v_zero();
            for (fa_index r = first; r < end; r++) {
                const vreal a = v_load_n(x + r * ldx + j, count);
                part = y ? v_fma(a, v_load_n(y[r] + j, count), part) : v_add(part, a);
            }
            total = v_add(total, part);
        }
        v_store_n(sum + j, total, count);
    }
}
#endif
