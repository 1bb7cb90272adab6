/* What the arguments say about scores: which keys the user's mask leaves, and softcap, ALiBi and mask on a block of scores
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
    const fa_index *stride = a->mask_stride, at = b * stride[0] + h * stride[1] + i0 * stride[2] + j0 * stride[3];
    fa_index attended = 0;
    for (fa_index r = 0; r < x->rows; r++) {
        fa_index first = begin[r], last = end[r];
        if (first < last && a->mask_kind == FA_MASK_BOOL) {
            const uint8_t *mask = (const uint8_t *)a->mask + at + r * stride[2];
            first += first_set(mask + first * stride[3], stride[3], last - first);
            last = first + last_set(mask + first * stride[3], stride[3], last - first);
        } else if (first < last && a->mask_kind == FA_MASK_ADD) {
            const stored *mask = (const stored *)a->mask + at + r * stride[2];
            while (first < last && mask[first * stride[3]] == STORED_MINUS_INFINITY) first++;
            while (first < last && mask[(last - 1) * stride[3]] == STORED_MINUS_INFINITY) last--;
        }
        begin[r] = first;
        end[r] = last;
        attended += last - first;
    }
    return attended;
}

static void apply_mask(const fa_attention_arguments *a, const fa_kernels *k, const score_block *x, real *copy, fa_index b,
                       fa_index h, fa_index i0, fa_index j0)
{
    const fa_index rows = x->rows, *begin = x->begin, *end = x->end;
    const fa_index *stride = a->mask_stride, at = b * stride[0] + h * stride[1] + i0 * stride[2] + j0 * stride[3];
    const fa_index ldcopy = k->sizes.attention_stride;
    if (a->mask_kind == FA_MASK_BOOL) {
        const uint8_t *mask = (const uint8_t *)a->mask + at;
        fa_index ld = stride[2];
        if (stride[3] != 1) {
            uint8_t *bytes = (uint8_t *)copy;
            for (fa_index r = 0; r < rows; r++)
                for (fa_index j = begin[r]; j < end[r]; j++) bytes[r * ldcopy + j] = mask[r * stride[2] + j * stride[3]];
            mask = bytes;
            ld = ldcopy;
        }
        k->attention_mask_bool(x, mask, ld);
    } else if (a->mask_kind == FA_MASK_ADD) {
        const stored *mask = (const stored *)a->mask + at;
        fa_index ld = stride[2];
        if (stride[3] != 1) {
            stored *part = (stored *)copy;
            for (fa_index r = 0; r < rows; r++)
                for (fa_index j = begin[r]; j < end[r]; j++) part[r * ldcopy + j] = mask[r * stride[2] + j * stride[3]];
            mask = part;
            ld = ldcopy;
        }
        k->attention_mask_add(x, mask, ld);
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
