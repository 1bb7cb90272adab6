/* y = activation(z), z = x w' + bias; z is kept on request.

   native  w is packed into panels once per call (or beforehand, in a handle), in blocks of at most W_BLOCK_BYTES; then tasks of
           M_BLOCK rows by a range of panels pack their rows of x, K_SLICE at a time, and run gemm_panels. Few rows, whose packed x the
           second-level cache holds, are packed once instead, and tasks are panels, which are multiplied where they were packed: w
           is as much as all else then, and is read once.
   blas    constant tiles of BLAS_ROWS x BLAS_COLUMNS over the whole of K, rows padded, so that a row takes the same path through
           the library wherever it stands.

   16-bit arrays: converted in packing (pairs for sets that multiply those, see kernels/gemm/gemm.c), multiplied into a buffer of reals,
   CHUNK_PANELS at a time, and rounded from there, once, after bias and activation. Native only.

   How the panels are split into tasks depends on sizes and threads; no sum does: it is split at multiples of k_block alone. */
#include "linear.h"

#include <limits.h>
#include <string.h>

#define M_BLOCK 96   /* rows of x per task: 96 x K_SLICE of float fill 3/4 of a 512 KB second-level cache */
#define K_SLICE 1024 /* a multiple of every k_block */
#define W_BLOCK_BYTES ((fa_index)16 << 20)
#define TASKS_PER_THREAD 4
#define PANELS_PER_TASK 8 /* packing 32 rows of x costs half a panel's product */
#define CHUNK_PANELS 8    /* 96 rows of 8 panels of 64 floats: 192 KB */
#define FEW_ROWS (2 * M_BLOCK)
#define FEW_BYTES ((fa_index)512 << 10) /* of K_SLICE of them: half of a second-level cache of 1 MB */
#define BLAS_ROWS 64
#define BLAS_COLUMNS 256

/* The columns of a panel, K of them from k0 on. */
static void pack_panel(const linear_call *c, real *dst, fa_index column, fa_index k0, fa_index K, fa_index Kp)
{
    const fa_kernels *k = c->kernels;
    const fa_index lanes = k->sizes.lanes, width = panel_width(k), end = fa_min(column + width, c->N);
    for (fa_index v = 0; v < k->sizes.panel_vectors; v++, column += lanes, dst += lanes) {
        const fa_index columns = fa_max(0, fa_min(lanes, end - column));
        if (c->w_transposed)
            k->pack_transposed(dst, width, c->w + k0 * c->ldw + (columns ? column : 0), c->ldw, columns, K, Kp);
        else
            k->pack_columns(dst, width, c->w + (columns ? column : 0) * c->ldw + k0, c->ldw, columns, K, Kp);
    }
}

static void pack_task(void *context, fa_index i, int worker)
{
    const linear_call *c = context;
    const fa_index width = panel_width(c->kernels);
    (void)worker;
    pack_panel(c, c->panels + i * width * c->Kp, (c->first_panel + i) * width, 0, c->K, c->Kp);
}

/* `rows` rows of x from m0 on, `slice` of K from k0 on, in tiles; returns how many packed elements of K that is. */
static fa_index pack_slice(const linear_call *c, real *tiles, fa_index m0, fa_index rows, fa_index k0, fa_index slice)
{
    const fa_kernels *k = c->kernels;
    const fa_index kp = fa_min(slice, c->Kp - k0), first = k0 * k->sizes.packed;
    const stored *row[M_BLOCK];
    for (fa_index r = 0; r < rows; r++) row[r] = c->x + (m0 + r) * c->ldx + first;
    k->pack_rows(tiles, row, rows, k->sizes.panel_vectors, fa_min(slice * k->sizes.packed, c->K - first), kp);
    return kp;
}

/* c = the product of `rows` rows from m0 on and `panels` panels, `last` columns of the last one. */
static void multiply(const linear_call *c, real *dst, fa_index ld, real *tiles, fa_index m0, fa_index rows, const real *b,
                     fa_index panels, fa_index last)
{
    const fa_kernels *k = c->kernels;
    const fa_index width = panel_width(k);
    panel_product product = {.c = dst,
                             .ldc = ld,
                             .c_panel = width,
                             .a = tiles,
                             .m = rows,
                             .panel_stride = width * c->Kp,
                             .panels = panels,
                             .last_columns = last,
                             .nv = k->sizes.panel_vectors,
                             .cached = rows <= CACHED_ROWS && are_cached(c->N * c->Kp, sizeof(real))};
    for (fa_index k0 = 0; k0 < c->Kp || k0 == 0; k0 += K_SLICE) {
        product.k_size = pack_slice(c, tiles, m0, rows, k0, K_SLICE);
        product.b = b + k0 * width;
        product.accumulate = k0 > 0;
        k->gemm_panels(&product);
    }
}

void OP(linear_finish)(const linear_call *c, real *product, fa_index ld, real *bias, fa_index m0, fa_index rows, fa_index column,
                       fa_index columns)
{
    const fa_kernels *k = c->kernels;
    const int more = c->bias || c->activation != FA_IDENTITY;
#if FA_CONVERTS
    const int apart = c->z != NULL; /* the bias, z, the activation */
    if (c->bias) k->widen(bias, c->bias + column, columns);
    if (apart && c->bias) k->bias_activation_rows(product, NULL, ld, bias, rows, columns, FA_IDENTITY);
    for (fa_index r = 0; r < rows && apart; r++) k->narrow(c->z + (m0 + r) * c->ldy + column, product + r * ld, columns);
    if (more) k->bias_activation_rows(product, NULL, ld, c->bias && !apart ? bias : NULL, rows, columns, (int)c->activation);
    for (fa_index r = 0; r < rows; r++) k->narrow(c->y + (m0 + r) * c->ldy + column, product + r * ld, columns);
#else
    (void)bias;
    if (more)
        k->bias_activation_rows(product, c->z ? c->z + m0 * c->ldy + column : NULL, ld, c->bias ? c->bias + column : NULL, rows,
                                columns, (int)c->activation);
#endif
}

static void product_task(void *context, fa_index i, int worker)
{
    const linear_call *c = context;
    const fa_kernels *k = c->kernels;
    const fa_index width = panel_width(k), wide = CHUNK_PANELS * width, chunk = FA_CONVERTS ? CHUNK_PANELS : c->panels_per_task;
    const fa_index m0 = i / c->n_tasks * M_BLOCK, rows = fa_min(M_BLOCK, c->M - m0);
    const fa_index p0 = i % c->n_tasks * c->panels_per_task, end = fa_min(p0 + c->panels_per_task, c->n_panels);
    real *tiles = c->tiles + worker * c->tile_size;
    real *product = FA_CONVERTS ? tiles + c->tile_size - (M_BLOCK + 1) * wide : NULL;
    real *bias = FA_CONVERTS ? product + M_BLOCK * wide : NULL;
    for (fa_index p = p0; p < end; p += chunk) {
        const fa_index panels = fa_min(chunk, end - p), column = (c->first_panel + p) * width;
        const fa_index columns = fa_min(panels * width, c->N - column), ld = FA_CONVERTS ? wide : c->ldy;
        real *dst = FA_CONVERTS ? product : (real *)c->y + m0 * c->ldy + column;
        multiply(c, dst, ld, tiles, m0, rows, c->panels + p * width * c->Kp, panels, columns - (panels - 1) * width);
        OP(linear_finish)(c, dst, ld, bias, m0, rows, column, columns);
    }
}

/* k of a slice of few rows: the panel that is packed stays in the first-level cache until it is multiplied. */
static fa_index few_slice(const linear_call *c) { return c->kernels->sizes.k_block[c->kernels->sizes.panel_vectors]; }

/* Few rows of x in tiles: slice after slice of K, in each block after block of rows. Each has room for what packing writes beyond the
   last tile. */
static real *few_tiles(const linear_call *c, fa_index k0, fa_index m0)
{
    const fa_index extra = c->kernels->sizes.tile_rows[c->kernels->sizes.panel_vectors];
    const fa_index all = c->M + fa_ceil_div(c->M, M_BLOCK) * extra;
    return c->tiles + k0 * all + (m0 + m0 / M_BLOCK * extra) * fa_min(few_slice(c), c->Kp - k0);
}

static void pack_few(void *context, fa_index i, int worker)
{
    const linear_call *c = context;
    const fa_index blocks = fa_ceil_div(c->M, M_BLOCK), k0 = i / blocks * few_slice(c), m0 = i % blocks * M_BLOCK;
    (void)worker;
    pack_slice(c, few_tiles(c, k0, m0), m0, fa_min(M_BLOCK, c->M - m0), k0, few_slice(c));
}

static void few_task(void *context, fa_index i, int worker)
{
    const linear_call *c = context;
    const fa_kernels *k = c->kernels;
    const fa_index width = panel_width(k), column = i * width, columns = fa_min(width, c->N - column);
    const fa_index slice = few_slice(c) * k->sizes.packed, ld = FA_CONVERTS ? width : c->ldy;
    real *panel = c->panels + worker * c->panel_size;
    real *dst = FA_CONVERTS ? panel + width * fa_min(few_slice(c), c->Kp) : (real *)c->y + column;
    panel_product product = {
        .ldc = ld, .c_panel = width, .b = panel, .cached = 1, .panels = 1, .last_columns = columns, .nv = k->sizes.panel_vectors};
    for (fa_index k0 = 0; k0 < c->Kp || k0 == 0; k0 += few_slice(c)) {
        const fa_index kp = fa_min(few_slice(c), c->Kp - k0), first = k0 * k->sizes.packed;
        pack_panel(c, panel, column, first, fa_min(slice, c->K - first), kp);
        product.panel_stride = width * kp;
        product.k_size = kp;
        product.accumulate = k0 > 0;
        for (fa_index m0 = 0; m0 < c->M; m0 += M_BLOCK) {
            product.c = dst + m0 * ld;
            product.a = few_tiles(c, k0, m0);
            product.m = fa_min(M_BLOCK, c->M - m0);
            k->gemm_panels(&product);
        }
    }
    OP(linear_finish)(c, dst, ld, FA_CONVERTS ? dst + c->M * width : NULL, 0, c->M, column, columns);
}

/* The product with panels [first_panel, first_panel + n_panels), which c->panels holds. */
static void run_product(linear_call *c, int threads)
{
    const fa_index m_tasks = fa_ceil_div(c->M, M_BLOCK);
    /* Enough tasks for an even load; but each task packs its rows of x again, so no more than that, and with several rows, where
       packing transposes, none so small that packing counts. */
    const fa_index even = fa_ceil_div(threads > 1 ? threads * TASKS_PER_THREAD : 1, m_tasks),
                   least = fa_ceil_div(threads, m_tasks);
    const fa_index large = c->M > 1 ? fa_max(least, c->n_panels / PANELS_PER_TASK) : even;
    const fa_index n_tasks = fa_min(c->n_panels, fa_min(even, large));
    c->panels_per_task = fa_ceil_div(c->n_panels, n_tasks);
    c->n_tasks = n_tasks;
    fa_parallel_for(m_tasks * n_tasks, threads, product_task, c);
}

static fa_status forward_few(linear_call *c, int threads)
{
    const fa_kernels *k = c->kernels;
    const fa_index width = panel_width(k), m_blocks = fa_ceil_div(c->M, M_BLOCK);
    fa_scratch scratch;
    arena plan = {0};
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        c->tiles = arena_take(&plan, (c->M + m_blocks * k->sizes.tile_rows[k->sizes.panel_vectors]) * c->Kp + k->sizes.lanes,
                              sizeof(real));
        c->panel_size = width * fa_min(few_slice(c), c->Kp);
        if (FA_CONVERTS) c->panel_size += (c->M + 1) * width; /* the product and the bias */
        c->panels = arena_take(&plan, c->panel_size * threads, sizeof(real));
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    fa_parallel_for(m_blocks * fa_ceil_div(c->Kp, few_slice(c)), threads, pack_few, c);
    fa_parallel_for(fa_ceil_div(c->N, width), threads, few_task, c);
    fa_scratch_give(&scratch);
    return FA_OK;
}

static fa_status forward_native(linear_call *c)
{
    const fa_kernels *k = c->kernels;
    const fa_index width = panel_width(k), panels = fa_ceil_div(c->N, width), panel_size = width * c->Kp;
    const int threads = fa_threads_for((double)c->M * (double)c->N * (double)c->K);
    const fa_index block =
        c->packed ? panels : fa_min(panels, fa_max(1, W_BLOCK_BYTES / fa_max(1, panel_size * (fa_index)sizeof(real))));
    fa_scratch scratch;
    arena plan = {0};
    if (!c->packed && c->M <= FEW_ROWS && c->M * fa_min(K_SLICE, c->Kp) * (fa_index)sizeof(real) <= FEW_BYTES)
        return forward_few(c, threads);
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        c->tile_size = (M_BLOCK + k->sizes.tile_rows[k->sizes.panel_vectors]) * fa_min(K_SLICE, c->Kp) + k->sizes.lanes;
        if (FA_CONVERTS) c->tile_size += (M_BLOCK + 1) * CHUNK_PANELS * width; /* the product and the bias, see product_task */
        c->tiles = arena_take(&plan, c->tile_size * threads, sizeof(real));
        c->panels = c->packed ? NULL : arena_take(&plan, block * panel_size, sizeof(real));
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    for (c->first_panel = 0; c->first_panel < panels; c->first_panel += block) {
        c->n_panels = fa_min(block, panels - c->first_panel);
        if (c->packed)
            c->panels = (real *)c->packed; /* read only */
        else
            fa_parallel_for(c->n_panels, threads, pack_task, c);
        run_product(c, threads);
    }
    fa_scratch_give(&scratch);
    return FA_OK;
}

#if !FA_CONVERTS
static void blas_task(void *context, fa_index i, int worker)
{
    const linear_call *c = context;
    const fa_index n_tiles = fa_ceil_div(c->N, BLAS_COLUMNS);
    const fa_index m0 = i / n_tiles * BLAS_ROWS, n0 = i % n_tiles * BLAS_COLUMNS;
    const fa_index rows = fa_min(BLAS_ROWS, c->M - m0), columns = fa_min(BLAS_COLUMNS, c->N - n0);
    const real *x = c->x + m0 * c->ldx, *w = c->w + n0 * c->ldw;
    real *y = c->y + m0 * c->ldy + n0;
    if (rows == BLAS_ROWS && c->ldx >= c->K && c->ldx <= INT_MAX && c->ldy >= c->N && c->ldy <= INT_MAX) {
        blas_gemm(1, rows, columns, c->K, 1, x, c->ldx, w, c->ldw, 0, y, c->ldy);
    } else {
        real *tile = c->tiles + worker * c->tile_size, *product = tile + BLAS_ROWS * c->K;
        for (fa_index r = 0; r < BLAS_ROWS; r++) {
            if (r < rows)
                memcpy(tile + r * c->K, x + r * c->ldx, (size_t)c->K * sizeof(real));
            else
                memset(tile + r * c->K, 0, (size_t)c->K * sizeof(real));
        }
        blas_gemm(1, BLAS_ROWS, columns, c->K, 1, tile, c->K, w, c->ldw, 0, product, BLAS_COLUMNS);
        for (fa_index r = 0; r < rows; r++) memcpy(y + r * c->ldy, product + r * BLAS_COLUMNS, (size_t)columns * sizeof(real));
    }
    if (c->bias || c->activation != FA_IDENTITY)
        c->kernels->bias_activation_rows(y, c->z ? c->z + (y - c->y) : NULL, c->ldy, c->bias ? c->bias + n0 : NULL, rows, columns,
                                         (int)c->activation);
}

static fa_status forward_blas(linear_call *c)
{
    fa_scratch scratch;
    if (!fa_blas_load()) return FA_NOBLAS;
    const int threads = fa_threads_for((double)c->M * (double)c->N * (double)c->K);
    c->tile_size = BLAS_ROWS * (c->K + BLAS_COLUMNS);
    if (!fa_scratch_take(&scratch, fa_scratch_bytes(c->tile_size * threads, sizeof(real)))) return FA_NOMEM;
    c->tiles = (real *)scratch.base;
    fa_parallel_for(fa_ceil_div(c->M, BLAS_ROWS) * fa_ceil_div(c->N, BLAS_COLUMNS), threads, blas_task, c);
    fa_scratch_give(&scratch);
    return FA_OK;
}
#endif

/* Packed elements of K. */
static fa_index packed_size(const fa_kernels *k, fa_index K)
{
    return fa_round_up(fa_ceil_div(K, k->sizes.packed), k->sizes.tile_k);
}

fa_status OP(linear_forward)(const fa_linear_arguments *a)
{
    const fa_kernels *k = a->packed ? kernels_for(a->isa) : current_kernels();
    linear_call call = {.kernels = k,
                        .y = a->y,
                        .z = a->z,
                        .x = a->x,
                        .w = a->w,
                        .w_transposed = a->w_transposed,
                        .packed = a->packed,
                        .bias = a->bias,
                        .ldy = a->ldy,
                        .ldx = a->ldx,
                        .ldw = a->ldw,
                        .M = a->M,
                        .N = a->N,
                        .K = a->K,
                        .Kp = packed_size(k, a->K),
                        .activation = a->activation};
    if (a->M == 0 || a->N == 0) return FA_OK;
#if !FA_CONVERTS
    /* BLAS counts in int, and needs a row stride of at least 1 and of at least a row. */
    const int fits = !a->w_transposed && a->K > 0 && a->K <= INT_MAX && a->ldw >= a->K && a->ldw <= INT_MAX;
    if (a->strategy == FA_LINEAR_BLAS && !a->packed && fits) return forward_blas(&call);
#endif
    if (!a->packed && a->M <= OP(linear_few_rows)(&call)) return OP(linear_few)(&call);
    return forward_native(&call);
}

size_t OP(linear_packed_bytes)(fa_isa isa, fa_index N, fa_index K)
{
    const fa_kernels *k = kernels_for(isa);
    const fa_index width = panel_width(k);
    return fa_scratch_bytes(fa_round_up(N, width) * packed_size(k, K), sizeof(real));
}

fa_status OP(linear_pack)(fa_isa isa, void *packed, const void *w, fa_index ldw, fa_index N, fa_index K)
{
    const fa_kernels *k = kernels_for(isa);
    linear_call call = {.kernels = k, .panels = packed, .w = w, .ldw = ldw, .N = N, .K = K, .Kp = packed_size(k, K)};
    if (K == 0) return FA_OK;
    fa_parallel_for(fa_ceil_div(N, panel_width(k)), fa_threads_for((double)N * (double)K), pack_task, &call);
    return FA_OK;
}
