/* Rows of floats as bytes with scales, for products of bytes (gemm_bytes.c).

     x = 2^e H' (s_g q) / n      for each group g of n elements, n = 128, or 64 for a last group of at most 64

   e is the exponent of the row's largest element. H is the Hadamard matrix of size n, H H' = n I. It spreads an element that is larger
   than the others over its whole group, so that the largest magnitude, 127 s_g, is near the others: with it, the embeddings of
   all-MiniLM-L6-v2 have a least cosine of 0.9993 to those of float32, without it of 0.995. Both operands of a product are rotated, which
   leaves the product as it is: (H x)' (H w) = n x' w.

   Additions have one order, largest distance first, and nothing else is rounded but products: all instruction sets have the same
   bytes and scales. A row with NaN or infinity has the exponent NaN, and zeros. */
#include "../common.h"

#if defined(FA_REAL_F32)
#include "bytes.h"

#include <math.h>
#include <string.h>

#define LARGEST 127
#define LEAST \
    0x1p-100f /* of a group, beside a row whose largest element is at least 1/2: it counts as 0, and 127 / LEAST is finite */

/* Signs of the lanes whose number has the bit `distance`, minus. */
typedef struct {
    vreal of[4]; /* log2(distance) */
} lane_signs;

FA_INLINE lane_signs signs_of_lanes(void)
{
    lane_signs signs;
    for (int bit = 0; 1 << bit < VL; bit++) {
        real sign[VL];
        for (int i = 0; i < VL; i++) sign[i] = i >> bit & 1 ? -1 : 1;
        signs.of[bit] = v_load(sign);
    }
    return signs;
}

/* t = H t. Returns the largest magnitude of each lane. */
FA_INLINE vreal rotate(real *t, const fa_index n, const lane_signs *signs)
{
    vreal largest = v_zero();
    for (fa_index distance = n / 2; distance >= VL; distance /= 2)
        for (fa_index i = 0; i < n; i += 2 * distance)
            for (fa_index j = i; j < i + distance; j += VL) {
                const vreal a = v_load(t + j), b = v_load(t + j + distance);
                v_store(t + j, v_add(a, b));
                v_store(t + j + distance, v_sub(a, b));
            }
    for (fa_index j = 0; j < n; j += VL) {
        vreal a = v_load(t + j);
        FA_UNROLL
        for (int bit = 3; bit >= 0; bit--)
            if (1 << bit < VL) a = v_fma(signs->of[bit], a, v_swap_lanes(a, 1 << bit));
        v_store(t + j, a);
        largest = v_max(v_abs(a), largest);
    }
    return largest;
}

/* One group, `count` elements of which are there; its scale, and minus the sum of its bytes below 0. */
FA_INLINE real quantize_group(int8_t *q, int32_t *start, const real *x, fa_index count, const fa_index n, vreal exponent,
                              const lane_signs *signs)
{
    real t[BYTE_GROUP] FA_ALIGN(64);
    for (fa_index j = 0; j < n; j += VL) v_store(t + j, j < count ? v_scale(load_some(x + j, count - j), exponent) : v_zero());
    const real largest = v_reduce_max(rotate(t, n, signs));
    const int counts = largest >= LEAST;
    const vreal inverse = v_set1(counts ? LARGEST / largest : 0);
    vreal below = v_zero();
    for (fa_index j = 0; j < n; j += VL) {
        const vreal x_j = v_round(v_mul(v_load(t + j), inverse));
        v_store_i8(q + j, x_j);
        below = v_add(below, v_min(x_j, v_zero()));
    }
    *start = -(int32_t)v_reduce_add(below);
    return counts ? largest / LARGEST : 0;
}

void KERNEL(quantize_rows)(const quantized_rows *to, const real *x, fa_index ldx, fa_index rows, fa_index K)
{
    int8_t *q = to->q;
    int32_t *start = to->start;
    real *scale = to->scale, *exponent = to->exponent;
    const fa_index padded = byte_padded(K), groups = byte_groups(K);
    const lane_signs signs = signs_of_lanes();
    for (fa_index r = 0; r < rows; r++, x += ldx, q += padded, scale += groups, start += groups) {
        vreal top = v_zero(), bad = v_zero();
        int power;
        for (fa_index k = 0; k < K; k += VL) {
            const vreal a = load_some(x + k, K - k);
            top = v_max(v_abs(a), top);
            bad = v_fma(a, v_zero(), bad); /* 0 inf and 0 NaN are NaN */
        }
        if (v_any(v_is_nan(bad))) {
            exponent[r] = (real)__builtin_nanf("");
            memset(q, 0, (size_t)padded);
            memset(scale, 0, (size_t)groups * sizeof *scale);
            memset(start, 0, (size_t)groups * sizeof *start);
            continue;
        }
        frexpf(v_reduce_max(top), &power);
        exponent[r] = (real)power;
        const vreal down = v_set1((real)-power);
        for (fa_index g = 0, k = 0; g < groups; g++, k += BYTE_GROUP)
            scale[g] = padded - k >= BYTE_GROUP ? quantize_group(q + k, start + g, x + k, K - k, BYTE_GROUP, down, &signs)
                                                : quantize_group(q + k, start + g, x + k, K - k, BYTE_HALF_GROUP, down, &signs);
    }
}

void KERNEL(interleave_bytes)(void *panel, const quantized_rows *of, fa_index columns, fa_index K)
{
    const fa_index width = BYTE_VECTORS * VL, padded = byte_padded(K), groups = byte_groups(K);
    const int8_t *q = of->q;
    const real *scale = of->scale, *exponent = of->exponent;
    int8_t *bytes = panel;
    real *exponents = (real *)(void *)(bytes + width * padded), *scales = exponents + width;
    int32_t *starts = (int32_t *)(void *)(scales + width * groups);
    for (fa_index j = 0; j < width; j++) {
        const int there = j < columns;
        exponents[j] = there ? exponent[j] : 0;
        for (fa_index g = 0; g < groups; g++) {
            const fa_index n = fa_min(BYTE_GROUP, padded - g * BYTE_GROUP);
            int32_t sum = 0;
            for (fa_index k = g * BYTE_GROUP; k < g * BYTE_GROUP + n; k++) {
                const int8_t byte = there ? q[j * padded + k] : 0;
                bytes[(k / 4 * width + j) * 4 + k % 4] = byte;
                sum += byte;
            }
            /* Products of a half group are sums of half as many. */
            scales[g * width + j] = there ? scale[j * groups + g] * (BYTE_GROUP / (real)n) : 0;
            starts[g * width + j] = -128 * sum;
        }
    }
}
#endif
