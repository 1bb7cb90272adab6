/* The inside of attention backward, on one tile of query rows and one block of keys. S, R and sum are those of the forward
   (attention.c):

     P  = 2^(S - R) / sum            attention_product_nt, attention_probabilities
     dS = P (dO V' - delta)          attention_product_nt again, attention_score_gradients; delta = rowsum(dO O), attention_delta
     dQ += scale dS K                attention_product_nn
     dV += P' dO,  dK += dS' Q       attention_product_tn; dK is scaled at the end, by attention_scale_gradients

   Buffers: p and ds are rows of ATTENTION_STRIDE, defined, and 0 where a row does not attend, for all rows of the tile and all
   keys of the block up to a whole step of packing and products. Scaled q, and dO, lie in slices, keys and values in panels of
   keys, and the second factors of the last three products in panels of columns, all as in attention.c. Sums are of reals, whatever
   the arrays hold, and are rounded to it once.

   With FA_PAIRS P and dS are rounded to bfloat16 for the last three products, by attention_pair_gradients.

   A pair whose P is 0, masked or underflowed, contributes nothing, whatever stands in its rows: what is not finite is packed as 0
   into the second factors and added by attention_patch_gradients to the pairs whose P is not 0. */
#include "attention_backward.h"
#include "nonfinite.h"

#include <math.h>
#include <string.h>

/* delta = rowsum(dout out). */
void KERNEL(attention_delta)(real *delta, const stored *dout, fa_index lddout, const stored *out, fa_index ldout, fa_index rows,
                             fa_index D)
{
    for (fa_index r = 0; r < rows; r++, dout += lddout, out += ldout) {
        vreal total = v_zero();
        for (fa_index d = 0; d < D; d += VL)
            total = v_fma(load_stored_some(dout + d, D - d), load_stored_some(out + d, D - d), total);
        delta[r] = v_reduce_add(total);
    }
}

/* Where the zeros of a row end. */
FA_INLINE fa_index filled_keys(fa_index keys) { return fa_round_up(keys, fa_max(FA_PACKED * VL, TILE_STEP)); }

#if FA_OWN_PRODUCTS
/* A row whose sum is NaN: all that it attends to is. */
FA_NOINLINE void row_of_nans(real *row, fa_index first, fa_index end)
{
    const vreal excluded = v_set1(-REAL_INFINITY), nan = v_set1((real)__builtin_nanf(""));
    for (fa_index j = first; j < end; j += VL) v_store(row + j, v_select(v_eq(v_load(row + j), excluded), v_zero(), nan));
}

FA_INLINE void row_probabilities(real *row, fa_index first, fa_index end, real taken_off, real R, real sum)
{
    const vreal off = v_set1(taken_off), magic = v_set1(V_MAGIC - R), lowest = v_set1(R + V_EXPONENT_FLOOR);
    const vreal inverse = v_set1(1 / sum);
#pragma GCC unroll 2
    for (fa_index j = first; j < end; j += VL) {
        const vreal x = v_load(row + j);
        v_store(row + j, v_mul(exp2_shifted(taken_off == 0 ? x : v_sub(x, off), magic, lowest), inverse));
    }
}

/* Scores to P, in place. Where the sum is negative they are those of attention_natural_powers. */
void KERNEL(attention_probabilities)(const score_block *b, const real *shift, const real *sum)
{
    real *s = b->s;
    const fa_index rows = b->rows, keys = b->keys, *begin = b->begin, *end = b->end;
    const vreal excluded = v_set1(-REAL_INFINITY);
    for (fa_index r = 0; r < rows; r++, s += ATTENTION_STRIDE) {
        const fa_index first = begin[r] / VL * VL, last = fa_round_up(end[r], VL);
        if (end[r] <= begin[r] || sum[r] == 0) {
            fill(s, 0, filled_keys(keys));
            continue;
        }
        if (first < begin[r]) v_store(s + first, v_select(v_first(begin[r] - first), excluded, v_load(s + first)));
        if (end[r] < last) v_store(s + last - VL, v_select(v_first(end[r] - (last - VL)), v_load(s + last - VL), excluded));
        if (FA_UNLIKELY(isnan(sum[r])))
            row_of_nans(s, first, last);
        else if (FA_UNLIKELY(sum[r] < 0))
            row_probabilities(s, first, last, 0, 0, -sum[r]);
        else if (FA_UNLIKELY(!(fabs((double)shift[r]) < (double)SHIFT_LIMIT)))
            row_probabilities(s, first, last, shift[r], 0, sum[r]);
        else
            row_probabilities(s, first, last, 0, shift[r], sum[r]);
        fill(s, 0, first);
        fill(s, last, filled_keys(keys));
    }
}

/* dout V' to dS, in place: ds = p (ds - delta) where p is not 0. A row with `whole` attends to no key outside this block: then delta
   is summed up from its own p and ds, and with whole = 1 divided by the sum of p, which leaves no trace of their rounding where one p
   is nearly all of the sum; 2: a sink has the rest of it. */
void KERNEL(attention_score_gradients)(const score_block *b, const real *p, const real *delta, const unsigned char *whole)
{
    real *ds = b->s;
    const fa_index rows = b->rows, keys = b->keys, *begin = b->begin, *end = b->end;
    for (fa_index r = 0; r < rows; r++, ds += ATTENTION_STRIDE, p += ATTENTION_STRIDE) {
        const fa_index first = begin[r] / VL * VL, last = end[r] > begin[r] ? fa_round_up(end[r], VL) : first;
        vreal less = v_broadcast(delta + r);
        if (whole[r] && first < last) {
            vreal total = v_zero(), sum = v_zero();
            for (fa_index j = first; j < last; j += VL) {
                const vreal weight = v_load(p + j);
                sum = v_add(sum, weight);
                total = v_add(total, v_select(v_eq(weight, v_zero()), v_zero(), v_mul(weight, v_load(ds + j))));
            }
            const real weights = v_reduce_add(sum);
            less = v_set1(weights == 0 ? 0 : v_reduce_add(total) / (whole[r] == 1 ? weights : 1));
        }
        for (fa_index j = first; j < last; j += VL) {
            const vreal weight = v_load(p + j), x = v_mul(weight, v_sub(v_load(ds + j), less));
            v_store(ds + j, v_select(v_eq(weight, v_zero()), v_zero(), x));
        }
        fill(ds, 0, first);
        fill(ds, last, filled_keys(keys));
    }
}

/* ds = ds (1 - tanh(x)^2): the gradient of the softcap, for scores x in units of it. */
void KERNEL(attention_softcap_gradients)(const score_block *b, const real *x)
{
    real *ds = b->s;
    const fa_index rows = b->rows, *begin = b->begin, *end = b->end;
    for (fa_index r = 0; r < rows; r++, ds += ATTENTION_STRIDE, x += ATTENTION_STRIDE)
        for (fa_index j = begin[r] / VL * VL; j < end[r]; j += VL) {
            const vreal d = v_load(ds + j), t = v_tanh(v_load(x + j)), one = v_set1(1);
            const vreal y = v_mul(d, v_mul(v_sub(one, t), v_add(one, t)));
            v_store(ds + j, v_select(v_eq(d, v_zero()), v_zero(), y));
        }
}

/* With FA_PAIRS, p and ds as the products take them: of rows i and i + 1, as row i / 2 of p_pairs (which may begin where p does, or
   before) and of ds_pairs, a missing row being zeros; of neighbouring keys, in the first half of each row of ds. Otherwise they are
   such operands already. */
void KERNEL(attention_pair_gradients)(real *p_pairs, real *ds_pairs, const real *p, real *ds, fa_index rows, fa_index keys)
{
#if FA_PAIRS
    const fa_index filled = filled_keys(keys), stride = ATTENTION_STRIDE;
    for (fa_index r = 0; r < rows; r += 2, p += 2 * stride, ds += 2 * stride, p_pairs += stride, ds_pairs += stride) {
        const int two = r + 1 < rows;
        for (fa_index j = 0; j < filled; j += 2 * VL) {
            const vreal p00 = v_load(p + j), p01 = v_load(p + j + VL);
            const vreal p10 = two ? v_load(p + stride + j) : v_zero(), p11 = two ? v_load(p + stride + j + VL) : v_zero();
            const vreal d00 = v_load(ds + j), d01 = v_load(ds + j + VL);
            const vreal d10 = two ? v_load(ds + stride + j) : v_zero(), d11 = two ? v_load(ds + stride + j + VL) : v_zero();
            v_store(p_pairs + j, v_pack_lanes(p00, p10));
            v_store(p_pairs + j + VL, v_pack_lanes(p01, p11));
            v_store(ds_pairs + j, v_pack_lanes(d00, d10));
            v_store(ds_pairs + j + VL, v_pack_lanes(d01, d11));
            v_store(ds + j / 2, v_pack(d00, d01));
            if (two) v_store(ds + stride + j / 2, v_pack(d10, d11));
        }
    }
#else
    (void)p_pairs, (void)ds_pairs, (void)p, (void)ds, (void)rows, (void)keys;
#endif
}

#endif

#if !FA_AMX /* attention_backward_amx.c */
/* Terms in a chain of the last three products; chains are added up in memory. One chain over a block of 256 keys has 1.7 times the
   median error of NumPy, whose products of such sizes have several sums for each element; chains of 32 have at most 1.1 times.
   Beside the rounding to 16 bits neither shows. A tile of dq
   takes GRADIENT_PASS keys before the next one does: its rows stay in the first-level cache. */
#if FA_CONVERTS
#define GRADIENT_CHAIN ATTENTION_KEYS
#define GRADIENT_PASS ATTENTION_KEYS
#else
#define GRADIENT_CHAIN 32
#define GRADIENT_PASS 128
#endif

/* A register tile of one operand, a panel of the other, and the chain of terms [from, to). */
typedef struct {
    real *dst;
    const real *a, *panel; /* at the first term */
    fa_index ld, terms, columns;
    vreal scale;
} gradient_tile;

FA_INLINE void multiply_nn(const void *tile, const int mr, const int nv)
{
    const gradient_tile *t = tile;
    tile_acc acc;
    tile_product(acc, mr, nv, t->a, ATTENTION_STRIDE, 1, t->panel, t->terms);
    add_gradients(t->dst, t->ld, acc, mr, nv, t->columns, 1, t->scale);
}

FA_INLINE void multiply_tn(const void *tile, const int mr, const int nv)
{
    const gradient_tile *t = tile;
    tile_acc acc;
    tile_product(acc, mr, nv, t->a, 1, ATTENTION_STRIDE, t->panel, t->terms);
    add_gradients(t->dst, t->ld, acc, mr, nv, PANEL, 0, v_zero());
}

/* dq += scale ds k; k in panels of columns; with FA_PAIRS ds in pairs along its rows. */
void KERNEL(attention_product_nn)(real *dq, fa_index lddq, const score_block *b, const real *k, fa_index D, real scale,
                                  const prefetch_rows *next)
{
    const fa_index keys = b->keys, padded = packed_size(keys);
    const row_split split = split_rows(b->rows, TILE);
    const fa_index ahead = rows_per_tile(next, fa_ceil_div(keys, GRADIENT_PASS) * split.tiles);
    for (fa_index first = 0; first < D; first += PANEL) {
        const fa_index nv = panel_vectors(D, first);
        for (fa_index pass = 0, part_of_next = 0; pass < keys; pass += GRADIENT_PASS)
            for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
                mr = tile_height(split, t);
                const key_range range = tile_keys(b->begin + r, b->end + r, mr);
                const fa_index pass_end = fa_min(range.end, pass + GRADIENT_PASS);
                if (first == 0) prefetch_part(next, part_of_next++, ahead);
                for (fa_index part = pass; part < pass_end; part += GRADIENT_CHAIN) {
                    const fa_index from = fa_max(range.begin, part), to = fa_min(range.end, part + GRADIENT_CHAIN);
                    if (from >= to) continue;
                    const gradient_tile tile = {.dst = dq + r * lddq + first,
                                                .a = b->s + r * ATTENTION_STRIDE + from / FA_PACKED,
                                                .panel = k + first * padded + from / FA_PACKED * nv * VL,
                                                .ld = lddq,
                                                .terms = (to - from) / FA_PACKED,
                                                .columns = D - first,
                                                .scale = v_set1(scale)};
                    switch (nv) {
                    case 1: tile_dispatch(multiply_nn, &tile, mr, TILE, 1); break;
#if FA_NV == 4
                    case 2: tile_dispatch(multiply_nn, &tile, mr, TILE, 2); break;
                    case 3: tile_dispatch(multiply_nn, &tile, mr, TILE, 3); break;
#endif
                    default: tile_dispatch(multiply_nn, &tile, mr, TILE, FA_NV); break;
                    }
                }
            }
    }
}

/* dst += p' x for the keys of the block, x in panels of columns, with FA_PAIRS p in pairs of rows; rows of dst are whole vectors.
   With FA_AMX dst is transposed, and without `more` it is not added to. */
void KERNEL(attention_product_tn)(real *dst, fa_index ld, const score_block *b, const real *x, fa_index D, int more,
                                  const prefetch_rows *next)
{
    const fa_index padded = packed_size(b->rows);
    const row_split split = split_rows(b->keys, TILE);
    const fa_index ahead = rows_per_tile(next, split.tiles);
    (void)more;
    for (fa_index first = 0; first < D; first += PANEL) {
        const fa_index nv = panel_vectors(D, first);
        for (fa_index t = 0, j = 0, mr; t < split.tiles; t++, j += mr) {
            mr = tile_height(split, t);
            const key_range range = tile_rows(b, j, mr);
            if (first == 0) prefetch_part(next, t, ahead);
            for (fa_index part = range.begin / GRADIENT_CHAIN * GRADIENT_CHAIN; part < range.end; part += GRADIENT_CHAIN) {
                const fa_index from = fa_max(range.begin, part), to = fa_min(range.end, part + GRADIENT_CHAIN);
                const gradient_tile tile = {.dst = dst + j * ld + first,
                                            .a = b->s + j + from / FA_PACKED * ATTENTION_STRIDE,
                                            .panel = x + first * padded + from / FA_PACKED * nv * VL,
                                            .ld = ld,
                                            .terms = (to - from) / FA_PACKED};
                switch (nv) {
                case 1: tile_dispatch(multiply_tn, &tile, mr, TILE, 1); break;
#if FA_NV == 4
                case 2: tile_dispatch(multiply_tn, &tile, mr, TILE, 2); break;
                case 3: tile_dispatch(multiply_tn, &tile, mr, TILE, 3); break;
#endif
                default: tile_dispatch(multiply_tn, &tile, mr, TILE, FA_NV); break;
                }
            }
        }
    }
}

void KERNEL(attention_scale_gradients)(stored *dst, fa_index lddst, const real *src, fa_index ldsrc, fa_index rows, fa_index D,
                                       real scale, int transposed)
{
    (void)transposed;
    scale_gradients(dst, lddst, src, ldsrc, rows, D, scale);
}
#endif

/* p or ds of query i and key j, as attention_product_tn reads it. */
FA_INLINE real element(const real *p, fa_index i, fa_index j)
{
#if FA_PAIRS
    stored pair[FA_PACKED];
    memcpy(pair, p + i / FA_PACKED * ATTENTION_STRIDE + j, sizeof pair);
    return real_of(pair[i % FA_PACKED]);
#else
    return p[i * ATTENTION_STRIDE + j];
#endif
}

/* The columns of a row of dst of which element d is at dst[d * column], and back. */
FA_INLINE void copy_columns(real *to, fa_index to_step, const real *from, fa_index from_step, fa_index columns)
{
    for (fa_index d = 0; d < columns; d++) to[d * to_step] = from[d * from_step];
}

/* What x that is not finite adds to dst = weight x (rows of x are keys), or to dst = weight' x (`of_keys`: rows of x are queries), where
   p is not 0; element d of row i of dst is at dst[i * row + d * column]. */
void KERNEL(attention_patch_gradients)(real *dst, fa_index row, fa_index column, const score_block *b, const real *weight,
                                       const stored *x, fa_index ldx, fa_index D, real scale, int of_keys)
{
    const real *p = b->s;
    const fa_index rows = b->rows, keys = b->keys;
    const fa_index I = of_keys ? keys : rows, J = of_keys ? rows : keys;
    nonfinite_part part;
    for (fa_index d = 0; d < D; d += NONFINITE_COLUMNS)
        for (fa_index j0 = 0; j0 < J; j0 += NONFINITE_ROWS) {
            const fa_index n = fa_min(NONFINITE_ROWS, J - j0), columns = fa_min(NONFINITE_COLUMNS, D - d);
            if (!take_nonfinite(&part, x + j0 * ldx + d, ldx, n, columns)) continue;
            for (fa_index i = 0; i < I; i++) {
                real *to = dst + i * row + d * column, row_of_dst[NONFINITE_COLUMNS];
                nonfinite_list list = {.count = 0};
                for (fa_index j = 0; j < n; j++) {
                    const fa_index query = of_keys ? j0 + j : i, key = of_keys ? i : j0 + j;
                    if (part.any[j] && element(p, query, key) != 0) list_row(&list, j, scale * element(weight, query, key));
                }
                if (column == 1 || !list.count) {
                    add_nonfinite(to, &part, &list, columns);
                    continue;
                }
                copy_columns(row_of_dst, 1, to, column, columns);
                add_nonfinite(row_of_dst, &part, &list, columns);
                copy_columns(to, column, row_of_dst, 1, columns);
            }
        }
}
