/* One tile of queries and one block of keys: what attention.c splits.

   Strategy "blas" runs the two products of a block as BLAS calls on constant tiles of QUERY_BLOCK rows, padded. A tile's
   last block goes straight to `out`; before that, O is kept between blocks. */
#include "attention_forward.h"

#include <string.h>

/* A group has taken no keys yet and its O is undefined; or its sums are in O; or its result is out. */
typedef enum { NOT_BEGUN = 0, BEGUN, FINISHED } group_progress;

void OP(attention_pack_block)(const attention_call *c, fa_index b, fa_index hk, fa_index j, real *dst, int *found)
{
    const fa_attention_arguments *a = c->a;
    const fa_index first = j * c->block, keys = fa_min(c->block, key_length(a, b) - first);
    const stored *k = key_row(a, b, hk, first), *v = value_row(a, b, hk, first);
    if (a->strategy == FA_ATTENTION_BLAS) {
        /* Whole tiles for BLAS: the keys that are missing are zeros. */
        memset(dst, 0, (size_t)(c->key_size + c->value_size) * sizeof(real));
        for (fa_index i = 0; i < keys; i++) c->kernels->widen(dst + i * a->D, k + i * a->k_stride[2], a->D);
        c->kernels->attention_copy_values(dst + c->key_size, c->ldo, v, a->v_stride[2], keys, a->Dv, found);
        return;
    }
    c->kernels->attention_pack_bt(dst, k, a->k_stride[2], keys, a->D);
    c->kernels->attention_pack_b(dst + c->key_size, v, a->v_stride[2], keys, a->Dv, found);
}

void OP(attention_start_tile)(const attention_call *c, tile_state *s, fa_index b, fa_index h, fa_index tile)
{
    const fa_attention_arguments *a = c->a;
    fa_index first, rows;
    rows_of_query_block(c, b, tile, &first, &rows);
    s->large = 0;
    for (fa_index r = 0; r < rows; r++) {
        s->sum[r] = 0;
        s->shift[r] = -REAL_INFINITY;
        s->progress[r] = NOT_BEGUN;
        s->attends[r] = 0;
    }
    if (a->sinks) {
        const fa_index within = fa_max(0, fa_min(rows, query_length(a, b) - first));
        c->kernels->attention_sink(s->shift, s->sum, within, ((const real *)a->sinks)[h]);
    }
    if (a->strategy == FA_ATTENTION_BLAS) {
        memset(s->o, 0, (size_t)(QUERY_BLOCK * c->ldo) * sizeof(real));
        memset(s->queries, 0, (size_t)(QUERY_BLOCK * a->D) * sizeof(real));
        for (fa_index r = 0; r < rows; r++) c->kernels->widen(s->queries + r * a->D, query_row(a, b, h, first + r), a->D);
        return;
    }
    c->kernels->attention_pack_a(s->queries, c->query_slice, query_row(a, b, h, first), a->q_stride[2], rows, a->D, c->scale_high,
                                 c->scale_low);
}

void OP(attention_finish_tile)(const attention_call *c, const tile_state *s, fa_index b, fa_index h, fa_index tile)
{
    const fa_attention_arguments *a = c->a;
    fa_index first, rows;
    rows_of_query_block(c, b, tile, &first, &rows);
    for (fa_index g = 0; g * c->group_rows < rows; g++) {
        fa_index r, n;
        split_evenly(rows, c->group_rows, g, &r, &n);
        if (s->progress[g] == NOT_BEGUN && a->sinks) /* a sum, but nothing to divide by it */
            memset(s->o + r * c->ldo, 0, (size_t)(n * c->ldo) * sizeof(real));
        stored *out = s->progress[g] == FINISHED ? NULL : output_row(a, b, h, first + r);
        const fa_index row = state_row(a, b, h, first + r);
        real *lse = a->lse ? (real *)a->lse + row : NULL;
        c->kernels->attention_finish(out, a->out_stride[2], s->o + r * c->ldo, c->ldo, n, a->Dv, s->shift + r, s->sum + r, lse);
        if (a->shift) memcpy((real *)a->shift + row, s->shift + r, (size_t)n * sizeof(real));
        if (a->sum) memcpy((real *)a->sum + row, s->sum + r, (size_t)n * sizeof(real));
    }
    int overflows = 0;
    if (s->large) c->kernels->attention_overflows(&overflows, output_row(a, b, h, first), a->out_stride[2], rows, a->Dv, s->sum);
    if (overflows) *s->overflowed |= SUMS_OVERFLOW;
    if (OP(attention_mark_unsettled)(c->unsettled + state_row(a, b, h, first), s->sum, s->attends, rows))
        *s->overflowed |= ROWS_UNSETTLED;
}

/* The share of one call of a kernel: parts of as many arrays as it takes. */
static const prefetch_rows *take_share(prefetch_rows part[UPCOMING], upcoming_rows *next)
{
    fa_index left = next ? next->share : 0;
    prefetch_rows *to = NULL;
    for (int i = 0; left > 0 && i < UPCOMING; i++) {
        prefetch_rows *rows = &next->rows[i];
        part[i] = *rows;
        part[i].count = fa_min(rows->count, left);
        part[i].then = to;
        rows->first = (const char *)rows->first + part[i].count * rows->step;
        rows->count -= part[i].count;
        left -= part[i].count;
        to = &part[i];
    }
    return to;
}

/* One tile and one key block, the `last` one of the tile or another. */
void OP(attention_attend)(const attention_call *c, const worker_scratch *w, tile_state *s, const key_block *block, int last,
                          fa_index b, fa_index h, fa_index tile, fa_index j, upcoming_rows *next)
{
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const int blas = a->strategy == FA_ATTENTION_BLAS, nonfinite = block->found & VALUES_NOT_FINITE;
    const fa_index stride = k->sizes.attention_stride, j0 = j * c->block, keys = fa_min(c->block, key_length(a, b) - j0);
    fa_index tile_first, tile_rows;
    rows_of_query_block(c, b, tile, &tile_first, &tile_rows);
    s->large |= block->found & VALUES_LARGE;
    for (fa_index g = 0; g * c->group_rows < tile_rows; g++) {
        fa_index begin[QUERY_BLOCK], end[QUERY_BLOCK], first, rows;
        real alpha[QUERY_BLOCK];
        prefetch_rows ahead[UPCOMING];
        split_evenly(tile_rows, c->group_rows, g, &first, &rows);
        score_block x = {w->scores, rows, keys, begin, end, c->scale_high};
        if (!block_ranges(a, b, tile_first + first, j0, &x)) continue;
        if (a->mask_kind != FA_MASK_NONE && !OP(attention_narrow)(a, b, h, tile_first + first, j0, &x)) continue;
        real *o = s->o + first * c->ldo;
        for (fa_index r = 0; r < rows; r++) s->attends[first + r] |= end[r] > begin[r];
        if (blas) {
            blas_gemm(1, QUERY_BLOCK, c->block, a->D, c->scale_high, s->queries, fa_max(1, a->D), block->keys, fa_max(1, a->D), 0,
                      w->scores, stride);
            k->attention_plain_scores(&x, c->scale_high == 0 ? 0 : c->scale_low / c->scale_high);
        } else {
            k->attention_product_nt(&x, s->queries + first * k->sizes.query_stride, c->query_slice, block->keys, a->D,
                                    take_share(ahead, next));
        }
        OP(attention_adjust_scores)(a, k, &x, w->mask, b, h, tile_first + first, j0);
        if (nonfinite) memcpy(w->unmasked, w->scores, (size_t)(rows * stride) * sizeof(real));
        x.scale = c->softmax_scale;
        k->attention_softmax(&x, blas ? c->block : 0, s->shift + first, s->sum + first, alpha);
        OP(attention_drop)(a, k, &x, b, h, tile_first + first, j0);
        if (blas) {
            k->attention_scale_rows(o, c->ldo, rows, a->Dv, alpha);
            blas_gemm(0, QUERY_BLOCK, c->ldo, c->block, 1, w->scores, stride, block->values, c->ldo, 1, o, c->ldo);
            s->progress[g] = BEGUN;
        } else {
            const int finish = last && !nonfinite;
            const value_rows to = {.dst = finish ? (void *)output_row(a, b, h, tile_first + first) : o,
                                   .o = s->progress[g] == NOT_BEGUN ? NULL : o,
                                   .lddst = finish ? a->out_stride[2] : c->ldo,
                                   .ldo = c->ldo,
                                   .alpha = alpha,
                                   .sum = finish ? s->sum + first : NULL};
            k->attention_values(&to, &x, block->values, a->Dv, take_share(ahead, next));
            s->progress[g] = finish ? FINISHED : BEGUN;
        }
        if (nonfinite)
            k->attention_patch_values(o, c->ldo, &x, w->unmasked, value_row(a, b, h / c->group, j0), a->v_stride[2], a->Dv);
    }
}
