/* linear with few rows of x and weights that are not packed: each element of w is used a few times, straight from where it is
   (kernels/gemm/few_rows.c). Tasks are ranges of columns. The bits are those of packed weights. */
#include "linear.h"

#define MOST_COLUMN_ROWS 16 /* of x with w[K, N]; beyond, packing is the smaller part */
/* Of sums, with w[K, N]: near the core from some rows of w to the next, and wide enough for long runs of each row. */
#define TASK_BYTES ((fa_index)64 << 10)
#define PART_GAP 16       /* rows of sums do not fall on the same cache sets */
#define LEAST_COLUMNS 256 /* of a task: rows of w are read in runs of 1 KB */
#define COLUMNS_UNIT 64   /* a multiple of all widths of panels and tiles */

typedef struct {
    const linear_call *call;
    real *x;    /* rows of packed elements */
    real *work; /* of each worker: sums of a part, or of 16-bit arrays the products and the bias */
    fa_index ldx, columns, work_size;
} few_call;

fa_index OP(linear_few_rows)(const linear_call *c)
{
    return c->w_transposed ? FA_CONVERTS ? 0 : MOST_COLUMN_ROWS : c->kernels->sizes.few_rows;
}

/* The products with rows of w: whole vectors of columns, then what is left. */
static void multiply_rows(const linear_call *c, few_product product, fa_index column, fa_index columns)
{
    const fa_index lanes = c->kernels->sizes.lanes, whole = columns / lanes;
    product.w = c->w + column * c->ldw;
    product.group_step = lanes * c->ldw;
    product.streams = 1 + are_cached(c->N * c->K, sizeof(stored)); /* memory is faster read in one */
    product.groups = whole;
    product.rows = product.columns = lanes;
    c->kernels->few_rows(&product);
    if (columns == whole * lanes) return;
    product.c += whole * lanes;
    product.w = (const stored *)product.w + whole * product.group_step;
    product.groups = 1;
    product.rows = product.columns = columns - whole * lanes;
    c->kernels->few_rows(&product);
}

static void few_task(void *context, fa_index i, int worker)
{
    const few_call *f = context;
    const linear_call *c = f->call;
    const fa_index column = i * f->columns, columns = fa_min(f->columns, c->N - column);
    const fa_index ld = FA_CONVERTS ? f->columns : c->ldy;
    real *work = f->work + worker * f->work_size, *dst = FA_CONVERTS ? work : (real *)c->y + column;
    few_product product = {.c = dst,
                           .x = f->x,
                           .ldc = ld,
                           .ldx = f->ldx,
                           .ldw = c->ldw,
                           .m = c->M,
                           .k_size = c->K,
                           .nv = c->kernels->sizes.panel_vectors};
#if !FA_CONVERTS
    if (c->w_transposed) {
        product.w = c->w + column;
        product.columns = columns;
        product.part = work;
        product.ldpart = f->columns + PART_GAP;
        c->kernels->few_columns(&product);
    } else
#endif
        multiply_rows(c, product, column, columns);
    OP(linear_finish)(c, dst, ld, FA_CONVERTS ? work + c->M * ld : NULL, 0, c->M, column, columns);
}

fa_status OP(linear_few)(linear_call *c)
{
    const fa_kernels *k = c->kernels;
    const int threads = fa_threads_for((double)c->M * (double)c->N * (double)c->K);
    few_call f = {.call = c, .ldx = fa_round_up(c->Kp, k->sizes.lanes)};
    fa_index columns = fa_ceil_div(c->N, threads);
    if (c->w_transposed) columns = fa_min(columns, fa_max(LEAST_COLUMNS, TASK_BYTES / (2 * c->M * (fa_index)sizeof(real))));
    f.columns = fa_round_up(columns, COLUMNS_UNIT);
    f.work_size = (f.columns + PART_GAP) * (c->M + 1);
    fa_scratch scratch;
    arena plan = {0};
    for (int pass = 0; pass < 2; pass++) {
        plan.used = 0;
        f.x = arena_take(&plan, c->M * f.ldx, sizeof(real));
        f.work = arena_take(&plan, FA_CONVERTS || c->w_transposed ? f.work_size * threads : 0, sizeof(real));
        if (pass == 0 && !fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
        plan.base = scratch.base;
    }
    for (fa_index r = 0; r < c->M; r++) {
        const stored *row = c->x + r * c->ldx;
        k->pack_rows(f.x + r * f.ldx, &row, 1, k->sizes.panel_vectors, c->K, f.ldx);
    }
    fa_parallel_for(fa_ceil_div(c->N, f.columns), threads, few_task, &f);
    fa_scratch_give(&scratch);
    return FA_OK;
}
