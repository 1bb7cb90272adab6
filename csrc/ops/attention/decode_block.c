/* One block of keys of a part, wherever its rows lie: in arrays, in pages, as bytes. decode.c says who computes it when. */
#include "decode.h"

decode_rows OP(decode_rows_of)(const decode_call *c, const part_place *at, fa_index j, const void *x, const fa_index *stride,
                               size_t item)
{
    const fa_attention_arguments *a = c->a;
    const fa_index j0 = j * c->block, size = (fa_index)item;
    decode_rows rows = {.ld = stride[2] * size, .keys = key_length(a, at->b) - j0};
    if (c->cache && c->cache->table) {
        rows.base = (const char *)x + at->hk * stride[1] * size;
        rows.table = c->cache->table + at->b * c->cache->table_stride;
        rows.page_step = stride[0] * size;
        rows.page_keys = c->cache->page_keys;
        rows.first = j0;
    } else {
        const fa_index row = key_start(a, at->b) + j0;
        rows.base = (const char *)x + (at->b * stride[0] + at->hk * stride[1] + row * stride[2]) * size;
    }
    return rows;
}

#if FA_FLOAT_ARRAYS
decode_rows OP(decode_scales_of)(const decode_call *c, const part_place *at, fa_index j, const float *scales)
{
    const fa_index stride[3] = {c->cache->scale_stride[0], c->cache->scale_stride[1], 1};
    return OP(decode_rows_of)(c, at, j, scales, stride, sizeof *scales);
}
#endif

void OP(decode_block_scores)(const decode_call *c, const part_state *s, real *scores, int worker, const part_place *at,
                             block_keys *x)
{
    const fa_attention_arguments *a = c->a;
    const fa_index lanes = c->kernels->sizes.lanes, j0 = x->j * c->block;
    const score_block all = scores_of_part(at, scores, x, c->scale_high);
    const decode_rows keys = OP(decode_rows_of)(c, at, x->j, a->k, a->k_stride, c->bytes ? 1 : sizeof(stored));
    real *gathered = c->gathered + worker * lanes * a->D;
    const fa_index first = x->first / lanes * lanes;
#if FA_FLOAT_ARRAYS
    if (c->bytes) {
        const decode_rows scales = OP(decode_scales_of)(c, at, x->j, c->cache->k_scale);
        c->kernels->decode_scores_i8(scores, &s->digits, at->rows, &keys, &scales, first, x->last, a->D, gathered);
    } else
#endif
        c->kernels->decode_scores(&all, s->queries, c->query_slice, &keys, first, x->last, a->D, gathered);
    for (fa_index h = 0; h < at->heads; h++) {
        const score_block rows = rows_of_block(&all, h * at->queries, at->queries);
        OP(attention_adjust_scores)(a, c->kernels, &rows, c->mask + worker * c->rows * c->stride, at->b, at->h + h, at->i0, j0);
    }
}

/* Adds the values that are not finite to the rows that attend to them: page by page. */
static void patch_values(const decode_call *c, const block_state *block, const real *unmasked, const part_place *at,
                         const decode_rows *values, const block_keys *x)
{
    const fa_index ld = c->a->v_stride[2];
    for (fa_index j = x->first, next, together; j < x->last; j = next) {
        block_keys page;
        const stored *row = find_row(values, j, &together);
        next = fa_min(x->last, j + together);
        for (fa_index r = 0; r < at->rows; r++) {
            page.begin[r] = fa_max(x->begin[r], j);
            page.end[r] = fa_min(x->end[r], next);
        }
        page.last = next;
        const score_block p = scores_of_part(at, block->scores, &page, 1);
        c->kernels->attention_patch_values(block->o, c->ldo, &p, unmasked, row - j * ld, ld, c->a->Dv);
    }
}

/* block->o = p v. */
static void block_values(const decode_call *c, const part_state *s, block_state *block, int worker, const part_place *at,
                         block_keys *x)
{
    const fa_attention_arguments *a = c->a;
    const fa_index packed = c->kernels->sizes.packed, from = x->first / packed * packed;
    const decode_rows values = OP(decode_rows_of)(c, at, x->j, a->v, a->v_stride, c->bytes ? 1 : sizeof(stored));
    int found = 0;
#if FA_FLOAT_ARRAYS
    const decode_rows scales = c->bytes ? OP(decode_scales_of)(c, at, x->j, c->cache->v_scale) : values;
    if (c->bytes)
        c->kernels->decode_values_i8(block->o, c->ldo, block->scores, at->rows, &values, &scales, from, x->last, a->Dv, &found);
    else
#endif
        c->kernels->decode_values(block->o, c->ldo, block->scores, at->rows, &values, from, x->last, a->Dv, &found);
    block->large = found & VALUES_LARGE;
    if (!(found & VALUES_NOT_FINITE)) return;
    /* Rare: which keys the masks exclude is in the scores, and those have become probabilities. */
    real *unmasked = c->unmasked + worker * c->rows * c->stride;
    OP(decode_block_scores)(c, s, unmasked, worker, at, x);
#if FA_FLOAT_ARRAYS
    if (c->bytes) {
        const score_block all = scores_of_part(at, unmasked, x, 1);
        c->kernels->decode_patch_i8(block->o, c->ldo, &all, &scales, a->Dv);
        return;
    }
#endif
    patch_values(c, block, unmasked, at, &values, x);
}

/* Scores to probabilities against block->shift, the one in force before; block->o and block->sum. */
void OP(decode_block_results)(const decode_call *c, const part_state *s, block_state *block, int worker, const part_place *at,
                              block_keys *x)
{
    const score_block all = scores_of_part(at, block->scores, x, 1);
    for (fa_index r = 0; r < at->rows; r++) block->sum[r] = 0;
    c->kernels->attention_softmax(&all, fa_round_up(x->last, c->kernels->sizes.packed), block->shift, block->sum, block->alpha);
    for (fa_index h = 0; h < at->heads; h++) {
        const score_block rows = rows_of_block(&all, h * at->queries, at->queries);
        OP(attention_drop)(c->a, c->kernels, &rows, at->b, at->h + h, at->i0, x->j * c->block);
    }
    block_values(c, s, block, worker, at, x);
}
