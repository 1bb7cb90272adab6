/* The inside of attention backward, on one tile of query rows and one block of keys. S, R and sum are those of the forward
   (attention.c); with G = dO / sum, row by row, the probabilities need not be divided:

     P  = 2^(S - R)                  attention_scores, attention_probabilities
     dS = P (G V' - delta)           attention_scores again, attention_score_gradients; delta = rowsum(G O)
     dQ += scale dS K                attention_query_gradients
     dV += P' G,  dK += dS' Q        attention_key_gradients; dK is scaled at the end, by attention_scale_gradients

   Buffers: p and ds are rows of ATTENTION_STRIDE, defined, and 0 where a row does not attend, for all rows of the tile and all
   keys of the block up to a whole vector and a whole step of TILE_K. Scaled q and G lie in slices, keys and values in panels of
   keys, and the second factors of the last three products in panels of columns, all as in attention.c.

   A pair whose P is 0, masked or underflowed, contributes nothing, whatever stands in its rows: what is not finite is packed as 0
   into the second factors and added by attention_patch_gradients to the pairs whose P is not 0. */
#include "attention_tile.h"

#include <math.h>

/* G = dout / sum in slices, delta = rowsum(G out); zeros for a row that attended to nothing. */
void KERNEL(attention_output_gradients)(real *dst, fa_index slice, real *delta, const real *dout, fa_index lddout,
                                        const real *out, fa_index ldout, fa_index rows, fa_index D, const real *sum)
{
    const fa_index padded = fa_round_up(D, TILE_K);
    for (fa_index r = 0; r < rows; r++, dout += lddout, out += ldout) {
        const vreal inverse = v_set1(sum[r] == 0 ? 0 : 1 / sum[r]);
        real *to = dst + r * QUERY_STRIDE;
        vreal total = v_zero();
        for (fa_index d = 0; d < padded; d += VL) {
            const vreal x = v_load_n(dout + d, D - d), y = v_load_n(out + d, D - d);
            const vreal g = sum[r] == 0 ? v_zero() : v_mul(x, inverse);
            total = v_fma(g, y, total);
            v_store(to + d / QUERY_SLICE * slice + d % QUERY_SLICE, g);
        }
        delta[r] = v_reduce_add(total);
    }
}

/* Where the zeros of a row end. */
FA_INLINE fa_index filled_keys(fa_index keys) { return fa_round_up(keys, fa_max(VL, TILE_K)); }

/* A row whose sum is NaN: all that it attends to is. */
FA_NOINLINE void row_of_nans(real *row, fa_index first, fa_index end)
{
    const vreal excluded = v_set1(-REAL_INFINITY), nan = v_set1((real)__builtin_nanf(""));
    for (fa_index j = first; j < end; j += VL) v_store(row + j, v_select(v_eq(v_load(row + j), excluded), v_zero(), nan));
}

FA_INLINE void row_probabilities(real *row, fa_index first, fa_index end, real taken_off, real R)
{
    const vreal off = v_set1(taken_off), magic = v_set1(V_MAGIC - R), lowest = v_set1(R + V_EXPONENT_FLOOR);
#pragma GCC unroll 2
    for (fa_index j = first; j < end; j += VL) {
        const vreal x = v_load(row + j);
        v_store(row + j, exp2_shifted(taken_off == 0 ? x : v_sub(x, off), magic, lowest));
    }
}

/* Scores to P, in place. */
void KERNEL(attention_probabilities)(real *s, fa_index rows, const fa_index *begin, const fa_index *end, fa_index keys,
                                     const real *reference, const real *sum)
{
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
        else if (FA_UNLIKELY(!(fabs((double)reference[r]) < (double)REFERENCE_LIMIT)))
            row_probabilities(s, first, last, reference[r], 0);
        else
            row_probabilities(s, first, last, 0, reference[r]);
        fill(s, 0, first);
        fill(s, last, filled_keys(keys));
    }
}

/* G V' to dS, in place: ds = p (ds - delta) where p is not 0. A row that is `whole` attends to no key outside this block: then delta is
   summed up from its own p and ds, which leaves no trace of their rounding where one p is nearly all of the sum. */
void KERNEL(attention_score_gradients)(real *ds, const real *p, fa_index rows, const fa_index *begin, const fa_index *end,
                                       fa_index keys, const real *delta, const real *sum, const unsigned char *whole)
{
    for (fa_index r = 0; r < rows; r++, ds += ATTENTION_STRIDE, p += ATTENTION_STRIDE) {
        const fa_index first = begin[r] / VL * VL, last = end[r] > begin[r] ? fa_round_up(end[r], VL) : first;
        vreal less = v_broadcast(delta + r);
        if (whole[r] && first < last) {
            vreal total = v_zero();
            for (fa_index j = first; j < last; j += VL) {
                const vreal weight = v_load(p + j);
                total = v_add(total, v_select(v_eq(weight, v_zero()), v_zero(), v_mul(weight, v_load(ds + j))));
            }
            less = v_set1(sum[r] == 0 ? 0 : v_reduce_add(total) / sum[r]);
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
void KERNEL(attention_softcap_gradients)(real *ds, const real *x, fa_index rows, const fa_index *begin, const fa_index *end)
{
    for (fa_index r = 0; r < rows; r++, ds += ATTENTION_STRIDE, x += ATTENTION_STRIDE)
        for (fa_index j = begin[r] / VL * VL; j < end[r]; j += VL) {
            const vreal d = v_load(ds + j), t = v_tanh(v_load(x + j)), one = v_set1(1);
            const vreal y = v_mul(d, v_mul(v_sub(one, t), v_add(one, t)));
            v_store(ds + j, v_select(v_eq(d, v_zero()), v_zero(), y));
        }
}

/* dst += scale acc, never -0: a sum that underflows to -0 would stay so, or not, by how many masked pairs follow. */
FA_INLINE void add_gradients(real *dst, fa_index ld, tile_acc acc, const int mr, const int nv, fa_index columns, vreal scale)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) {
            const fa_index count = columns - v * VL;
            real *to = dst + r * ld + v * VL;
            if (count >= VL)
                v_store(to, v_add(v_fma(acc[r][v], scale, v_load(to)), v_zero()));
            else
                v_store_n(to, v_add(v_fma(acc[r][v], scale, v_load_n(to, count)), v_zero()), count);
        }
    }
}

/* Terms in a chain of the last three products; chains are added up in memory. One chain over a block of 256 keys has 1.7 times the
   median error of NumPy, whose products of such sizes have several sums for each element; chains of 32 have at most 1.1 times. */
#define GRADIENT_CHAIN 32

#define QUERY_GRADIENT_TILE(mr, nv)                                                                                        \
    tile_product(acc, mr, nv, ds + r * ATTENTION_STRIDE + from, ATTENTION_STRIDE, 1, panel + from * (nv) * VL, to - from); \
    add_gradients(dq + r * lddq + first, lddq, acc, mr, nv, D - first, factor)
#define QUERY_GRADIENT_PANEL(nv) TILE_SWITCH_6(mr, QUERY_GRADIENT_TILE, nv)

/* dq += scale ds k; k in panels of columns. */
void KERNEL(attention_query_gradients)(real *dq, fa_index lddq, const real *ds, fa_index rows, const real *k, fa_index keys,
                                       const fa_index *begin, const fa_index *end, fa_index D, real scale)
{
    const fa_index padded = fa_round_up(keys, TILE_K);
    const tile_deal deal = deal_rows(rows, TILE);
    const vreal factor = v_set1(scale);
    for (fa_index first = 0; first < D; first += PANEL) {
        const fa_index nv = panel_vectors(D, first);
        const real *panel = k + first * padded;
        for (fa_index part = 0; part < keys; part += GRADIENT_CHAIN)
            for (fa_index t = 0, r = 0, mr; t < deal.tiles; t++, r += mr) {
                mr = rows_of_tile(deal, t);
                const key_range range = tile_keys(begin + r, end + r, mr);
                const fa_index from = fa_max(range.begin, part), to = fa_min(range.end, part + GRADIENT_CHAIN);
                if (from >= to) continue;
                tile_acc acc;
                switch (nv) {
                case 1: QUERY_GRADIENT_PANEL(1) break;
#if FA_NV == 4
                case 2: QUERY_GRADIENT_PANEL(2) break;
                case 3: QUERY_GRADIENT_PANEL(3) break;
#endif
                default: QUERY_GRADIENT_PANEL(FA_NV)
                }
            }
    }
}

/* The rows that attend to one of the keys [first, first + keys), widened to whole steps of TILE_K. */
FA_INLINE key_range tile_rows(const fa_index *begin, const fa_index *end, fa_index rows, fa_index first, fa_index keys)
{
    fa_index from = 0, to = rows;
    while (from < to && (end[from] <= first || begin[from] >= first + keys)) from++;
    while (from < to && (end[to - 1] <= first || begin[to - 1] >= first + keys)) to--;
    return (key_range){from / TILE_K * TILE_K, from < to ? fa_round_up(to, TILE_K) : from / TILE_K * TILE_K};
}

#define KEY_GRADIENT_TILE(mr, nv)                                                                                         \
    tile_product(acc, mr, nv, p + j + from * ATTENTION_STRIDE, 1, ATTENTION_STRIDE, panel + from * (nv) * VL, to - from); \
    add_gradients(dst + j * ld + first, ld, acc, mr, nv, PANEL, one)
#define KEY_GRADIENT_PANEL(nv) TILE_SWITCH_6(mr, KEY_GRADIENT_TILE, nv)

/* dst += p' x for the keys of the block, x in panels of columns; rows of dst are whole vectors. */
void KERNEL(attention_key_gradients)(real *dst, fa_index ld, const real *p, fa_index rows, const real *x, fa_index keys,
                                     const fa_index *begin, const fa_index *end, fa_index D)
{
    const fa_index padded = fa_round_up(rows, TILE_K);
    const tile_deal deal = deal_rows(keys, TILE);
    const vreal one = v_set1(1);
    for (fa_index first = 0; first < D; first += PANEL) {
        const fa_index nv = panel_vectors(D, first);
        const real *panel = x + first * padded;
        for (fa_index t = 0, j = 0, mr; t < deal.tiles; t++, j += mr) {
            mr = rows_of_tile(deal, t);
            const key_range range = tile_rows(begin, end, rows, j, mr);
            for (fa_index part = range.begin / GRADIENT_CHAIN * GRADIENT_CHAIN; part < range.end; part += GRADIENT_CHAIN) {
                const fa_index from = fa_max(range.begin, part), to = fa_min(range.end, part + GRADIENT_CHAIN);
                tile_acc acc;
                switch (nv) {
                case 1: KEY_GRADIENT_PANEL(1) break;
#if FA_NV == 4
                case 2: KEY_GRADIENT_PANEL(2) break;
                case 3: KEY_GRADIENT_PANEL(3) break;
#endif
                default: KEY_GRADIENT_PANEL(FA_NV)
                }
            }
        }
    }
}

/* dst = scale src, D columns of each row. */
void KERNEL(attention_scale_gradients)(real *dst, fa_index lddst, const real *src, fa_index ldsrc, fa_index rows, fa_index D,
                                       real scale)
{
    const vreal factor = v_set1(scale);
    for (fa_index r = 0; r < rows; r++)
        for (fa_index d = 0; d < D; d += VL) {
            const vreal y = v_mul(v_load_n(src + r * ldsrc + d, D - d), factor);
            v_store_n(dst + r * lddst + d, y, D - d);
        }
}

/* dst[i, d] += scale weight[i, j] x[j, d] over the x that are not finite, where p[i, j] is not 0. weight and p have the steps i_step
   and j_step. Rare, so plain: the sums are NaN or infinite whatever the order. */
void KERNEL(attention_patch_gradients)(real *dst, fa_index lddst, const real *weight, const real *p, fa_index i_step,
                                       fa_index j_step, fa_index I, fa_index J, const real *x, fa_index ldx, fa_index D,
                                       real scale)
{
    for (fa_index j = 0; j < J; j++)
        for (fa_index d = 0; d < D; d++) {
            if (isfinite(x[j * ldx + d])) continue;
            for (fa_index i = 0; i < I; i++) {
                const fa_index at = i * i_step + j * j_step;
                if (p[at] != 0) dst[i * lddst + d] += scale * weight[at] * x[j * ldx + d];
            }
        }
}
