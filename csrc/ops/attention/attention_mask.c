/* What the arguments say about scores: which keys the user's mask leaves, softcap, ALiBi and mask on a block of scores, and dropout
   (kernels/attention/attention_mask.c has the arithmetic). */
#include "attention.h"

#include <math.h>
#include <string.h>

/* The first of the n bytes, `step` apart, that is not 0; n if there is none. */
static fa_index first_set(const uint8_t *mask, fa_index step, fa_index n)
{
    fa_index i = 0;
    if (step == 1)
        for (uint64_t word; i + 8 <= n; i += 8) {
            memcpy(&word, mask + i, sizeof word);
            if (word) break;
        }
    while (i < n && !mask[i * step]) i++;
    return i;
}

static fa_index last_set(const uint8_t *mask, fa_index step, fa_index n)
{
    if (step == 1)
        for (uint64_t word; n >= 8; n -= 8) {
            memcpy(&word, mask + n - 8, sizeof word);
            if (word) break;
        }
    while (n > 0 && !mask[(n - 1) * step]) n--;
    return n;
}

fa_index OP(attention_narrow)(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index i0, fa_index j0,
                              const score_block *x)
{
    fa_index *begin = x->begin, *end = x->end;
    const byte_mask keep = byte_mask_of(a);
    fa_index attended = 0;
    for (fa_index r = 0; r < x->rows; r++) {
        fa_index first = begin[r], last = end[r];
        if (first < last && keep.p) {
            const fa_index step = keep.stride[3];
            const uint8_t *mask = keep.p + mask_place(keep.stride, b, h, i0 + r, j0);
            first += first_set(mask + first * step, step, last - first);
            last = first + last_set(mask + first * step, step, last - first);
        }
        if (first < last && a->mask_kind == FA_MASK_ADD) {
            const fa_index step = a->mask_stride[3];
            const stored *mask = (const stored *)a->mask + mask_place(a->mask_stride, b, h, i0 + r, j0);
            while (first < last && mask[first * step] == STORED_MINUS_INFINITY) first++;
            while (first < last && mask[(last - 1) * step] == STORED_MINUS_INFINITY) last--;
        }
        begin[r] = first;
        end[r] = last;
        attended += last - first;
    }
    return attended;
}

/* The rows of a mask of bytes, in `copy` where its keys are not contiguous; `*ld` becomes the distance of its rows. */
static const uint8_t *byte_rows(const uint8_t *mask, const fa_index *stride, const score_block *x, real *copy, fa_index *ld)
{
    uint8_t *bytes = (uint8_t *)copy;
    *ld = stride[2];
    if (stride[3] == 1) return mask;
    *ld = ATTENTION_STRIDE;
    for (fa_index r = 0; r < x->rows; r++)
        for (fa_index j = x->begin[r]; j < x->end[r]; j++) bytes[r * *ld + j] = mask[r * stride[2] + j * stride[3]];
    return bytes;
}

/* The same of numbers. */
static const stored *number_rows(const stored *mask, const fa_index *stride, const score_block *x, real *copy, fa_index *ld)
{
    stored *part = (stored *)copy;
    *ld = stride[2];
    if (stride[3] == 1) return mask;
    *ld = ATTENTION_STRIDE;
    for (fa_index r = 0; r < x->rows; r++)
        for (fa_index j = x->begin[r]; j < x->end[r]; j++) part[r * *ld + j] = mask[r * stride[2] + j * stride[3]];
    return part;
}

static void apply_mask(const fa_attention_arguments *a, const fa_kernels *k, const score_block *x, real *copy, fa_index b,
                       fa_index h, fa_index i0, fa_index j0)
{
    const byte_mask keep = byte_mask_of(a);
    fa_index ld;
    if (a->mask_kind == FA_MASK_ADD) {
        const stored *mask = (const stored *)a->mask + mask_place(a->mask_stride, b, h, i0, j0);
        const stored *rows = number_rows(mask, a->mask_stride, x, copy, &ld);
        k->attention_mask_add(x, rows, ld);
    }
    if (keep.p) {
        const uint8_t *rows = byte_rows(keep.p + mask_place(keep.stride, b, h, i0, j0), keep.stride, x, copy, &ld);
        k->attention_mask_bool(x, rows, ld);
    }
}

/* log2(e) x in two pieces, as a factor of kernels. Of a finite number it is finite: a distance of 0 times it has to be 0. */
static void in_log2(double x, real *high, real *low)
{
    const double y = x * LOG2_E, rest = fma(x, LOG2_E, -y) + x * LOG2_E_REST;
    *high = isfinite(x) ? (real)fmax(-REAL_LARGEST, fmin(y, REAL_LARGEST)) : (real)y;
    *low = fabs((double)*high) < REAL_LARGEST ? (real)((y - (double)*high) + rest) : 0;
}

void OP(attention_adjust_scores)(const fa_attention_arguments *a, const fa_kernels *k, const score_block *x, real *copy,
                                 fa_index b, fa_index h, fa_index i0, fa_index j0)
{
    real high, low;
    if (a->softcap > 0) {
        in_log2(a->softcap, &high, &low);
        k->attention_softcap(x, high, low);
    }
    if (a->alibi_slopes) {
        in_log2(-(double)((const real *)a->alibi_slopes)[h], &high, &low);
        k->attention_alibi(x, j0 - diagonal_of(a, b, i0), high, low);
    }
    apply_mask(a, k, x, copy, b, h, i0, j0);
}

void OP(attention_drop)(const fa_attention_arguments *a, const fa_kernels *k, const score_block *x, fa_index b, fa_index h,
                        fa_index i0, fa_index j0)
{
    if (!(a->dropout > 0)) return;
    const dropout_rule rule = rule_of_dropout(a->dropout, a->seed);
    for (fa_index r = 0; r < x->rows; r++) {
        real *row = x->s + r * ATTENTION_STRIDE - j0; /* of key 0 */
        k->dropout_row(row, row, j0 + x->begin[r], x->end[r] - x->begin[r], rule.seed, rule.threshold, rule.scale, i0 + r, b, h);
    }
}
