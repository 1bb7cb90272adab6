/* The scores of a few queries by matrix tiles: the pipeline of decode_amx.c, whose keys are pairs, and decode_i8_amx.c, whose keys are
   bytes. Keys are rows of the left operand, as they lie in memory, and queries are the right one: only the products are transposed.
   They are read LAG steps later, when they have left the tiles.

   A place has the size of a real, and holds a pair or four bytes; T_K places are a step. Where a step of VL keys is not all there, or
   not in one piece, it is put together with zeros, which change no sum. */
#ifndef FA_DECODE_AMX_H
#define FA_DECODE_AMX_H

#include "../attention/attention.h"
#include "../common.h"

#include <string.h>

#define LAG 3
#define PLACE_BYTES ((fa_index)sizeof(real))

typedef struct {
    const decode_rows *keys;
    fa_index begin, end; /* of the keys; begin is a multiple of VL */
    fa_index bytes;      /* of a key */
} key_operand;

/* The places [first, first + size) of the queries as the right operand, [place][VL]: first is a multiple of QUERY_SLICE, and a slice is
   packed at a time. */
typedef void pack_queries(real *operand, const void *context, fa_index first, fa_index size);

/* Receives the products of the keys [j, j + VL), [key][VL]. Those from the last key on are of no use. */
typedef void take_products(const void *context, const real *product, fa_index j);

/* `count` bytes from `first` on of n keys, in rows of `padded`; up to VL, the last one again. */
FA_INLINE void gather_keys(char *dst, const void *const *row, fa_index n, fa_index first, fa_index count, fa_index padded)
{
    for (fa_index i = 0; i < VL; i++, dst += padded) {
        memcpy(dst, (const char *)row[fa_min(i, n - 1)] + first, (size_t)count);
        memset(dst + count, 0, (size_t)(padded - count));
    }
}

/* The products of the VL keys from j on. The operand is in tiles already if it takes `kept` steps. */
FA_INLINE void multiply_keys(const t_type type, real *product, const key_operand *x, fa_index j, real *operand, fa_index kept,
                             pack_queries *pack, const void *context)
{
    const fa_index places = fa_round_up(fa_ceil_div(x->bytes, PLACE_BYTES), T_K), n = fa_min(VL, x->end - j);
    const decode_rows *k = x->keys;
    const void *row[VL];
    char gathered[VL * QUERY_SLICE * sizeof(real)] FA_ALIGN(64);
    fa_index together;
    const char *at = find_row(k, j, &together);
    const int in_place = fa_min(together, n) >= VL && x->bytes % (T_K * PLACE_BYTES) == 0;
    if (k->table) prefetch_values(k, j + rows_ahead(x->bytes), VL, x->bytes);
    if (kept && in_place) {
        t_product_kept(type, product, at, k->ld, kept);
        return;
    }
    if (!in_place) find_rows(row, k, j, n);
    for (fa_index d = 0; d == 0 || d < places; d += QUERY_SLICE) {
        const fa_index size = fa_min(QUERY_SLICE, places - d), first = d * PLACE_BYTES, padded = size * PLACE_BYTES;
        const char *from = in_place ? at + first : gathered;
        const fa_index ld = in_place ? k->ld : padded;
        if (places > QUERY_SLICE) pack(operand, context, d, size);
        if (!in_place) gather_keys(gathered, row, n, first, fa_min(padded, x->bytes - first), padded);
        if (kept)
            t_product_kept(type, product, from, ld, kept);
        else
            t_product_rows(type, product, d > 0, from, ld, operand, size);
    }
}

FA_INLINE void multiply_all_keys(const t_type type, const key_operand *x, pack_queries *pack, take_products *take,
                                 const void *context)
{
    real operand[QUERY_SLICE * VL] FA_ALIGN(64), product[LAG + 1][VL * VL] FA_ALIGN(64);
    const fa_index places = fa_round_up(fa_ceil_div(x->bytes, PLACE_BYTES), T_K),
                   kept = places <= T_KEPT * T_K ? places / T_K : 0;
    const fa_index groups = fa_ceil_div(x->end - x->begin, VL);
    if (places <= QUERY_SLICE) pack(operand, context, 0, places);
    t_configure(2 * T_ROWS);
    if (kept) t_keep(operand, kept);
    for (fa_index g = 0; g < groups + LAG; g++) {
        const fa_index j = x->begin + g * VL;
        if (g < groups) multiply_keys(type, product[g % (LAG + 1)], x, j, operand, kept, pack, context);
        if (g >= LAG) take(context, product[(g + 1) % (LAG + 1)], j - LAG * VL);
    }
}

#endif
