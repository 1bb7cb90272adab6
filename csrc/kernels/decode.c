/* The inside of attention with few queries, on keys and values as they lie in memory: each of their bytes is read once, for all query
   heads that share them.

     S = Q K'            decode_scores: VL keys by VL dimensions at a time are transposed in registers, so that keys are lanes
     O = alpha O + P V   decode_values: lanes are columns

   Both are the chains of attention.c: one chain of multiply-adds over ascending d, chains of CHAIN_KEYS over keys, from zero. Queries, scores,
   probabilities and O are laid out as there, and attention_softmax stands between the two. A row gets the same bits by either way.

   Values are not copied, hence not looked at beforehand: a value that is not finite makes every sum that it meets infinite or NaN, also
   with p = 0. The sums of such a block are computed again with 0 in its place, and attention_patch_values adds it where it
   belongs. */
#include "attention.h"
#include "common.h"
#include "tile.h"

/* Sizes found on a Zen 4 that reads 34 GB/s from memory: 4 KB of values at a time for 4 rows 31.6 GB/s, 8 KB 29.8, 16 KB 21. A pass
   over a part of each row's columns, which the hardware does not recognise as a stream, got 12. */
#define CHUNK_BYTES 4096
#define PREFETCH_BYTES 16384
#define DECODE_TILE 6 /* rows that pass over keys or values together */
#define LINE_REALS (64 / (fa_index)sizeof(real))

#if defined(FA_ISA_AVX512)
#define ACCUMULATORS 24
#define VALUE_VECTORS 8
#else
#define ACCUMULATORS 12
#define VALUE_VECTORS 4
#endif

/* VL keys by VL dimensions, transposed. What is missing is 0. */
FA_INLINE void load_block(vreal a[VL], const real *k, fa_index ldk, fa_index keys, fa_index D)
{
    if (FA_LIKELY(keys >= VL && D >= VL)) {
        FA_UNROLL
        for (int i = 0; i < VL; i++) a[i] = v_load(k + i * ldk);
    } else {
        FA_UNROLL
        for (int i = 0; i < VL; i++) a[i] = i < keys ? v_load_n(k + i * ldk, D) : v_zero();
    }
    v_transpose(a);
}

/* Asks for whole rows of keys, those from `next` on that lie below `done` elements of the VL rows: rows in the order of memory are what
   the hardware fetches best. Returns the next row. Into the second level: asked into the first, lines from memory keep others
   out (12 GB/s for 4 rows, 29 so, 10 left to the hardware). */
FA_INLINE fa_index prefetch_rows(fa_index next, const real *k, fa_index ldk, fa_index D, fa_index done)
{
    for (; next * D < done; next++)
        for (fa_index d = 0; d < D; d += LINE_REALS) FA_PREFETCH_FAR(k + next * ldk + d);
    return next;
}

/* Scores of one tile of rows and VL keys. */
FA_INLINE void score_tile(real *s, const real *q, fa_index slice, const int mr, const real *k, fa_index ldk, fa_index keys,
                          fa_index D, fa_index ahead)
{
    const vreal nan = v_set1((real)__builtin_nanf(""));
    vreal acc[DECODE_TILE];
    fa_index next = 0;
    FA_UNROLL
    for (int r = 0; r < mr; r++) acc[r] = v_zero();
    for (fa_index d0 = 0; d0 < D; d0 += QUERY_SLICE, q += slice) {
        const fa_index size = fa_min(QUERY_SLICE, D - d0);
        for (fa_index d = 0; d < size; d += VL) {
            vreal a[VL];
            load_block(a, k + d0 + d, ldk, keys, size - d);
            next = prefetch_rows(next, k + ahead * ldk, ldk, D, (d0 + d + VL) * VL);
            FA_UNROLL
            for (int i = 0; i < VL; i++) {
                FA_UNROLL
                for (int r = 0; r < mr; r++) acc[r] = v_fma(v_broadcast(q + r * QUERY_STRIDE + d + i), a[i], acc[r]);
            }
        }
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) v_store(s + r * ATTENTION_STRIDE, v_select(v_is_nan(acc[r]), nan, acc[r]));
}

#define SCORE_TILE(mr, ahead) score_tile(s_tile + j, q_tile, slice, mr, k + j * ldk, ldk, keys - j, D, ahead)

/* s = q k' for `rows` rows and `keys` keys; whole vectors of s are written. */
void KERNEL(decode_scores)(real *s, const real *q, fa_index slice, fa_index rows, const real *k, fa_index ldk, fa_index keys,
                           fa_index D)
{
    const tile_deal deal = deal_rows(rows, DECODE_TILE);
    const fa_index ahead = fa_max(1, PREFETCH_BYTES / (fa_max(1, D) * VL * (fa_index)sizeof(real))) * VL;
    for (fa_index j = 0; j < keys; j += VL)
        for (fa_index t = 0, r = 0, mr; t < deal.tiles; t++, r += mr) {
            mr = rows_of_tile(deal, t);
            real *s_tile = s + r * ATTENTION_STRIDE;
            const real *q_tile = q + r * QUERY_STRIDE;
            TILE_SWITCH_6(mr, SCORE_TILE, ahead)
        }
}

/* reference[r] = the integer nearest to the largest score of row r; -inf where it attends to nothing. NaN may be lost: it makes the sum
   NaN. */
void KERNEL(decode_references)(real *reference, const real *s, fa_index rows, const fa_index *begin, const fa_index *end)
{
    const vreal nothing = v_set1(-REAL_INFINITY);
    for (fa_index r = 0; r < rows; r++, s += ATTENTION_STRIDE) {
        vreal top = nothing;
        fa_index j = begin[r];
        for (; j + VL <= end[r]; j += VL) top = v_max(v_load(s + j), top);
        if (j < end[r]) top = v_max(v_select(v_first(end[r] - j), v_load_n(s + j, end[r] - j), nothing), top);
        v_store_n(reference + r, v_round(v_set1(v_reduce_max(top))), 1);
    }
}

FA_INLINE vreal finite_or_zero(vreal x, const int clean) { return clean ? v_select(v_is_nan(v_sub(x, x)), v_zero(), x) : x; }

/* part[r] += p v over `keys` keys and nv vectors of columns, the last of which has `columns` if that is not 0. */
FA_INLINE void value_tile(real *part, fa_index ld, const int mr, const int nv, const real *p, const real *v, fa_index ldv,
                          fa_index keys, const int first, const int clean, const fa_index columns)
{
    vreal acc[DECODE_TILE][VALUE_VECTORS];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int u = 0; u < nv; u++) acc[r][u] = first ? v_zero() : v_load(part + r * ld + u * VL);
    }
    for (fa_index j = 0; j < keys; j++, v += ldv) {
        vreal x[VALUE_VECTORS];
        FA_UNROLL
        for (int u = 0; u < nv; u++) x[u] = finite_or_zero(columns ? v_load_n(v, columns) : v_load(v + u * VL), clean);
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            const vreal w = v_broadcast(p + r * ATTENTION_STRIDE + j);
            FA_UNROLL
            for (int u = 0; u < nv; u++) acc[r][u] = v_fma(w, x[u], acc[r][u]);
        }
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int u = 0; u < nv; u++) v_store(part + r * ld + u * VL, acc[r][u]);
    }
}

#define VALUE_TILE(mr, nv)                                                                                                   \
    value_tile(part + r * ld + column, ld, (mr) * (nv) <= ACCUMULATORS ? (mr) : 1, nv, p + r * ATTENTION_STRIDE, v + column, \
               ldv, keys, first, clean, (nv) == 1 && columns < VL ? columns : 0)

/* The same for all rows and columns, `keys` few enough to stay in the first-level cache. */
FA_INLINE void value_chunk(real *part, fa_index ld, const real *p, fa_index rows, const real *v, fa_index ldv, fa_index keys,
                           fa_index D, const int first, const int clean)
{
    const tile_deal deal = deal_rows(rows, D >= VALUE_VECTORS * VL ? ACCUMULATORS / VALUE_VECTORS : DECODE_TILE);
    for (fa_index t = 0, r = 0, mr; t < deal.tiles; t++, r += mr) {
        mr = rows_of_tile(deal, t);
        for (fa_index column = 0, nv; column < D; column += nv * VL) {
            const fa_index columns = D - column;
            if (columns >= VALUE_VECTORS * VL && mr * VALUE_VECTORS <= ACCUMULATORS) {
                nv = VALUE_VECTORS;
                TILE_SWITCH_3(mr, VALUE_TILE, VALUE_VECTORS)
            } else if (columns >= 2 * VL) {
                nv = 2;
                TILE_SWITCH_6(mr, VALUE_TILE, 2)
            } else {
                nv = 1;
                TILE_SWITCH_6(mr, VALUE_TILE, 1)
            }
        }
    }
}

/* One chain of at most CHAIN_KEYS. */
FA_INLINE void value_chain(real *part, fa_index ld, const real *p, fa_index rows, const decode_rows *v, fa_index begin,
                           fa_index end, fa_index D, const int clean)
{
    const fa_index most = fa_max(1, CHUNK_BYTES / (fa_max(1, D) * (fa_index)sizeof(real)));
    for (fa_index j = begin, keys; j < end; j += keys) {
        const fa_index at = v->first + j, page = at / v->page_keys, slot = at % v->page_keys;
        const real *row = (const real *)v->pages[page] + v->offset + slot * v->ld;
        keys = fa_min(most, fa_min(end - j, v->page_keys - slot));
        value_chunk(part, ld, p + j, rows, row, v->ld, keys, D, j == begin, clean);
    }
}

FA_INLINE void value_pass(real *part, fa_index ld, const real *p, fa_index rows, const decode_rows *v, fa_index begin,
                          fa_index end, fa_index D, const int clean)
{
    real *next = part + rows * ld;
    for (fa_index j = begin, last; j < end; j = last) {
        last = fa_min(end, (j / CHAIN_KEYS + 1) * CHAIN_KEYS);
        value_chain(j == begin ? part : next, ld, p, rows, v, j, last, D, clean);
        if (j == begin) continue;
        for (fa_index r = 0; r < rows; r++)
            for (fa_index d = r * ld; d < r * ld + D; d += VL) v_store(part + d, v_add(v_load(part + d), v_load(next + d)));
    }
}

/* part = p v over the keys [begin, end); whole vectors of it are written, and as many rows behind it for a second chain. p is 0 or a probability throughout. *nonfinite: a value may
   not be finite, and counted as 0. */
void KERNEL(decode_values)(real *part, fa_index ld, const real *p, fa_index rows, const decode_rows *v, fa_index begin,
                           fa_index end, fa_index D, int *nonfinite)
{
    value_pass(part, ld, p, rows, v, begin, end, D, 0);
    vreal bad = v_zero();
    for (fa_index r = 0; r < rows; r++)
        for (fa_index d = 0; d < D; d += VL) bad = v_fma(v_load(part + r * ld + d), v_zero(), bad); /* 0 inf, 0 NaN are NaN */
    *nonfinite = v_any(v_is_nan(bad));
    if (FA_UNLIKELY(*nonfinite)) value_pass(part, ld, p, rows, v, begin, end, D, 1);
}

/* o = alpha o + part, or part alone in the first block of the rows; sum likewise. */
void KERNEL(decode_merge)(real *o, real *sum, const real *part, const real *part_sum, fa_index ld, fa_index rows, fa_index D,
                          const real *alpha, int first)
{
    for (fa_index r = 0; r < rows; r++) {
        const vreal factor = v_broadcast(alpha + r);
        for (fa_index d = 0; d < D; d += VL) {
            const vreal x = v_load(part + r * ld + d);
            v_store(o + r * ld + d, first ? x : v_fma(v_load(o + r * ld + d), factor, x));
        }
    }
    for (fa_index r = 0; r < rows; r += VL) {
        const fa_index n = fa_min(VL, rows - r);
        const vreal before = v_mul(v_load_n(sum + r, n), v_load_n(alpha + r, n));
        v_store_n(sum + r, v_add(before, v_load_n(part_sum + r, n)), n);
    }
}
