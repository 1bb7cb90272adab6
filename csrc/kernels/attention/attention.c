/* The inside of blocked attention, on one group of query rows and one block of keys:

     S = Q K'        scores             [rows, keys]     q carries scale * log2(e), so that P = 2^S
     P = 2^(S - R)   softmax            R: an integer near the largest score of the row so far
     O = alpha O + P V                  alpha = 2^(R before - R)

   R is an integer: taking it off an exponent is exact, so P has the bits of 2^S whatever R is, and O keeps its bits when it is
   rescaled. The result of a row depends on the key blocks only through the order in which their sums are added.

   Buffers: q scaled by attention_pack_a, [D / QUERY_SLICE][slice: rows of QUERY_STRIDE]; k packed by attention_pack_bt,
   panels of FA_NV vectors of keys, [D padded][keys of the panel], the last one as many vectors wide as it has keys for; v by
   attention_pack_b, panels of FA_NV vectors of columns, [keys padded][columns of the panel], likewise. "padded" is to
   TILE_K, with zeros. s and p are rows of ATTENTION_STRIDE, o rows of ldo >= D rounded up to VL.

   With FA_PAIRS (bfloat16 of AVX-512 BF16) packed queries, keys, values and P hold pairs in the places of reals, pairs along D for the
   first product, of neighbouring keys for the second; "[D padded]" and "[keys padded]" then count pairs. Queries stay as they are,
   so that they are not rounded again, and the scale of the block is applied to the scores; P is rounded to bfloat16, and its sum is that of the
   rounded numbers, so that rows stay normalised.

   Row r attends to the keys [begin[r], end[r]) of the block, less what the masks exclude by -inf. Other scores may hold
   anything and are never read into arithmetic. attention_mask.c has what happens to scores before the softmax. */
#include "../common.h"
#include "attention_tile.h"

#include <math.h>
#include <string.h>

#define LOG2_E_DOUBLE 0x1.71547652b82fep+0

/* Scores go through the softmax in steps of so many: pairs of vectors become one. */
#define SCORES (FA_PACKED * VL)

#if !FA_AMX /* attention_scores_amx.c */
FA_INLINE void store_scores(real *s, vreal scale, tile_acc acc, const int mr, const int nv)
{
#if FA_PAIRS
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) acc[r][v] = v_mul(acc[r][v], scale);
    }
#else
    (void)scale;
#endif
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int v = 0; v < nv; v++) v_store(s + r * ATTENTION_STRIDE + v * VL, acc[r][v]);
    }
}

/* A register tile of queries, and a panel of keys or the part of it that the tile attends to. */
typedef struct {
    real *s;
    const real *q, *panel;
    fa_index slice, padded;
    vreal scale;
} score_tile;

FA_INLINE void score_panel(const score_tile *t, const int mr, const int nv, const int width)
{
    tile_acc acc;
    tile_zero(acc, mr, nv);
    for (fa_index d = 0; d == 0 || d < t->padded; d += QUERY_SLICE)
        tile_product_part(acc, mr, nv, width, t->q + d / QUERY_SLICE * t->slice, QUERY_STRIDE, 1, t->panel + d * width * VL,
                          fa_min(QUERY_SLICE, t->padded - d));
    store_scores(t->s, t->scale, acc, mr, nv);
}
FA_INLINE void score_whole(const void *tile, const int mr, const int nv) { score_panel(tile, mr, nv, nv); }
FA_INLINE void score_part(const void *tile, const int mr, const int nv) { score_panel(tile, mr, nv, FA_NV); }

void KERNEL(attention_product_nt)(const score_block *b, const real *q, fa_index slice, const real *k, fa_index D,
                                  const prefetch_rows *next)
{
    const fa_index padded = packed_size(D), keys = b->keys;
    const row_split split = split_rows(b->rows, TILE);
    const fa_index ahead = rows_per_tile(next, fa_ceil_div(keys, PANEL) * split.tiles);
    const vreal scale = v_set1(D ? b->scale : 1); /* scores of no dimensions are +0 */
    fa_index part_of_next = 0;
    for (fa_index t0 = 0, r0 = 0; t0 < split.tiles; t0 += PANEL_TILES) {
        tile_run run;
        take_tiles(&run, split, t0, r0, b);
        r0 = run.row[run.tiles];
        for (fa_index first = 0; first < keys; first += PANEL) {
            const fa_index nv = panel_vectors(keys, first);
            for (fa_index t = 0; t < run.tiles; t++) {
                const fa_index r = run.row[t], mr = run.row[t + 1] - r;
                const key_range range = run.range[t];
                prefetch_part(next, part_of_next++, ahead);
                if (range.end <= first || range.begin >= first + PANEL) continue;
                /* Of a whole panel only the vectors that the tile attends to: under a causal mask that is half of its last one. */
                const fa_index before = nv == FA_NV ? fa_max(0, range.begin - first) / VL : 0, column = first + before * VL;
                const fa_index part = nv == FA_NV ? fa_min(FA_NV, fa_ceil_div(range.end - first, VL)) - before : FA_NV;
                const score_tile tile = {b->s + r * ATTENTION_STRIDE + column,
                                         q + r * QUERY_STRIDE,
                                         k + first * padded + before * VL,
                                         slice,
                                         padded,
                                         scale};
                switch (part < FA_NV ? -part : nv) {
                case -1: tile_dispatch(score_part, &tile, mr, TILE, 1); break;
                case 1: tile_dispatch(score_whole, &tile, mr, TILE, 1); break;
#if FA_NV == 4
                case -2: tile_dispatch(score_part, &tile, mr, TILE, 2); break;
                case -3: tile_dispatch(score_part, &tile, mr, TILE, 3); break;
                case 2: tile_dispatch(score_whole, &tile, mr, TILE, 2); break;
                case 3: tile_dispatch(score_whole, &tile, mr, TILE, 3); break;
#endif
                default: tile_dispatch(score_whole, &tile, mr, TILE, FA_NV); break;
                }
            }
        }
    }
}
#endif

/* 2^n of integers n <= 0; 0 below the normal range. */
FA_INLINE vreal exact_power(vreal n)
{
    const vreal lowest = v_set1(V_EXPONENT_FLOOR);
    return v_add_exponent(v_set1(1), v_add(v_max(lowest, n), v_set1(V_MAGIC)));
}

/* In each lane the largest score of a row, in `VL` parts; the lanes outside [begin, end) of its first and last step are made
   -inf. */
FA_INLINE vreal row_maxima(real *row, fa_index begin, fa_index end)
{
    const vreal excluded = v_set1(-REAL_INFINITY);
    const fa_index first = begin / SCORES * SCORES, last = fa_round_up(end, SCORES) - VL;
    for (fa_index j = first; j < begin; j += VL) v_store(row + j, v_select(v_first(begin - j), excluded, v_load(row + j)));
    for (fa_index j = last; j + VL > end; j -= VL) v_store(row + j, v_select(v_first(end - j), v_load(row + j), excluded));
    vreal top0 = v_load(row + first), top1 = top0;
    fa_index j = first + VL;
    for (; j + 3 * VL <= last; j += 4 * VL) {
        top0 = v_max(top0, v_max(v_load(row + j), v_load(row + j + VL)));
        top1 = v_max(top1, v_max(v_load(row + j + 2 * VL), v_load(row + j + 3 * VL)));
    }
    for (; j <= last; j += VL) top0 = v_max(top0, v_load(row + j));
    return v_max(top0, top1);
}

/* Lane i of the result: a[i] reduced, halves with halves, quarters with quarters. */
#define DEFINE_REDUCE_ROWS(name, combine)                                     \
    FA_INLINE vreal name(vreal a[VL])                                         \
    {                                                                         \
        v_transpose(a);                                                       \
        FA_UNROLL                                                             \
        for (int half = VL / 2; half > 0; half /= 2) {                        \
            FA_UNROLL                                                         \
            for (int i = 0; i < half; i++) a[i] = combine(a[i], a[i + half]); \
        }                                                                     \
        return a[0];                                                          \
    }
DEFINE_REDUCE_ROWS(maxima_of_rows, v_max)
DEFINE_REDUCE_ROWS(sums_of_rows, v_add)

/* What scores are multiplied with in the softmax: nothing, where that has been done. */
FA_INLINE vreal scaled(vreal x, vreal scale) { return FA_AMX ? v_mul(x, scale) : x; }

#if FA_PAIRS
/* `count` vectors of scores become pairs of p in half as many; returns what they and `total` come to. */
FA_INLINE vreal store_powers(real *p, const real *s, const int count, vreal magic, vreal lowest, vreal scale, vreal total)
{
    vreal x[MOST_ABREAST];
    FA_UNROLL
    for (int i = 0; i < count; i++) x[i] = scaled(v_load(s + i * VL), scale);
    exp2_of_all(x, count, magic, lowest);
    FA_UNROLL
    for (int i = 0; i < count; i += 2) {
        x[i] = v_pack(x[i], x[i + 1]);
        v_store(p + i / 2 * VL, x[i]);
    }
    FA_UNROLL
    for (int i = 0; i < count; i += 2) {
        vreal even, odd; /* added up as by v_multiply_add with ones, which takes up to 15 cycles */
        v_unpack(x[i], &even, &odd);
        total = v_add(v_add(total, odd), even);
    }
    return total;
}
#endif

/* One row: p = 2^(scale s - R) over whole steps; returns the sum in VL parts. Pairs of p take the first half of the row, behind the
   scores that are still to be read. */
FA_INLINE vreal row_powers(real *row, fa_index first, fa_index end, real R, vreal scale)
{
    const vreal magic = v_set1(V_MAGIC - R), lowest = v_set1(R + V_EXPONENT_FLOOR);
    vreal total = v_zero();
    fa_index j = first;
#if FA_PAIRS
    for (; j + MOST_ABREAST * VL <= end; j += MOST_ABREAST * VL)
        total = store_powers(row + j / 2, row + j, MOST_ABREAST, magic, lowest, scale, total);
    for (; j < end; j += SCORES) total = store_powers(row + j / 2, row + j, 2, magic, lowest, scale, total);
#else
#pragma GCC unroll 2
    for (; j < end; j += VL) {
        const vreal p = exp2_shifted(scaled(v_load(row + j), scale), magic, lowest);
        v_store(row + j, p);
        total = v_add(total, p);
    }
#endif
    return total;
}

/* The NaNs of a row whose other scores are all -inf, and zeros: v_max may have lost them. */
FA_NOINLINE vreal row_nans(const real *row, fa_index first, fa_index end)
{
    vreal total = v_zero();
    for (fa_index j = first; j < end; j += VL) {
        const vreal x = v_load(row + j);
        total = v_add(total, v_select(v_is_nan(x), x, v_zero()));
    }
    return total;
}

/* Scores to probabilities, and the state of the rows. With FA_AMX scores are multiplied with the scale of the block, > 0, first. `fill_keys` > 0: rows
   are zero up to there; 0: as far as attention_values reads. A row that attends to nothing keeps its state, with alpha = 1. NaN and
   +inf scores make the sum NaN. VL rows at a time: what is done once per row then takes a vector operation for all of them. */
void KERNEL(attention_softmax)(const score_block *b, fa_index fill_keys, real *shift, real *sum, real *alpha)
{
    real *s = b->s;
    const fa_index rows = b->rows, *begin = b->begin, *end = b->end;
    const vreal late = v_set1(b->scale), one = v_set1(1);
    const vreal nothing = v_set1(-REAL_INFINITY), limit = v_set1(SHIFT_LIMIT);
    const row_split split = split_rows(rows, TILE);
    fa_index tile = 0, tile_end = 0;
    key_range range = {0, fill_keys};
    for (fa_index r0 = 0; r0 < rows; r0 += VL) {
        const fa_index n = fa_min(VL, rows - r0);
        vreal part[VL];
        for (int i = 0; i < VL; i++) {
            const fa_index r = r0 + i;
            part[i] = i < n && end[r] > begin[r] ? row_maxima(s + r * ATTENTION_STRIDE, begin[r], end[r]) : nothing;
        }
        const vreal top = scaled(maxima_of_rows(part), late), before = v_load_n(shift + r0, n);
        const vmask small = v_and(v_lt(v_abs(top), limit), v_lt(before, limit));
        const vreal R = v_max(v_round(top), before);
        real shift_of[VL], taken_off[VL];
        v_store(shift_of, R);
        v_store(taken_off, v_select(small, v_zero(), R));
        for (int i = 0; i < VL; i++) {
            const fa_index r = r0 + i;
            part[i] = v_zero();
            if (i >= n) continue;
            if (!fill_keys && r == tile_end) {
                tile_end += tile_height(split, tile++);
                range = tile_keys(begin + r, end + r, tile_end - r);
            }
            real *row = s + r * ATTENTION_STRIDE;
            fa_index first = begin[r] / SCORES * SCORES, last = fa_round_up(end[r], SCORES);
            if (end[r] <= begin[r]) {
                first = last = range.end;
            } else if (FA_UNLIKELY(shift_of[i] == -REAL_INFINITY)) {
                part[i] = row_nans(row, first, last);
                first = last = range.end;
            } else if (FA_UNLIKELY(taken_off[i] != 0)) {
                for (fa_index j = first; j < last; j += VL)
                    v_store(row + j, v_sub(scaled(v_load(row + j), late), v_set1(taken_off[i])));
                part[i] = row_powers(row, first, last, 0, one);
            } else {
                part[i] = row_powers(row, first, last, shift_of[i], late);
            }
            fill(row, range.begin / FA_PACKED, first / FA_PACKED);
            fill(row, last / FA_PACKED, range.end / FA_PACKED);
        }
        const vreal factor = v_select(v_eq(R, nothing), v_set1(1), exact_power(v_sub(before, R)));
        v_store_n(alpha + r0, factor, n);
        v_store_n(shift + r0, R, n);
        v_store_n(sum + r0, v_add(v_mul(v_load_n(sum + r0, n), factor), sums_of_rows(part)), n);
    }
}

#if !FA_CONVERTS
/* The probabilities of a block from known sums: dst = 2^(s - lse log2(e)) for the keys [begin, end) of a row, 0 for the others of
   `keys`. lse = -inf: zeros. */
void KERNEL(attention_weights)(real *dst, fa_index lddst, const score_block *b, fa_index keys, const real *lse)
{
    const real *s = b->s;
    const fa_index *begin = b->begin, *end = b->end;
    for (fa_index r = 0; r < b->rows; r++, dst += lddst, s += ATTENTION_STRIDE) {
        const double power = (double)lse[r] * LOG2_E_DOUBLE;
        double R = rint(power);
        if (!isfinite(R)) R = 0;
        const vreal factor = v_set1(isfinite(power) ? (real)exp2(R - power) : lse[r] - lse[r]);
        const fa_index last = lse[r] == -REAL_INFINITY ? begin[r] : end[r];
        const vreal off = v_set1((real)R), floor = v_set1(V_EXPONENT_FLOOR), ceiling = v_set1(-V_EXPONENT_FLOOR);
        fill(dst, 0, keys);
        for (fa_index j = begin[r] / VL * VL; j < last; j += VL) {
            /* A score far above lse does not belong to it; it must not leave the exponent's range. */
            const vreal x = v_min(ceiling, v_sub(v_load(s + j), off));
            const vreal p = v_mul(exp2_shifted(x, v_set1(V_MAGIC), floor), factor);
            v_store_n(dst + j, v_select(v_first(begin[r] - j), v_zero(), p), fa_min(VL, last - j));
        }
    }
}
#endif
