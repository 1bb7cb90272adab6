/* What forward and backward attention share: where rows lie, who attends to whom, and what becomes of scores before the softmax. */
#ifndef FA_OPS_ATTENTION_H
#define FA_OPS_ATTENTION_H

#include "../ops.h"

#include <math.h>

#define LOG2_E 0x1.71547652b82fep+0
#define LOG2_E_REST 0x1.777d0ffda0d24p-56 /* log2(e) - LOG2_E */
#define WIDE_HEAD 128                     /* larger heads take blocks of half as many keys */

FA_INLINE fa_index query_length(const fa_attention_arguments *a, fa_index b) { return a->q_lengths ? a->q_lengths[b] : a->Lq; }
FA_INLINE fa_index key_length(const fa_attention_arguments *a, fa_index b) { return a->k_lengths ? a->k_lengths[b] : a->Lk; }

/* Rows that an output has: in a ragged batch none beyond the length. */
FA_INLINE fa_index query_rows(const fa_attention_arguments *a, fa_index b) { return a->q_starts ? a->q_lengths[b] : a->Lq; }
FA_INLINE fa_index query_start(const fa_attention_arguments *a, fa_index b) { return a->q_starts ? a->q_starts[b] : 0; }
FA_INLINE fa_index key_start(const fa_attention_arguments *a, fa_index b) { return a->k_starts ? a->k_starts[b] : 0; }

FA_INLINE const stored *query_row(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index i)
{
    return (const stored *)a->q + b * a->q_stride[0] + h * a->q_stride[1] + (query_start(a, b) + i) * a->q_stride[2];
}
FA_INLINE const stored *key_row(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index j)
{
    return (const stored *)a->k + b * a->k_stride[0] + h * a->k_stride[1] + (key_start(a, b) + j) * a->k_stride[2];
}
FA_INLINE const stored *value_row(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index j)
{
    return (const stored *)a->v + b * a->v_stride[0] + h * a->v_stride[1] + (key_start(a, b) + j) * a->v_stride[2];
}
FA_INLINE stored *output_row(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index i)
{
    return (stored *)a->out + b * a->out_stride[0] + h * a->out_stride[1] + (query_start(a, b) + i) * a->out_stride[2];
}
/* The place of a row in lse, shift and sum. */
FA_INLINE fa_index state_row(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index i)
{
    return (a->q_starts ? a->q_starts[b] : b * a->H * a->Lq) + h * a->lse_stride + i;
}

/* What queries are scaled by, in two pieces: scores are in units of log2(e), or of the softcap, whose tanh comes first. */
FA_INLINE void query_scale(const fa_attention_arguments *a, real *high, real *low)
{
    double scale = a->scale * LOG2_E, rest = fma(a->scale, LOG2_E, -scale) + a->scale * LOG2_E_REST;
    if (a->softcap > 0) {
        scale = a->scale / a->softcap;
        rest = isfinite(scale) ? fma(-scale, a->softcap, a->scale) / a->softcap : 0;
    }
    *high = (real)scale;
    *low = (real)((scale - (double)*high) + rest);
}

/* The key that query i of batch b is aligned with; may lie outside. */
FA_INLINE fa_index diagonal_of(const fa_attention_arguments *a, fa_index b, fa_index i)
{
    if (a->q_positions) return i + a->q_positions[b];
    return i + (a->bottom_right ? key_length(a, b) - query_length(a, b) : 0);
}

/* The keys [*begin, *end) that row i of batch b attends to, by position alone. */
FA_INLINE void keys_by_position(const fa_attention_arguments *a, fa_index b, fa_index i, fa_index *begin, fa_index *end)
{
    const fa_index keys = key_length(a, b), queries = query_length(a, b);
    const fa_index diagonal = diagonal_of(a, b, i);
    *begin = 0;
    *end = i < queries ? keys : 0;
    if (a->left != FA_UNBOUNDED) *begin = fa_max(0, diagonal - a->left);
    if (a->right != FA_UNBOUNDED) *end = fa_min(*end, diagonal + a->right + 1);
    if (*end <= *begin) *begin = *end = 0;
}

/* The same for the rows of a block from i0 on and its keys from j0 on, counted from j0. Returns how many pairs there are. */
FA_INLINE fa_index block_ranges(const fa_attention_arguments *a, fa_index b, fa_index i0, fa_index j0, const score_block *x)
{
    const fa_index keys = x->keys;
    fa_index *begin = x->begin, *end = x->end, attended = 0;
    if (a->left == FA_UNBOUNDED && a->right == FA_UNBOUNDED) {
        const fa_index within = fa_max(0, fa_min(x->rows, query_length(a, b) - i0)),
                       all = fa_max(0, fa_min(keys, key_length(a, b) - j0));
        for (fa_index r = 0; r < x->rows; r++) {
            begin[r] = 0;
            end[r] = r < within ? all : 0;
        }
        return within * all;
    }
    for (fa_index r = 0; r < x->rows; r++) {
        keys_by_position(a, b, i0 + r, &begin[r], &end[r]);
        begin[r] = fa_min(keys, fa_max(0, begin[r] - j0));
        end[r] = fa_max(begin[r], fa_min(keys, end[r] - j0));
        attended += end[r] - begin[r];
    }
    return attended;
}

/* The blocks [*first, *end) of `block` keys that some of the `rows` rows from i0 on can attend to, by position; 0 to 0 if none. */
FA_INLINE void row_blocks(const fa_attention_arguments *a, fa_index block, fa_index b, fa_index i0, fa_index rows,
                          fa_index *first, fa_index *end)
{
    const fa_index keys = key_length(a, b), last = fa_min(i0 + rows, query_length(a, b)) - 1;
    const fa_index lowest = a->left == FA_UNBOUNDED ? 0 : fa_max(0, diagonal_of(a, b, i0) - a->left);
    const fa_index highest = a->right == FA_UNBOUNDED ? keys : fa_min(keys, diagonal_of(a, b, last) + a->right + 1);
    *first = *end = 0;
    if (last < i0 || highest <= lowest) return;
    *first = lowest / block;
    *end = fa_ceil_div(highest, block);
}

/* The same for all rows of batch b. */
FA_INLINE void head_blocks(const fa_attention_arguments *a, fa_index block, fa_index b, fa_index *first, fa_index *end)
{
    row_blocks(a, block, b, 0, a->Lq, first, end);
}

/* `rows` rows of a block from row r on. */
FA_INLINE score_block rows_of_block(const score_block *x, fa_index r, fa_index rows)
{
    return (score_block){x->s + r * ATTENTION_STRIDE, rows, x->keys, x->begin + r, x->end + r, x->scale};
}

/* The mask of bytes that a call has, alone or beside one that is added; p is NULL without. */
typedef struct {
    const uint8_t *p;
    const fa_index *stride;
} byte_mask;
FA_INLINE byte_mask byte_mask_of(const fa_attention_arguments *a)
{
    if (a->mask_kind == FA_MASK_BOOL) return (byte_mask){a->mask, a->mask_stride};
    return (byte_mask){a->mask_kind == FA_MASK_ADD ? a->keep : NULL, a->keep_stride};
}

/* Where the part of a mask begins that is for row i0 and key j0. */
FA_INLINE fa_index mask_place(const fa_index *stride, fa_index b, fa_index h, fa_index i0, fa_index j0)
{
    return b * stride[0] + h * stride[1] + i0 * stride[2] + j0 * stride[3];
}

/* Narrows the ranges of a block from query i0 and key j0 on to the keys between the first and the last that the user's mask
   leaves. Returns how many there are: a block that the mask excludes costs no product, and no bit changes. */
fa_index OP(attention_narrow)(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index i0, fa_index j0,
                              const score_block *x);

/* From products to scores in units of log2(e): softcap, ALiBi, the user's mask, of a block from query i0 and key j0 on; `copy`
   holds that part of a mask whose keys are not contiguous. */
void OP(attention_adjust_scores)(const fa_attention_arguments *a, const fa_kernels *k, const score_block *x, real *copy,
                                 fa_index b, fa_index h, fa_index i0, fa_index j0);

/* The kernels of a forward call. BLAS multiplies reals, and dropout needs them between softmax and product: not those of the set whose
   packed operands are pairs, but of the one below it. */
FA_INLINE const fa_kernels *forward_kernels(const fa_attention_arguments *a)
{
    const fa_kernels *k = current_kernels();
    const int needs_reals = a->strategy == FA_ATTENTION_BLAS || a->dropout > 0;
    return needs_reals && k->sizes.packed > 1 ? kernels_for(FA_ISA_LEVEL_AVX512) : k;
}

/* Dropout of a block of probabilities, or of their gradients, from query i0 and key j0 on. */
void OP(attention_drop)(const fa_attention_arguments *a, const fa_kernels *k, const score_block *x, fa_index b, fa_index h,
                        fa_index i0, fa_index j0);

/* decode.c: whether sizes make the call one for attention_decode, with the same values; and that call. cache: where keys and values
   are if not in plain arrays of the dtype, or NULL. */
int OP(attention_decodes)(const fa_attention_arguments *a);
fa_status OP(attention_decode)(const fa_attention_arguments *a, const fa_cache_arguments *cache);

/* What is left to be done after a forward call: elements of `out`, whole rows. */
#define SUMS_OVERFLOW 1
#define ROWS_UNSETTLED 2

/* attention_natural.c: the places of rows in lse, shift and sum; marks rows with these sums, and with keys to attend to or not, that
   are not settled yet; computes the marked ones; the scores of backward, as powers, of those among the rows of a block; and the weights
   of a block of one row, if they are not finite or have lost all fractions. */
fa_index OP(attention_state_rows)(const fa_attention_arguments *a);
int OP(attention_mark_unsettled)(unsigned char *unsettled, const real *sum, const unsigned char *attends, fa_index rows);
fa_status OP(attention_settle)(const fa_attention_arguments *a, const fa_cache_arguments *cache, const unsigned char *unsettled);
void OP(attention_natural_rows)(const fa_attention_arguments *a, const fa_kernels *k, const score_block *x, real *products,
                                fa_index b, fa_index h, fa_index i0, fa_index j0);
void OP(attention_natural_weights)(const fa_attention_arguments *a, const fa_kernels *k, real *weights, const score_block *x,
                                   fa_index b, fa_index h, fa_index i, fa_index j0, real lse);

/* decode.c: elements of `out` that are not finite because sums of large values overflowed, computed again. */
fa_status OP(attention_recover)(const fa_attention_arguments *a, const fa_cache_arguments *cache);

#endif
