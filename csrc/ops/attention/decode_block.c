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

/* Scores of the keys [first, last) of block j, masked. */
void OP(decode_block_scores)(const decode_call *c, const part_state *s, real *scores, int worker, const part_place *at,
                             fa_index j, const fa_index *begin, const fa_index *end, fa_index first, fa_index last)
{
    const fa_attention_arguments *a = c->a;
    const fa_index lanes = c->kernels->sizes.lanes, j0 = j * c->block;
    const decode_rows keys = OP(decode_rows_of)(c, at, j, a->k, a->k_stride, c->bytes ? 1 : sizeof(stored));
    real *gathered = c->gathered + worker * lanes * a->D;
    first = first / lanes * lanes;
#if FA_FLOAT_ARRAYS
    if (c->bytes) {
        const decode_rows scales = OP(decode_scales_of)(c, at, j, c->cache->k_scale);
        c->kernels->decode_scores_i8(scores, &s->digits, at->rows, &keys, &scales, first, last, a->D, gathered);
    } else
#endif
        c->kernels->decode_scores(scores, s->queries, c->query_slice, at->rows, &keys, first, last, a->D, gathered);
    for (fa_index h = 0; h < at->heads; h++) {
        const fa_index r = h * at->queries;
        OP(attention_adjust_scores)(a, c->kernels, scores + r * c->stride, c->mask + worker * c->rows * c->stride, at->b,
                                    at->h + h, at->i0, j0, at->queries, begin + r, end + r);
    }
}

/* Adds the values that are not finite to the rows that attend to them: page by page. */
static void patch_values(const decode_call *c, const block_state *block, const real *unmasked, const part_place *at,
                         const decode_rows *values, const fa_index *begin, const fa_index *end, fa_index first, fa_index last)
{
    const fa_index ld = c->a->v_stride[2];
    for (fa_index j = first, next, together; j < last; j = next) {
        fa_index from[DECODE_ROWS], to[DECODE_ROWS];
        const stored *row = find_row(values, j, &together);
        next = fa_min(last, j + together);
        for (fa_index r = 0; r < at->rows; r++) from[r] = fa_max(begin[r], j), to[r] = fa_min(end[r], next);
        c->kernels->attention_patch_values(block->o, c->ldo, block->scores, unmasked, at->rows, from, to, row - j * ld, ld,
                                           c->a->Dv);
    }
}

/* block->o = p v. */
static void block_values(const decode_call *c, const part_state *s, block_state *block, int worker, const part_place *at,
                         fa_index j, const fa_index *begin, const fa_index *end, fa_index first, fa_index last)
{
    const fa_attention_arguments *a = c->a;
    const fa_index packed = c->kernels->sizes.packed, from = first / packed * packed;
    const decode_rows values = OP(decode_rows_of)(c, at, j, a->v, a->v_stride, c->bytes ? 1 : sizeof(stored));
    int found = 0;
#if FA_FLOAT_ARRAYS
    const decode_rows scales = c->bytes ? OP(decode_scales_of)(c, at, j, c->cache->v_scale) : values;
    if (c->bytes)
        c->kernels->decode_values_i8(block->o, c->ldo, block->scores, at->rows, &values, &scales, from, last, a->Dv, &found);
    else
#endif
        c->kernels->decode_values(block->o, c->ldo, block->scores, at->rows, &values, from, last, a->Dv, &found);
    block->large = found & VALUES_LARGE;
    if (!(found & VALUES_NOT_FINITE)) return;
    /* Rare: which keys the masks exclude is in the scores, and those have become probabilities. */
    real *unmasked = c->unmasked + worker * c->rows * c->stride;
    OP(decode_block_scores)(c, s, unmasked, worker, at, j, begin, end, first, last);
#if FA_FLOAT_ARRAYS
    if (c->bytes) {
        c->kernels->decode_patch_i8(block->o, c->ldo, unmasked, at->rows, begin, end, &scales, a->Dv);
        return;
    }
#endif
    patch_values(c, block, unmasked, at, &values, begin, end, first, last);
}

/* Scores to probabilities against block->reference, the one in force before; block->o and block->sum. */
void OP(decode_block_results)(const decode_call *c, const part_state *s, block_state *block, int worker, const part_place *at,
                              fa_index j, const fa_index *begin, const fa_index *end, fa_index first, fa_index last)
{
    for (fa_index r = 0; r < at->rows; r++) block->sum[r] = 0;
    c->kernels->attention_softmax(block->scores, at->rows, begin, end, fa_round_up(last, c->kernels->sizes.packed),
                                  block->reference, block->sum, block->alpha, 1);
    block_values(c, s, block, worker, at, j, begin, end, first, last);
}
