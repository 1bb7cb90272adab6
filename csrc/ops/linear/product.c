/* Products of backward passes; product.h says which. Tasks are M_BLOCK rows of c by up to GROUP columns; each packs its rows of a,
   K_SLICE of K at a time, and runs gemm_panels. Small tasks, so that the last ones leave no thread idle for long: packing a again for each
   group of columns costs 2 % (and 5 % with groups of 256). */
#include "product.h"

#include <string.h>

#define M_BLOCK 96
#define K_SLICE 1024 /* a multiple of every k_block */
#define GROUP 512    /* a multiple of every panel's width */
/* Rows in one chain of a sum over the rows of a batch: NumPy adds up step after step, and a chain of k_block rows has up to twice the error
   of that. */
#define SUM_SLICE 64

typedef struct {
    const fa_kernels *kernels;
    const product *products;
    const product_operand *operands;
    real *scratch;
    fa_index scratch_size; /* of a thread: tiles, then a block of rows of c */
} products_call;

fa_index OP(product_panels)(const fa_kernels *k, fa_index N, fa_index K)
{
    return fa_round_up(N, panel_width(k)) * fa_round_up(K, k->sizes.tile_k);
}

static fa_index tile_size(const fa_kernels *k, fa_index K)
{
    const fa_index Kp = fa_min(K_SLICE, fa_round_up(K, k->sizes.tile_k));
    return (M_BLOCK + k->sizes.tile_rows[k->sizes.panel_vectors]) * Kp + k->sizes.lanes;
}

static fa_index thread_size(const fa_kernels *k, fa_index K)
{
    return fa_round_up(tile_size(k, K), k->sizes.lanes) + M_BLOCK * GROUP;
}

fa_index OP(products_scratch)(const fa_kernels *k, fa_index K, int threads) { return thread_size(k, K) * threads; }

static void pack_task(void *context, fa_index i, int worker)
{
    const products_call *c = context;
    const fa_kernels *k = c->kernels;
    const fa_index width = panel_width(k);
    const product_operand *o = c->operands;
    (void)worker;
    for (; i >= fa_ceil_div(o->N, width); o++) i -= fa_ceil_div(o->N, width);
    const fa_index Kp = fa_round_up(o->K, k->sizes.tile_k);
    k->copy_panel(o->panels + i * width * Kp, o->rows, i * width, o->N - i * width, k->sizes.panel_vectors, o->K, Kp);
}

void OP(products_pack)(const fa_kernels *k, const product_operand *operands, int count, int threads)
{
    products_call c = {.kernels = k, .operands = operands};
    fa_index panels = 0;
    for (int i = 0; i < count; i++) panels += fa_ceil_div(operands[i].N, panel_width(k));
    fa_parallel_for(panels, threads, pack_task, &c);
}

static fa_index tasks_of(const product *p) { return fa_ceil_div(p->M, M_BLOCK) * fa_ceil_div(p->N, GROUP); }

static void copy_block(const product *p, real *block, fa_index m0, fa_index m, fa_index column, fa_index columns, int out)
{
    const size_t bytes = (size_t)columns * sizeof(real);
    for (fa_index r = 0; r < m; r++) {
        real *row = (p->kind == PRODUCT_ROWS ? p->rows[m0 + r] : p->c + (m0 + r) * (p->ldc ? p->ldc : p->N)) + column;
        memcpy(out ? row : block + r * GROUP, out ? block + r * GROUP : row, bytes);
    }
}

static void product_task(void *context, fa_index i, int worker)
{
    const products_call *call = context;
    const fa_kernels *k = call->kernels;
    const product *p = call->products;
    for (; i >= tasks_of(p); p++) i -= tasks_of(p);
    const fa_index nv = k->sizes.panel_vectors, width = panel_width(k), Kp = fa_round_up(p->K, k->sizes.tile_k);
    const fa_index groups = fa_ceil_div(p->N, GROUP), m0 = i / groups * M_BLOCK, m = fa_min(M_BLOCK, p->M - m0);
    const fa_index column = i % groups * GROUP, columns = fa_min(GROUP, p->N - column), panels = fa_ceil_div(columns, width);
    const int by_rows = p->kind == PRODUCT_ROWS;
    real *tiles = call->scratch + worker * call->scratch_size, *block = tiles + call->scratch_size - M_BLOCK * GROUP;
    /* In a block of its own, c shares no sets of the caches with itself, as rows a page apart would. */
    if (p->add) copy_block(p, block, m0, m, column, columns, 0);
    const fa_index slice = by_rows ? K_SLICE : SUM_SLICE;
    for (fa_index k0 = 0; k0 == 0 || k0 < p->K; k0 += slice) {
        const fa_index size = fa_min(slice, p->K - k0), padded = fa_min(slice, Kp - k0);
        if (by_rows) {
            const real *rows[M_BLOCK];
            for (fa_index r = 0; r < m; r++) rows[r] = p->a[m0 + r] + p->column + k0;
            k->pack_rows(tiles, rows, m, nv, size, padded);
        } else {
            k->copy_tiles(tiles, p->a + k0, p->column + m0, m, nv, size, padded);
        }
        const panel_product product = {.c = block,
                                       .ldc = GROUP,
                                       .c_panel = width,
                                       .a = tiles,
                                       .m = m,
                                       .b = p->panels + column * Kp + k0 * width,
                                       .panel_stride = width * Kp,
                                       .panels = panels,
                                       .last_columns = columns - (panels - 1) * width,
                                       .nv = nv,
                                       .k_size = padded,
                                       .accumulate = p->add || k0 > 0};
        k->gemm_panels(&product);
    }
    copy_block(p, block, m0, m, column, columns, 1);
    if (p->sum && column == 0 && p->K > 0) k->sum_rows(p->sum + m0, p->a[0] + p->column + m0, p->lda, NULL, p->K, m);
}

void OP(products_run)(const fa_kernels *k, const product *products, int count, int threads, real *scratch, fa_index most_K)
{
    products_call c = {.kernels = k, .products = products, .scratch = scratch, .scratch_size = thread_size(k, most_K)};
    fa_index tasks = 0;
    for (int i = 0; i < count; i++) tasks += tasks_of(&products[i]);
    fa_parallel_for(tasks, threads, product_task, &c);
}
