/* What can be had of attention besides its output: probabilities of chosen rows from their lse, one result of two over
   different keys, and what backward reads of rows whose lse is known. Always native kernels, whatever the strategy. */
#include "attention.h"

#define ROW_TILE 96
#define MERGE_ELEMENTS 16384 /* in a task */
#define LN_2 0x1.62e42fefa39efp-1
#define LN_2_REST 0x1.abc9e3b39803fp-56                               /* ln(2) - LN_2 */
#define EXACT_SHIFT (sizeof(real) == sizeof(float) ? 0x1p21 : 0x1p50) /* integers below it leave room for the bits of a score */

typedef struct {
    real *scores, *copy, *queries, *keys;
} weights_scratch;

typedef struct {
    const fa_attention_weights_arguments *w;
    const fa_kernels *kernels;
    fa_index block, query_slice, tiles;
    real scale_high, scale_low;
    weights_scratch *worker;
} weights_call;

/* Task: a tile of the chosen rows of one chosen head. */
static void weights_tile(void *context, fa_index task, int worker)
{
    const weights_call *c = context;
    const fa_attention_weights_arguments *w = c->w;
    const fa_attention_arguments *a = &w->attention;
    const fa_kernels *k = c->kernels;
    const weights_scratch *scratch = &c->worker[worker];
    const fa_index first = task % c->tiles * ROW_TILE, at = task / c->tiles % w->n_heads, b = task / c->tiles / w->n_heads;
    const fa_index h = w->heads[at], hk = h / (a->H / a->Hk), n = fa_min(ROW_TILE, w->n_rows - first);
    const fa_index most = 2 * k->sizes.attention_rows;
    const fa_index *row = w->rows + first;
    real lse[ROW_TILE];
    for (fa_index r = 0; r < n; r++) {
        k->attention_pack_a(scratch->queries + r * k->sizes.query_stride, c->query_slice, query_row(a, b, h, row[r]),
                            a->q_stride[2], 1, a->D, c->scale_high, c->scale_low);
        lse[r] = ((const real *)w->lse)[state_row(a, b, h, row[r])];
    }
    for (fa_index j0 = 0; j0 < a->Lk; j0 += c->block) {
        const fa_index keys = fa_max(0, fa_min(c->block, key_length(a, b) - j0)), places = fa_min(c->block, a->Lk - j0);
        fa_index begin[ROW_TILE], end[ROW_TILE], attended = 0;
        for (fa_index r = 0; r < n; r++) {
            const score_block one = {.rows = 1, .keys = keys, .begin = begin + r, .end = end + r};
            attended += block_ranges(a, b, row[r], j0, &one);
            OP(attention_narrow)(a, b, h, row[r], j0, &one);
        }
        if (attended) k->attention_pack_bt(scratch->keys, key_row(a, b, hk, j0), a->k_stride[2], keys, a->D);
        for (fa_index g = 0; g < n; g += most) {
            const score_block x = {scratch->scores, fa_min(most, n - g), keys, begin + g, end + g, c->scale_high};
            if (attended)
                k->attention_product_nt(&x, scratch->queries + g * k->sizes.query_stride, c->query_slice, scratch->keys, a->D,
                                        NULL);
            for (fa_index r = 0; attended && r < x.rows; r++) {
                const score_block one = rows_of_block(&x, r, 1);
                OP(attention_adjust_scores)(a, k, &one, scratch->copy, b, h, row[g + r], j0);
            }
            real *dst = (real *)w->weights + b * w->stride[0] + at * w->stride[1] + (first + g) * w->stride[2] + j0;
            k->attention_weights(dst, w->stride[2], &x, places, lse + g);
            for (fa_index r = 0; r < x.rows; r++) {
                const score_block one = rows_of_block(&x, r, 1);
                OP(attention_natural_weights)(a, k, dst + r * w->stride[2], &one, b, h, row[g + r], j0, lse[g + r]);
            }
        }
    }
}

static void plan_weights(weights_call *c, arena *plan, int threads)
{
    const fa_attention_arguments *a = &c->w->attention;
    const fa_kernel_sizes *sizes = &c->kernels->sizes;
    c->worker = arena_take(plan, threads, sizeof *c->worker);
    for (int m = 0; m < threads; m++) {
        weights_scratch w;
        w.scores = arena_take(plan, 2 * sizes->attention_rows * sizes->attention_stride, sizeof(real));
        w.copy = arena_take(plan, sizes->attention_stride, sizeof(real));
        w.queries = arena_take(plan, fa_ceil_div(a->D, sizes->query_slice) * c->query_slice, sizeof(real));
        w.keys = arena_take(plan, c->block * fa_round_up(a->D, sizes->tile_k), sizeof(real));
        if (plan->base) c->worker[m] = w;
    }
}

fa_status OP(attention_weights)(const fa_attention_weights_arguments *w)
{
    const fa_attention_arguments *a = &w->attention;
    weights_call c = {.w = w, .kernels = current_kernels()};
    if (a->B == 0 || w->n_heads == 0 || w->n_rows == 0 || a->Lk == 0) return FA_OK;
    c.block = c.kernels->sizes.attention_keys / (a->D > WIDE_HEAD ? 2 : 1);
    c.query_slice = ROW_TILE * c.kernels->sizes.query_stride;
    c.tiles = fa_ceil_div(w->n_rows, ROW_TILE);
    query_scale(a, &c.scale_high, &c.scale_low);
    const int threads =
        fa_threads_for((double)a->B * (double)w->n_heads * (double)w->n_rows * (double)a->Lk * (double)(a->D + 8));
    fa_scratch scratch;
    arena plan = {0};
    plan_weights(&c, &plan, threads);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_weights(&c, &plan, threads);
    fa_parallel_for(a->B * w->n_heads * c.tiles, threads, weights_tile, &c);
    fa_scratch_give(&scratch);
    return FA_OK;
}

typedef struct {
    const fa_kernels *kernels;
    real *out, *lse;
    const real *a, *lse_a, *b, *lse_b;
    fa_index rows, n, rows_per_task;
} merge_call;

static void merge_rows(void *context, fa_index task, int worker)
{
    const merge_call *c = context;
    const fa_index first = task * c->rows_per_task, rows = fa_min(c->rows_per_task, c->rows - first), at = first * c->n;
    (void)worker;
    c->kernels->attention_merge(c->out + at, c->lse + first, c->a + at, c->lse_a + first, c->b + at, c->lse_b + first, rows,
                                c->n);
}

fa_status OP(attention_merge)(void *out, void *lse, const void *a, const void *lse_a, const void *b, const void *lse_b,
                              fa_index rows, fa_index n)
{
    merge_call c = {current_kernels(), out, lse, a, lse_a, b, lse_b, rows, n, 1 + MERGE_ELEMENTS / (n + 1)};
    fa_parallel_for(fa_ceil_div(rows, c.rows_per_task), fa_threads_for((double)rows * (double)(n + 32)), merge_rows, &c);
    return FA_OK;
}

/* shift and sum of a row, as forward has them: lse = shift ln 2 + ln sum. Where an integer shift would leave the range, or has lost its last
   bits, they are those of a row in natural units, whose sum is negative. */
static void state_of_row(real *shift, real *sum, real lse)
{
    const double R = rint((double)lse * LOG2_E);
    if (lse == -REAL_INFINITY) {
        *shift = -REAL_INFINITY;
        *sum = 0;
    } else if (!isfinite(lse)) {
        *shift = 0;
        *sum = (real)NAN;
    } else if (fabs(R) > EXACT_SHIFT) {
        *shift = lse;
        *sum = -1;
    } else {
        *shift = (real)R;
        *sum = (real)exp(fma(-R, LN_2_REST, fma(-R, LN_2, (double)lse)));
    }
}

fa_status OP(attention_state)(void *shift, void *sum, const void *lse, fa_index n)
{
    for (fa_index i = 0; i < n; i++) state_of_row((real *)shift + i, (real *)sum + i, ((const real *)lse)[i]);
    return FA_OK;
}
