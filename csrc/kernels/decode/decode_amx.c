/* The two products of decode.c by matrix tiles (FA_AMX), with the sums of attention.c:

     S = Q K'    decode_amx.h
     P V         pairs of keys are the right operand; they are interleaved in registers

   The values of a single row, unless its head has no whole steps, take vectors that add up in the same order: they are used once, and
   vectors keep more of their lines on the way. */
#include "decode_amx.h"
#include "../attention/attention_tile.h"
#include "../common.h"

#include <string.h>

#define ROW_PAIRS 4 /* pairs of vectors of columns that pass together for a single row */
/* Rows of pages are prefetched at once; values of arrays in between, as they are used, which made up to 1.3 times as many bytes a
   second as the hardware's own prefetch, where prefetching all at once made fewer; keys of arrays not at all, which are a stream that
   the hardware keeps up with. */

/* At most T_ROWS queries, and the rows of their scores. */
typedef struct {
    real *s;
    const real *q;
    fa_index slice, rows;
    real scale;
} few_queries;

/* A slice: [pair of dimensions][query], zeros for those that are missing. */
FA_INLINE void transpose_queries(real *operand, const void *context, fa_index first, fa_index size)
{
    const few_queries *x = context;
    const real *q = x->q + first / QUERY_SLICE * x->slice;
    for (fa_index d = 0; d < size; d += VL) {
        vreal t[VL];
        for (int i = 0; i < VL; i++) t[i] = i < x->rows ? v_load(q + i * QUERY_STRIDE + d) : v_zero();
        v_transpose(t);
        FA_UNROLL
        for (int i = 0; i < VL; i++) v_store(operand + (d + i) * VL, t[i]);
    }
}

/* The scores of a row from its sums. */
FA_INLINE vreal scaled_scores(vreal sums, vreal scale)
{
    const vreal x = v_mul(sums, scale);
    return v_select(v_is_nan(x), v_set1((real)__builtin_nanf("")), x);
}

/* Scores of VL keys from j on, [key][query], to rows of s. */
FA_INLINE void store_transposed(const void *context, const real *product, fa_index j)
{
    const few_queries *x = context;
    real *s = x->s + j;
    const vreal scale = v_set1(x->scale);
    if (x->rows <= 4) {
        vreal t[4];
        v_load_columns(t, product, VL);
        for (fa_index r = 0; r < x->rows; r++) v_store(s + r * ATTENTION_STRIDE, scaled_scores(t[r], scale));
        return;
    }
    vreal t[VL];
    FA_UNROLL
    for (int i = 0; i < VL; i++) t[i] = v_load(product + i * VL);
    v_transpose(t);
    for (fa_index r = 0; r < x->rows; r++) v_store(s + r * ATTENTION_STRIDE, scaled_scores(t[r], scale));
}

/* decode.c has the contract; `buffer` is not needed. */
void KERNEL(decode_scores)(const score_block *b, const real *q, fa_index slice, const decode_rows *k, fa_index begin,
                           fa_index end, fa_index D, void *buffer)
{
    (void)buffer;
    const key_operand keys = {k, begin, end, D * (fa_index)sizeof(stored)};
    for (fa_index r = 0; r < b->rows; r += T_ROWS) {
        const few_queries queries = {b->s + r * ATTENTION_STRIDE, q + r * QUERY_STRIDE, slice, fa_min(T_ROWS, b->rows - r),
                                     D ? b->scale : 1}; /* scores of no dimensions are +0 */
        multiply_all_keys(T_PAIRS, &keys, transpose_queries, store_transposed, &queries);
    }
}

FA_INLINE vreal some_values(const stored *v, fa_index columns, const int clean)
{
    const vreal x = load_stored_some(v, columns);
    return clean ? finite_or_zero(x) : x;
}

/* nv vectors of columns of a step of `keys` keys, pair after pair, with zeros for keys that are missing; interleaved. Of what lies `ahead`
   bytes further, so many bytes of each row are prefetched. */
FA_INLINE void interleave_step(real *pairs, const void *const *row, fa_index keys, fa_index column, const int nv, fa_index ahead,
                               fa_index bytes)
{
    static const stored nothing[4 * VL] = {0};
    for (int i = 0; i < T_K; i++, pairs += nv * VL) {
        const stored *p = 2 * i < keys ? (const stored *)row[2 * i] + column : nothing;
        const stored *q = 2 * i + 1 < keys ? (const stored *)row[2 * i + 1] + column : nothing;
        for (fa_index at = 0; at < bytes; at += FA_CACHE_LINE) {
            FA_PREFETCH_FAR((const char *)p + ahead + at);
            FA_PREFETCH_FAR((const char *)q + ahead + at);
        }
        FA_UNROLL
        for (int u = 0; u < nv; u += 2) {
            vreal x, y;
            v_load_permuted(p + u * VL, q + u * VL, &x, &y);
            v_store(pairs + u * VL, x);
            v_store(pairs + (u + 1) * VL, y);
        }
    }
}

/* The same in order, of `columns` columns, and on request without what is not finite. */
FA_INLINE void interleave_in_order(real *pairs, const void *const *row, fa_index keys, fa_index column, const int nv,
                                   fa_index columns, const int clean)
{
    for (int i = 0; i < T_K; i++, pairs += nv * VL)
        for (fa_index u = 0; u < nv; u++) {
            const fa_index at = column + u * VL, count = fa_max(0, columns - u * VL);
            const vreal x = 2 * i < keys ? some_values((const stored *)row[2 * i] + at, count, clean) : v_zero();
            const vreal y = 2 * i + 1 < keys ? some_values((const stored *)row[2 * i + 1] + at, count, clean) : v_zero();
            v_store(pairs + u * VL, v_interleave(x, y));
        }
}

/* For at most T_ROWS rows and nv vectors of columns from `column` on, as far as there are D: part = p v. */
FA_INLINE void value_columns(real *part, fa_index ld, const real *p, fa_index rows, const decode_rows *v, fa_index begin,
                             fa_index end, fa_index column, const int nv, fa_index D, const int clean)
{
    const fa_index columns = D - column, row_bytes = D * (fa_index)sizeof(stored);
    const int interleaved = nv > 1 && columns >= nv * VL && !clean;
    t_sums_zero();
    for (fa_index j = begin, keys; j < end; j += keys) {
        const void *row[TILE_STEP];
        real pairs[4 * T_K * VL] FA_ALIGN(64), rest[T_ROWS * VL] FA_ALIGN(64);
        const real *weights = p + j / FA_PACKED;
        fa_index ldw = ATTENTION_STRIDE;
        keys = fa_min(TILE_STEP - j % TILE_STEP, end - j);
        find_rows(row, v, j, keys);
        if (v->table && column == 0) prefetch_values(v, j + rows_ahead(row_bytes), keys, row_bytes);
        if (keys < TILE_STEP) { /* p may hold anything beyond */
            for (fa_index r = 0; r < rows; r++)
                v_store(rest + r * VL, v_load_n(weights + r * ATTENTION_STRIDE, fa_ceil_div(keys, FA_PACKED)));
            weights = rest;
            ldw = VL;
        }
        if (interleaved)
            interleave_step(pairs, row, keys, column, nv, rows_ahead(row_bytes) * v->ld, v->table || column ? 0 : row_bytes);
        else
            interleave_in_order(pairs, row, keys, column, nv, columns, clean);
        t_sums_add(T_PAIRS, nv, weights, ldw, pairs, nv * VL);
    }
    t_sums_store(nv, part, ld);
    for (fa_index r = 0; interleaved && r < rows; r++, part += ld)
        for (int u = 0; u < nv; u += 2) {
            vreal x = v_load(part + u * VL), y = v_load(part + (u + 1) * VL);
            v_unpermute(&x, &y);
            v_store(part + u * VL, x);
            v_store(part + (u + 1) * VL, y);
        }
}

/* part = w v for one row and `pairs` times 2 VL columns. */
FA_INLINE void row_columns(real *part, const real *w, const decode_rows *v, fa_index begin, fa_index end, fa_index column,
                           const int pairs, fa_index row_bytes)
{
    enum { MOST = 2 * ROW_PAIRS };
    const fa_index ahead = v->table ? 0 : rows_ahead(row_bytes) * v->ld;
    vreal sum[MOST];
    FA_UNROLL
    for (int u = 0; u < 2 * pairs; u++) sum[u] = v_zero();
    for (fa_index j = begin, keys; j < end; j += keys) {
        const void *row[TILE_STEP];
        vreal chain[FA_PACKED][MOST];
        keys = fa_min(TILE_STEP - j % TILE_STEP, end - j);
        find_rows(row, v, j, keys);
        if (v->table && column == 0) prefetch_values(v, j + rows_ahead(row_bytes), keys, row_bytes);
        FA_UNROLL
        for (int u = 0; u < 2 * pairs; u++) chain[0][u] = chain[1][u] = v_zero();
        for (fa_index i = 0; i < keys; i += FA_PACKED) {
            FA_UNROLL
            for (int parity = 0; parity < FA_PACKED; parity++) {
                if (parity && i + 1 == keys) break;
                const stored *x = (const stored *)row[i + parity] + column;
                const vreal weight = v_broadcast(w + j + i + parity);
                FA_UNROLL
                for (int u = 0; u < pairs; u++) {
                    vreal a, b;
                    FA_PREFETCH_FAR((const char *)(x + 2 * VL * u) + ahead);
                    v_load_bf16_pairs(x + 2 * VL * u, &a, &b);
                    chain[parity][2 * u] = v_fma(a, weight, chain[parity][2 * u]);
                    chain[parity][2 * u + 1] = v_fma(b, weight, chain[parity][2 * u + 1]);
                }
            }
        }
        FA_UNROLL
        for (int u = 0; u < 2 * pairs; u++) sum[u] = v_add(sum[u], v_add(chain[0][u], chain[1][u]));
    }
    FA_UNROLL
    for (int u = 0; u < pairs; u++) {
        real even[VL], odd[VL];
        v_store(even, sum[2 * u]);
        v_store(odd, sum[2 * u + 1]);
        for (int i = 0; i < VL; i++, part += 2) part[0] = even[i], part[1] = odd[i];
    }
}

/* The same for all columns. */
FA_NOINLINE void row_values(real *part, const real *w, const decode_rows *v, fa_index begin, fa_index end, fa_index D)
{
    const fa_index bytes = D * (fa_index)sizeof(stored);
    fa_index column = 0;
    for (; D - column >= ROW_PAIRS * 2 * VL; column += ROW_PAIRS * 2 * VL)
        row_columns(part + column, w, v, begin, end, column, ROW_PAIRS, bytes);
    for (; column < D; column += 2 * VL) row_columns(part + column, w, v, begin, end, column, 1, bytes);
}

FA_INLINE void one_value_row(real *part, const real *p, const decode_rows *v, fa_index begin, fa_index end, fa_index D)
{
    real w[ATTENTION_KEYS];
    for (fa_index j = begin; j < end; j += VL)
        v_store_n(w + j, v_load_stored_n((const stored *)p + j, fa_min(VL, end - j)), fa_min(VL, end - j));
    const unsigned before = t_round_like_tiles();
    row_values(part, w, v, begin, end, D);
    t_round_as_before(before);
}

/* For at most T_ROWS rows: part = p v, whose columns pass in groups that tiles have room for. */
FA_INLINE void few_values(real *part, fa_index ld, const real *p, fa_index rows, const decode_rows *v, fa_index begin,
                          fa_index end, fa_index D, const int clean)
{
    t_configure(rows);
    for (fa_index column = 0, nv; column < D; column += nv * VL) {
        const fa_index columns = D - column;
        nv = columns > 2 * VL ? 4 : columns > VL ? 2 : 1;
        if (nv == 4 && columns <= 3 * VL) nv = 2; /* rows of part have no fourth vector */
        if (nv == 4)
            value_columns(part + column, ld, p, rows, v, begin, end, column, 4, D, clean);
        else if (nv == 2)
            value_columns(part + column, ld, p, rows, v, begin, end, column, 2, D, clean);
        else
            value_columns(part + column, ld, p, rows, v, begin, end, column, 1, D, clean);
    }
}

/* decode.c has the contract. The keys lie in one block, and its sums are one chain. */
void KERNEL(decode_values)(real *part, fa_index ld, const real *p, fa_index rows, const decode_rows *v, fa_index begin,
                           fa_index end, fa_index D, int *found)
{
    *found = 0;
    for (fa_index r = 0; r < rows; r += T_ROWS) {
        const fa_index n = fa_min(T_ROWS, rows - r);
        real *to = part + r * ld;
        const real *from = p + r * ATTENTION_STRIDE;
        if (rows == 1 && D % (2 * VL) == 0)
            one_value_row(to, from, v, begin, end, D);
        else
            few_values(to, ld, from, n, v, begin, end, D, 0);
        const int first = values_found(to, ld, n, D);
        *found |= first & VALUES_NOT_FINITE ? VALUES_NOT_FINITE : first;
        if (FA_LIKELY(!(first & VALUES_NOT_FINITE))) continue;
        few_values(to, ld, from, n, v, begin, end, D, 1);
        *found |= values_found(to, ld, n, D) & VALUES_LARGE;
    }
}
