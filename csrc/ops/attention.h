/* What forward and backward attention share: who attends to whom by position, and the user's mask. */
#ifndef FA_OPS_ATTENTION_H
#define FA_OPS_ATTENTION_H

#include "ops.h"

#define WIDE_HEAD 128 /* larger heads take blocks of half as many keys */

FA_INLINE fa_index query_length(const fa_attention_arguments *a, fa_index b) { return a->q_lengths ? a->q_lengths[b] : a->Lq; }
FA_INLINE fa_index key_length(const fa_attention_arguments *a, fa_index b) { return a->k_lengths ? a->k_lengths[b] : a->Lk; }

FA_INLINE const real *query_row(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index i)
{
    return (const real *)a->q + b * a->q_stride[0] + h * a->q_stride[1] + i * a->q_stride[2];
}
FA_INLINE const real *key_row(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index j)
{
    return (const real *)a->k + b * a->k_stride[0] + h * a->k_stride[1] + j * a->k_stride[2];
}
FA_INLINE const real *value_row(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index j)
{
    return (const real *)a->v + b * a->v_stride[0] + h * a->v_stride[1] + j * a->v_stride[2];
}
FA_INLINE real *output_row(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index i)
{
    return (real *)a->out + b * a->out_stride[0] + h * a->out_stride[1] + i * a->out_stride[2];
}

/* The keys [*begin, *end) that row i of batch b attends to, by position alone. */
FA_INLINE void key_range(const fa_attention_arguments *a, fa_index b, fa_index i, fa_index *begin, fa_index *end)
{
    const fa_index keys = key_length(a, b), queries = query_length(a, b);
    const fa_index diagonal = i + (a->bottom_right ? keys - queries : 0);
    *begin = 0;
    *end = i < queries ? keys : 0;
    if (a->left != FA_UNBOUNDED) *begin = fa_max(0, diagonal - a->left);
    if (a->right != FA_UNBOUNDED) *end = fa_min(*end, diagonal + a->right + 1);
    if (*end <= *begin) *begin = *end = 0;
}

/* The same for `rows` rows from i0 on and the keys [j0, j0 + keys), counted from j0. Returns how many pairs there are. */
FA_INLINE fa_index block_ranges(const fa_attention_arguments *a, fa_index b, fa_index i0, fa_index rows, fa_index j0,
                                fa_index keys, fa_index *begin, fa_index *end)
{
    fa_index attended = 0;
    for (fa_index r = 0; r < rows; r++) {
        key_range(a, b, i0 + r, &begin[r], &end[r]);
        begin[r] = fa_min(keys, fa_max(0, begin[r] - j0));
        end[r] = fa_max(begin[r], fa_min(keys, end[r] - j0));
        attended += end[r] - begin[r];
    }
    return attended;
}

/* The blocks [*first, *end) of `block` keys that some row of batch b can attend to, by position. */
FA_INLINE void head_blocks(const fa_attention_arguments *a, fa_index block, fa_index b, fa_index *first, fa_index *end)
{
    const fa_index keys = key_length(a, b), queries = query_length(a, b), offset = a->bottom_right ? keys - queries : 0;
    const fa_index lowest = a->left == FA_UNBOUNDED ? 0 : fa_max(0, offset - a->left);
    const fa_index highest = a->right == FA_UNBOUNDED ? keys : fa_min(keys, queries + offset + a->right);
    *first = lowest / block;
    *end = queries > 0 && highest > lowest ? fa_ceil_div(highest, block) : *first;
}

/* Applies the user's mask to the scores of `rows` rows from query i0 and key j0 on; `copy` holds that part of a mask whose keys are
   not contiguous. */
void OP(attention_apply_mask)(const fa_attention_arguments *a, const fa_kernels *k, real *scores, real *copy, fa_index b,
                              fa_index h, fa_index i0, fa_index j0, fa_index rows, const fa_index *begin, const fa_index *end);

#endif
