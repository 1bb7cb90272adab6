/* linear with weights of bytes (kernels/gemm/gemm_bytes.c has the equations): float32 alone.

   Blocks of rows of x become bytes, once, by all threads; then tasks of M_BLOCK rows by a range of panels multiply them, CHUNK_PANELS at a
   time, and apply the activation while the result is in the cache. How rows and panels are split changes no value. */
#include "../ops.h"
#include "../../kernels/gemm/bytes.h"

#if FA_FLOAT_ARRAYS
#define M_BLOCK 96
#define QUANTIZE_ROWS 8
#define CHUNK_PANELS 8
#define TASKS_PER_THREAD 4
#define PACK_WORK 8 /* multiply-adds that quantising an element counts as */

typedef struct {
    const fa_kernels *kernels;
    const fa_linear_arguments *a;
    quantized_rows q; /* of a block of rows, from m0 on */
    fa_index m0, rows, n_tasks, panels_per_task;
} bytes_call;

static fa_index byte_width(const fa_kernels *k) { return BYTE_VECTORS * k->sizes.lanes; }

static quantized_rows take_rows(arena *plan, fa_index rows, fa_index K)
{
    return (quantized_rows){.q = arena_take(plan, rows * byte_padded(K), sizeof(int8_t)),
                            .start = arena_take(plan, rows * byte_groups(K), sizeof(int32_t)),
                            .scale = arena_take(plan, rows * byte_groups(K), sizeof(real)),
                            .exponent = arena_take(plan, rows, sizeof(real))};
}

static quantized_rows rows_from(const quantized_rows *all, fa_index first, fa_index K)
{
    return (quantized_rows){.q = all->q + first * byte_padded(K),
                            .start = all->start + first * byte_groups(K),
                            .scale = all->scale + first * byte_groups(K),
                            .exponent = all->exponent + first};
}

static void quantize_task(void *context, fa_index i, int worker)
{
    const bytes_call *c = context;
    const fa_linear_arguments *a = c->a;
    const fa_index first = i * QUANTIZE_ROWS, rows = fa_min(QUANTIZE_ROWS, c->rows - first);
    (void)worker;
    const quantized_rows to = rows_from(&c->q, first, a->K);
    c->kernels->quantize_rows(&to, (const real *)a->x + (c->m0 + first) * a->ldx, a->ldx, rows, a->K);
}

static void product_task(void *context, fa_index i, int worker)
{
    const bytes_call *c = context;
    const fa_linear_arguments *a = c->a;
    const fa_index width = byte_width(c->kernels), panels = fa_ceil_div(a->N, width), size = byte_panel_size(width, a->K);
    const fa_index first = i / c->n_tasks * M_BLOCK, p0 = i % c->n_tasks * c->panels_per_task;
    const fa_index end = fa_min(p0 + c->panels_per_task, panels);
    (void)worker;
    byte_product product = {
        .a = rows_from(&c->q, first, a->K), .ldc = a->ldy, .rows = fa_min(M_BLOCK, c->rows - first), .K = a->K};
    for (fa_index p = p0; p < end; p += CHUNK_PANELS) {
        product.c = (real *)a->y + (c->m0 + first) * a->ldy + p * width;
        product.bias = a->bias ? (const real *)a->bias + p * width : NULL;
        product.panels = (const char *)a->packed + p * size;
        product.count = fa_min(CHUNK_PANELS, end - p);
        product.columns = fa_min(product.count * width, a->N - p * width);
        c->kernels->gemm_bytes(&product);
        if (a->activation != FA_IDENTITY)
            c->kernels->bias_activation_rows(product.c, NULL, a->ldy, NULL, product.rows, product.columns, (int)a->activation);
    }
}

fa_status OP(linear_bytes)(const fa_linear_arguments *a)
{
    bytes_call c = {.kernels = kernels_for(a->isa), .a = a};
    const fa_index panels = fa_ceil_div(a->N, byte_width(c.kernels));
    const int threads = fa_threads_for((double)a->M * (double)a->N * (double)a->K / 2);
    const fa_index block = fa_min(a->M, M_BLOCK * threads);
    fa_scratch scratch;
    arena plan = {0};
    if (block == 0 || panels == 0) return FA_OK;
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        c.q = take_rows(&plan, block, a->K);
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    for (c.m0 = 0; c.m0 < a->M; c.m0 += block) {
        c.rows = fa_min(block, a->M - c.m0);
        const fa_index m_tasks = fa_ceil_div(c.rows, M_BLOCK);
        c.n_tasks = fa_min(panels, threads > 1 ? fa_ceil_div(threads * TASKS_PER_THREAD, m_tasks) : 1);
        c.panels_per_task = fa_ceil_div(panels, c.n_tasks);
        fa_parallel_for(fa_ceil_div(c.rows, QUANTIZE_ROWS), threads, quantize_task, &c);
        fa_parallel_for(m_tasks * c.n_tasks, threads, product_task, &c);
    }
    fa_scratch_give(&scratch);
    return FA_OK;
}

size_t OP(linear_bytes_packed)(fa_isa isa, fa_index N, fa_index K)
{
    const fa_index width = byte_width(kernels_for(isa));
    return fa_scratch_bytes(fa_ceil_div(N, width), (size_t)byte_panel_size(width, K));
}

typedef struct {
    const fa_kernels *kernels;
    char *packed;
    const real *w;
    fa_index ldw, N, K;
    char *scratch;
    size_t scratch_size; /* of a thread */
} bytes_packing;

static void pack_task(void *context, fa_index i, int worker)
{
    const bytes_packing *c = context;
    const fa_index width = byte_width(c->kernels), column = i * width, columns = fa_min(width, c->N - column);
    arena plan = {.base = c->scratch + (size_t)worker * c->scratch_size};
    const quantized_rows rows = take_rows(&plan, width, c->K);
    c->kernels->quantize_rows(&rows, c->w + column * c->ldw, c->ldw, columns, c->K);
    c->kernels->interleave_bytes(c->packed + i * byte_panel_size(width, c->K), &rows, columns, c->K);
}

fa_status OP(linear_bytes_pack)(fa_isa isa, void *packed, const void *w, fa_index ldw, fa_index N, fa_index K)
{
    const int threads = fa_threads_for((double)N * (double)K * PACK_WORK);
    bytes_packing c = {.kernels = kernels_for(isa), .packed = packed, .w = w, .ldw = ldw, .N = N, .K = K};
    const fa_index width = byte_width(c.kernels);
    fa_scratch scratch;
    arena plan = {0};
    take_rows(&plan, width, K);
    c.scratch_size = plan.used;
    if (!fa_scratch_take(&scratch, fa_scratch_bytes(threads, plan.used))) return FA_NOMEM;
    c.scratch = scratch.base;
    fa_parallel_for(fa_ceil_div(N, width), threads, pack_task, &c);
    fa_scratch_give(&scratch);
    return FA_OK;
}
#endif
