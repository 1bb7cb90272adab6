/* c (+)= x w' for a few rows of x and weights w that are not packed: their elements are used a few times, and packing them would take
   longer than the products.

   few_rows     w[n, k]: blocks of VL rows and VL packed elements are transposed in registers
   few_columns  w[k, n]: nothing is transposed; w is read from its first row to its last, TILE_K rows at a time

   The sums are those of gemm_panels, bit for bit: each a chain of multiply-adds over k from zero, split at multiples of k_block. */
#include "../common.h"
#include "gemm.h"
#include "tile.h"

#define BLOCK_K (FA_PACKED * VL) /* elements of a row in a block */

#if FA_AMX
void KERNEL(few_rows)(const few_product *product) { (void)product; } /* takes no rows: MOST_FEW_ROWS is 0 */
#else
/* A group of rows of w, from some k on, with what x and c have for it. */
typedef struct {
    const stored *w;
    const real *x;
    real *c;
    int accumulate;
} few_stream;

/* One part of a sum, no longer than k_block, for each of some streams. */
typedef struct {
    few_stream stream[2];
    fa_index ldw, ldx, ldc, rows, columns, k_size;
} few_part;

FA_INLINE void load_block(vreal t[VL], const stored *w, fa_index ldw)
{
#if FA_CONVERTS
    const stored *row = w;
    FA_UNROLL
    for (int i = 0; i < VL; i++, row += ldw) {
#if FA_PAIRS
        t[i] = v_load_pairs(row);
#else
        t[i] = v_load_stored(row);
#endif
    }
    v_transpose(t);
#else
    v_load_transposed(t, w, ldw);
#endif
}

/* What there is of a block, then zeros. */
FA_INLINE void copy_block(stored block[VL][BLOCK_K], const stored *w, fa_index ldw, fa_index rows, fa_index k_size)
{
    memset(block, 0, VL * sizeof *block);
    for (fa_index r = 0; r < rows; r++) memcpy(block[r], w + r * ldw, (size_t)fa_min(BLOCK_K, k_size) * sizeof(stored));
}

/* Streams of a single row hide each other's latency of the multiply-add. */
FA_INLINE void multiply_part(const few_part *part, const int mr, const int streams)
{
    const few_part p = *part;
    stored block[2][VL][BLOCK_K];
    vreal acc[2][MOST_FEW_ROWS];
    FA_UNROLL
    for (int s = 0; s < streams; s++) {
        FA_UNROLL
        for (int r = 0; r < mr; r++) acc[s][r] = v_zero();
    }
    for (fa_index k = 0, size; k < p.k_size; k += size) {
        const int whole = p.rows == VL && p.k_size - k >= BLOCK_K;
        const fa_index ldw = whole ? p.ldw : BLOCK_K;
        const stored *w[2];
        const real *x[2];
        size = whole ? (p.k_size - k) / BLOCK_K * BLOCK_K : BLOCK_K;
        for (int s = 0; s < streams; s++) {
            w[s] = p.stream[s].w + k;
            x[s] = p.stream[s].x + k / FA_PACKED;
            if (whole) continue;
            copy_block(block[s], w[s], p.ldw, p.rows, p.k_size - k);
            w[s] = block[s][0];
        }
        for (fa_index i = 0; i < size; i += BLOCK_K) {
            FA_UNROLL
            for (int s = 0; s < streams; s++) {
                vreal t[VL];
                load_block(t, w[s], ldw);
                FA_UNROLL
                for (int n = 0; n < VL; n++) {
                    FA_UNROLL
                    for (int r = 0; r < mr; r++) acc[s][r] = v_multiply_add(v_broadcast(x[s] + r * p.ldx + n), t[n], acc[s][r]);
                }
                w[s] += BLOCK_K;
                x[s] += VL;
            }
        }
    }
    FA_UNROLL
    for (int s = 0; s < streams; s++) {
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            real *c = p.stream[s].c + r * p.ldc;
            store_some(c, p.stream[s].accumulate ? v_add(load_some(c, p.columns), acc[s][r]) : acc[s][r], p.columns);
        }
    }
}

FA_NOINLINE void rows_1(const few_part *p) { multiply_part(p, 1, 1); }
FA_NOINLINE void rows_2(const few_part *p) { multiply_part(p, 2, 1); }
FA_NOINLINE void rows_3(const few_part *p) { multiply_part(p, 3, 1); }
FA_NOINLINE void rows_4(const few_part *p) { multiply_part(p, 4, 1); }
FA_NOINLINE void rows_1_twice(const few_part *p) { multiply_part(p, 1, 2); }
FA_NOINLINE void rows_2_twice(const few_part *p) { multiply_part(p, 2, 2); }

/* [rows - 1], of one stream and of two: 3 rows are chains enough. */
typedef void part_product(const few_part *p);
static part_product *const once[MOST_FEW_ROWS] = {rows_1, rows_2, rows_3, rows_4}, *const twice[2] = {rows_1_twice, rows_2_twice};

FA_INLINE few_stream stream_of(const few_product *p, fa_index group, fa_index k)
{
    return (few_stream){(const stored *)p->w + group * p->group_step + k, p->x + k / FA_PACKED, p->c + group * VL,
                        p->accumulate || k > 0};
}

void KERNEL(few_rows)(const few_product *product)
{
    const few_product p = *product;
    const fa_index k_block = K_BLOCK(p.nv) * FA_PACKED;
    const int two = p.streams == 2 && p.m <= 2;
    few_part part = {.ldw = p.ldw, .ldx = p.ldx, .ldc = p.ldc, .rows = p.rows, .columns = p.columns};
    for (fa_index g = 0; g < p.groups; g += 2) {
        const fa_index groups = fa_min(2, p.groups - g);
        /* Two parts of the same rows, whose lines are in other sets of the cache than rows a page apart would be; then two groups. */
        const fa_index paired = two ? p.k_size / k_block / 2 * 2 * k_block : 0;
        part.k_size = k_block;
        for (fa_index i = g; i < g + groups; i++)
            for (fa_index k = 0; k < paired; k += 2 * k_block) {
                part.stream[0] = stream_of(&p, i, k);
                part.stream[1] = stream_of(&p, i, k + k_block);
                twice[p.m - 1](&part);
            }
        for (fa_index k = paired; k == 0 || k < p.k_size; k += k_block) {
            part.k_size = fa_min(k_block, p.k_size - k);
            for (fa_index i = g; i < g + groups; i += 1 + two) {
                part.stream[0] = stream_of(&p, i, k);
                if (i + two == g + groups || !two) {
                    once[p.m - 1](&part);
                } else {
                    part.stream[1] = stream_of(&p, i + 1, k);
                    twice[p.m - 1](&part);
                }
            }
        }
    }
}
#endif

#if !FA_CONVERTS
/* Rows of w for mr rows of x, from one column on: the sums of a part so far are in `part`, and at its end go to c. */
typedef struct {
    real *c, *part;
    const real *x, *w;
    fa_index ldc, ldpart, ldx, ldw, columns, steps;
    int first, last, accumulate;
} column_step;

/* Whole tiles of nv vectors, or one vector of a row and what there is of it. */
FA_INLINE void multiply_columns(const column_step *step, const int mr, const int nv, const int whole)
{
    const column_step s = *step;
    for (fa_index j = 0; whole ? j + nv * VL <= s.columns : j < s.columns; j += nv * VL) {
        const fa_index count = whole ? VL : s.columns - j;
        const real *w = s.w + j, *x = s.x;
        tile_acc acc;
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            FA_UNROLL
            for (int v = 0; v < nv; v++) acc[r][v] = s.first ? v_zero() : load_some(s.part + r * s.ldpart + j + v * VL, count);
        }
        for (fa_index k = 0; k < s.steps; k++, w += s.ldw, x++) {
            vreal b[TILE_MAX_VECTORS];
            FA_UNROLL
            for (int v = 0; v < nv; v++) b[v] = load_some(w + v * VL, count);
            FA_UNROLL
            for (int r = 0; r < mr; r++) {
                const vreal a = v_broadcast(x + r * s.ldx);
                FA_UNROLL
                for (int v = 0; v < nv; v++) acc[r][v] = v_fma(a, b[v], acc[r][v]);
            }
        }
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            FA_UNROLL
            for (int v = 0; v < nv; v++) {
                real *c = s.last ? s.c + r * s.ldc : s.part + r * s.ldpart;
                const vreal before = s.last && s.accumulate ? load_some(c + j + v * VL, count) : v_zero();
                store_some(c + j + v * VL, s.last && s.accumulate ? v_add(before, acc[r][v]) : acc[r][v], count);
            }
        }
    }
}

FA_NOINLINE void columns_1(const column_step *s) { multiply_columns(s, 1, 4, 1); }
FA_NOINLINE void columns_2(const column_step *s) { multiply_columns(s, 2, 4, 1); }
FA_NOINLINE void columns_3(const column_step *s) { multiply_columns(s, 3, 2, 1); }
FA_NOINLINE void columns_4(const column_step *s) { multiply_columns(s, 4, 2, 1); }
FA_NOINLINE void columns_5(const column_step *s) { multiply_columns(s, 5, 2, 1); }
FA_NOINLINE void columns_6(const column_step *s) { multiply_columns(s, 6, 2, 1); }
FA_NOINLINE void columns_left(const column_step *s) { multiply_columns(s, 1, 1, 0); }

#define MOST_COLUMN_ROWS 6

/* [rows - 1] */
typedef void columns_product(const column_step *s);
static columns_product *const columns_of[MOST_COLUMN_ROWS] = {columns_1, columns_2, columns_3, columns_4, columns_5, columns_6};

/* The columns of mr rows, and what the tiles of columns_of leave of them. */
FA_INLINE void step_columns(column_step s, fa_index mr)
{
    const fa_index whole = s.columns / (mr <= 2 ? 4 * VL : 2 * VL) * (mr <= 2 ? 4 * VL : 2 * VL);
    columns_of[mr - 1](&s);
    s.columns -= whole;
    if (s.columns == 0) return;
    s.w += whole, s.c += whole, s.part += whole;
    for (fa_index r = 0; r < mr; r++, s.x += s.ldx, s.c += s.ldc, s.part += s.ldpart) columns_left(&s);
}

void KERNEL(few_columns)(const few_product *product)
{
    const few_product p = *product;
    const fa_index k_block = K_BLOCK(p.nv);
    for (fa_index k = 0; k == 0 || k < p.k_size; k += TILE_K) {
        const fa_index steps = fa_max(0, fa_min(TILE_K, p.k_size - k));
        column_step s = {.ldc = p.ldc, .ldpart = p.ldpart, .ldx = p.ldx, .ldw = p.ldw, .columns = p.columns, .steps = steps};
        s.w = (const real *)p.w + k * p.ldw;
        s.first = k % k_block == 0;
        s.last = k + steps >= p.k_size || (k + steps) % k_block == 0;
        s.accumulate = p.accumulate || k >= k_block;
        for (fa_index r = 0, mr; r < p.m; r += mr) {
            mr = fa_min(MOST_COLUMN_ROWS, p.m - r);
            s.c = p.c + r * p.ldc, s.part = p.part + r * p.ldpart, s.x = p.x + r * p.ldx + k;
            step_columns(s, mr);
        }
    }
}
#endif
