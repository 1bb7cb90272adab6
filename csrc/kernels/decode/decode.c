/* The inside of attention with few queries, on keys and values as they lie in memory: each of their bytes is read once, for all query
   heads that share them.

     S = Q K'            decode_scores: VL keys by VL dimensions at a time are transposed in registers, so that keys are lanes
     O = alpha O + P V   decode_values: lanes are columns

   Both are the chains of attention.c: one chain of multiply-adds over ascending d, chains of CHAIN_KEYS over keys, from zero. Queries, scores,
   probabilities and O are laid out as there, and attention_softmax stands between the two. A row gets the same bits by either way.

   Values are not copied, hence not looked at beforehand: a value that is not finite makes every sum that it enters infinite or NaN, also
   with p = 0. The sums of such a block are computed again with 0 in its place, and attention_patch_values adds it where it
   belongs.

   With FA_PAIRS places of a real hold pairs of bfloat16, as in attention.c: of neighbouring dimensions in queries and keys, of
   neighbouring keys in P and values. With FA_AMX both kernels are those of decode_amx.c. */
#include "../attention/attention_tile.h"
#include "../common.h"

#include <string.h>

/* Sizes found on a Zen 4 that reads 34 GB/s from memory: 4 KB of values at a time for 4 rows 31.6 GB/s, 8 KB 29.8, 16 KB 21. A pass
   over a part of each row's columns, which the hardware does not recognise as a stream, got 12. */
#define CHUNK_BYTES 4096
#define CHUNK_KEYS 64
#define AHEAD_CHUNKS 4 /* so far ahead values are prefetched */
/* In arrays, too, where 16-bit values are widened: the hardware alone falls behind (Zen 3, bfloat16: 7.5 GB/s of 15 without, 9.1 with, and
   with 4 rows 6.8 and 9). float gains nothing. */
#define AHEAD_IN_ARRAYS (FA_CONVERTS && !FA_PAIRS)
#define DECODE_TILE 6 /* rows that pass over keys or values together */
#define KEY_VECTORS 2
#define LINE (FA_CACHE_LINE / (fa_index)sizeof(stored))
#define BLOCK_LINES (VL * VL * FA_PACKED / (int)LINE) /* of VL rows by VL packed elements */

#if FA_REGISTERS == 32
#define ACCUMULATORS 24
#define VALUE_VECTORS 8
#else
#define ACCUMULATORS 12
#define VALUE_VECTORS 4
#endif

/* Prefetches the next of the rows from `ahead` on while ng x VL rows are read, VL packed elements at a time: whole rows, in the order of memory,
   which is what the hardware fetches best. `next` is the next row, `element` where the reading is. Into the second level: in
   the first, lines from memory keep others out (12 GB/s for 4 rows, 29 so, 10 left to the hardware). */
FA_INLINE fa_index prefetch_keys(fa_index next, const stored *ahead, fa_index ld, fa_index D, fa_index element, const int ng)
{
    if (FA_LIKELY(ld == D)) {
        FA_UNROLL
        for (int i = 0; i < BLOCK_LINES; i++) {
            FA_UNROLL
            for (int g = 0; g < ng; g++) FA_PREFETCH_FAR(ahead + element * VL * ng + (i * ng + g) * LINE);
        }
        return next;
    }
    for (; next * D < (element + VL * FA_PACKED) * VL * ng; next++)
        for (fa_index d = 0; d < D; d += LINE) FA_PREFETCH_FAR(ahead + next * ld + d);
    return next;
}

/* VL packed elements (reals, or pairs of bfloat16) of a row, of which `left` elements are there; the others are 0. */
FA_INLINE vreal load_places(const stored *p, fa_index left)
{
#if FA_PAIRS
    return FA_LIKELY(left >= 2 * VL) ? v_load_pairs(p) : v_load_pairs_n(p, left);
#else
    return FA_LIKELY(left >= VL) ? v_load_stored(p) : v_load_stored_n(p, left);
#endif
}

/* A tile of rows and a vector of keys, or two, whose rows are ld apart; `ahead`: the rows that are prefetched. */
typedef struct {
    real *s;
    const real *q;
    const stored *k, *ahead;
    fa_index slice, ld, D;
    vreal scale;
} key_tile;

FA_INLINE void score_keys(const void *tile, const int mr, const int ng)
{
    const key_tile *t = tile;
    const real *q = t->q;
    const fa_index ld = t->ld, D = t->D;
    const vreal nan = v_set1((real)__builtin_nanf(""));
    vreal acc[KEY_VECTORS][DECODE_TILE];
    fa_index next = 0;
    FA_UNROLL
    for (int g = 0; g < ng; g++) {
        FA_UNROLL
        for (int r = 0; r < mr; r++) acc[g][r] = v_zero();
    }
    for (fa_index d0 = 0, places = fa_ceil_div(D, FA_PACKED); d0 < places; d0 += QUERY_SLICE, q += t->slice) {
        const fa_index size = fa_min(QUERY_SLICE, places - d0);
        for (fa_index d = 0; d < size; d += VL) {
            const fa_index element = (d0 + d) * FA_PACKED;
            next = prefetch_keys(next, t->ahead, ld, D, element, ng);
            FA_UNROLL
            for (int g = 0; g < ng; g++) {
                const stored *row = t->k + g * VL * ld + element;
                vreal a[VL];
                FA_UNROLL
                for (int i = 0; i < VL; i++) {
                    if (i % 4 == 0) FA_OPAQUE(row);
                    a[i] = load_places(row + i % 4 * ld, D - element);
                    if (i % 4 == 3) row += 4 * ld;
                }
                v_transpose(a);
                FA_UNROLL
                for (int i = 0; i < VL; i++) {
                    FA_UNROLL
                    for (int r = 0; r < mr; r++)
                        acc[g][r] = v_multiply_add(v_broadcast(q + r * QUERY_STRIDE + d + i), a[i], acc[g][r]);
                }
            }
        }
    }
    FA_UNROLL
    for (int g = 0; g < ng; g++) {
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            vreal x = acc[g][r];
#if FA_PAIRS
            x = v_mul(x, t->scale);
#endif
            v_store(t->s + r * ATTENTION_STRIDE + g * VL, v_select(v_is_nan(x), nan, x));
        }
    }
}

/* The rows [j, j + n) one after another in `buffer`; up to VL, the last one again. */
FA_INLINE void gather_rows(stored *buffer, const decode_rows *k, fa_index j, fa_index n, fa_index D)
{
    const void *row[VL];
    find_rows(row, k, j, n);
    for (fa_index i = 0; i < VL; i++) memcpy(buffer + i * D, row[fa_min(i, n - 1)], (size_t)D * sizeof *buffer);
}

/* s = q k' for the rows of a block and the keys [begin, end), begin a multiple of VL; whole vectors of s are written. `buffer` has room for
   VL rows of keys: those of a vector that do not lie ld apart, or are not all there, are put together in it. A single row has two
   chains going, as the multiply-adds of one would wait for each other. */
void KERNEL(decode_scores)(const score_block *b, const real *q, fa_index slice, const decode_rows *k, fa_index begin,
                           fa_index end, fa_index D, void *buffer)
{
    const fa_index rows = b->rows;
    const vreal scale = v_set1(D ? b->scale : 1); /* scores of no dimensions are +0 */
    const row_split split = split_rows(rows, DECODE_TILE);
    const fa_index distance = fa_max(1, AHEAD_BYTES / (fa_max(1, D) * VL * (fa_index)sizeof(stored))) * VL;
    for (fa_index j = begin, n; j < end; j += n) {
        fa_index together, ahead_together, ld = k->ld / (fa_index)sizeof(stored);
        const stored *row = find_row(k, j, &together), *ahead = row;
        together = fa_min(together, end - j);
        n = rows == 1 && together >= KEY_VECTORS * VL ? KEY_VECTORS * VL : VL;
        if (FA_UNLIKELY(together < VL)) {
            gather_rows(buffer, k, j, fa_min(VL, end - j), D);
            row = ahead = buffer;
            ld = D;
        } else if (j + distance + n <= k->keys) {
            const stored *later = find_row(k, j + distance, &ahead_together);
            if (ahead_together >= n) ahead = later;
        }
        if (n > VL) {
            const key_tile tile = {b->s + j, q, row, ahead, slice, ld, D, scale};
            score_keys(&tile, 1, KEY_VECTORS);
            continue;
        }
        for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
            mr = tile_height(split, t);
            const key_tile tile = {b->s + r * ATTENTION_STRIDE + j, q + r * QUERY_STRIDE, row, ahead, slice, ld, D, scale};
            tile_dispatch(score_keys, &tile, mr, DECODE_TILE, 1);
        }
    }
}

FA_INLINE vreal some_values(const stored *v, fa_index columns, const int clean)
{
    const vreal x = v_load_stored_n(v, columns);
    return clean ? finite_or_zero(x) : x;
}

/* One vector of the values of a key, or with FA_PAIRS of two, the second missing where that is NULL. */
FA_INLINE vreal few_values(const stored *v, const stored *second, fa_index columns, const int clean)
{
    const vreal x = some_values(v, columns, clean);
#if FA_PAIRS
    return v_interleave(x, second ? some_values(second, columns, clean) : v_zero());
#else
    (void)second;
    return x;
#endif
}

/* nv vectors of the same. With FA_PAIRS nv is even where all is there and finite. */
FA_INLINE void load_values(vreal *x, const int nv, const stored *v, const stored *second, fa_index columns, const int clean)
{
    if (columns < nv * VL || clean || (FA_PAIRS && (nv == 1 || !second))) {
        FA_UNROLL
        for (int u = 0; u < nv; u++) x[u] = few_values(v + u * VL, second ? second + u * VL : NULL, columns - u * VL, clean);
        return;
    }
#if FA_PAIRS
    FA_UNROLL
    for (int u = 0; u < nv; u += 2) v_load_interleaved(v + u * VL, second + u * VL, &x[u], &x[u + 1]);
#else
    FA_UNROLL
    for (int u = 0; u < nv; u++) x[u] = v_load_stored(v + u * VL);
#endif
}

/* A tile of rows of part, and the rows of so many values from a column on, of which `columns` are there. */
typedef struct {
    real *part;
    const real *p;
    const void *const *row;
    fa_index ld, column, keys, columns;
    int first, clean; /* part is not added to; what is not finite counts as 0 */
} value_tile;

/* part[r] += p v for nv vectors of columns. */
FA_INLINE void add_values(const void *tile, const int mr, const int nv)
{
    const value_tile *t = tile;
    const fa_index ld = t->ld, column = t->column, keys = t->keys;
    const fa_index columns = t->columns >= nv * VL ? nv * VL : t->columns;
    const int clean = t->clean;
    real *part = t->part + column;
    const real *p = t->p;
    vreal acc[DECODE_TILE][VALUE_VECTORS];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int u = 0; u < nv; u++) acc[r][u] = t->first ? v_zero() : v_load(part + r * ld + u * VL);
    }
    for (fa_index j = 0; j < keys; j += FA_PACKED, p++) {
        vreal x[VALUE_VECTORS];
        const stored *v = t->row[j], *second = FA_PAIRS && j + 1 < keys ? t->row[j + 1] : NULL;
        load_values(x, nv, v + column, second ? second + column : NULL, columns, clean);
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            const vreal w = v_broadcast(p + r * ATTENTION_STRIDE);
            FA_UNROLL
            for (int u = 0; u < nv; u++) acc[r][u] = v_multiply_add(w, x[u], acc[r][u]);
        }
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int u = 0; u < nv; u++) v_store(part + r * ld + u * VL, acc[r][u]);
    }
}

/* The same for all rows and columns, `keys` few enough to stay in the first-level cache. */
FA_INLINE void value_chunk(real *part, fa_index ld, const real *p, fa_index rows, const void *const *row, fa_index keys,
                           fa_index D, const int first, const int clean)
{
    const row_split split = split_rows(rows, D >= VALUE_VECTORS * VL ? ACCUMULATORS / VALUE_VECTORS : DECODE_TILE);
    for (fa_index t = 0, r = 0, mr; t < split.tiles; t++, r += mr) {
        mr = tile_height(split, t);
        for (fa_index column = 0, nv; column < D; column += nv * VL) {
            const fa_index columns = D - column;
            const value_tile tile = {part + r * ld, p + r * ATTENTION_STRIDE, row, ld, column, keys, columns, first, clean};
            if (columns >= VALUE_VECTORS * VL && mr * VALUE_VECTORS <= ACCUMULATORS) {
                nv = VALUE_VECTORS;
                tile_dispatch(add_values, &tile, mr, ACCUMULATORS / VALUE_VECTORS, VALUE_VECTORS);
            } else if (columns >= 2 * VL) {
                nv = 2;
                tile_dispatch(add_values, &tile, mr, DECODE_TILE, 2);
            } else {
                nv = 1;
                tile_dispatch(add_values, &tile, mr, DECODE_TILE, 1);
            }
        }
    }
}

/* One chain of at most CHAIN_KEYS. */
FA_INLINE void value_chain(real *part, fa_index ld, const real *p, fa_index rows, const decode_rows *v, fa_index begin,
                           fa_index end, fa_index D, const int clean)
{
    const fa_index some = CHUNK_BYTES / (fa_max(1, D) * (fa_index)sizeof(stored));
    const fa_index most = fa_max(1, fa_min(CHUNK_KEYS, some) / FA_PACKED) * FA_PACKED;
    for (fa_index j = begin, keys; j < end; j += keys) {
        const void *row[CHUNK_KEYS];
        keys = fa_min(most, end - j);
        find_rows(row, v, j, keys);
        if (v->table || AHEAD_IN_ARRAYS) prefetch_values(v, j + AHEAD_CHUNKS * most, keys, D * (fa_index)sizeof(stored));
        value_chunk(part, ld, p + j / FA_PACKED, rows, row, keys, D, j == begin, clean);
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

/* part = p v over the keys [begin, end), begin a multiple of FA_PACKED; whole vectors of it are written, and as many rows behind it
   for a second chain. p is 0 or a probability throughout, with FA_PAIRS also for the key that would make the last pair. *found: a value
   may not be finite, and counted as 0; a sum is large. */
void KERNEL(decode_values)(real *part, fa_index ld, const real *p, fa_index rows, const decode_rows *v, fa_index begin,
                           fa_index end, fa_index D, int *found)
{
    value_pass(part, ld, p, rows, v, begin, end, D, 0);
    *found = values_found(part, ld, rows, D);
    if (FA_LIKELY(!(*found & VALUES_NOT_FINITE))) return;
    value_pass(part, ld, p, rows, v, begin, end, D, 1);
    *found = VALUES_NOT_FINITE | (values_found(part, ld, rows, D) & VALUES_LARGE);
}

#if !FA_CONVERTS
/* shift[r] = the integer nearest to the largest score of row r; -inf where it attends to nothing. NaN may be lost: it makes the sum
   NaN. */
void KERNEL(decode_shifts)(real *shift, const score_block *b)
{
    const real *s = b->s;
    const fa_index rows = b->rows, *begin = b->begin, *end = b->end;
    const vreal nothing = v_set1(-REAL_INFINITY);
    for (fa_index r = 0; r < rows; r++, s += ATTENTION_STRIDE) {
        vreal top = nothing;
        fa_index j = begin[r];
        for (; j + VL <= end[r]; j += VL) top = v_max(v_load(s + j), top);
        if (j < end[r]) top = v_max(v_select(v_first(end[r] - j), v_load_n(s + j, end[r] - j), nothing), top);
        v_store_n(shift + r, v_round(v_set1(v_reduce_max(top))), 1);
    }
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
#endif
