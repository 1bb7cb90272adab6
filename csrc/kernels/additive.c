/* Additive attention over the keys of one sequence, q and k projected already:

     e[t, s] = sum over a of v[a] tanh(q[t, a] + k[s, a])                 (1)
     w = softmax of e over s,  context[t] = sum over s of w[t, s] x[s]    (2)

   and backward, from g, the gradient of the context, with the tanh of (1) computed anew:

     dw[t, s] = g[t] . x[s],  de = w (dw - sum over s of w dw),  dx[s] = sum over t of w[t, s] g[t]
     u = de (1 - tanh^2):  dq[t] = v sum over s of u,  dk[s] = v sum over t of u,  dv = sum over t and s of de tanh

   Lanes are columns, so that no array is transposed and no sum of the backward crosses lanes; a score is a reduction in a fixed tree.
   A pair with e = -inf is masked: it has the weight 0 and its rows are not part of any sum, whatever they hold. In the backward that
   is every pair of weight 0. A query without keys has the context 0. */
#include "common.h"
#include "rows.h"

/* Queries (of dx: keys) side by side: chains enough for the latency of a tanh, and each row of k is read once for all. */
#define TILE 4
/* Chains of sums, added up in order: vectors of a score, whose error is one of the whole weight and which is added up in double length;
   vectors, or keys for each query of a tile; rows of a weighted sum, fewer where products are rounded as well. */
#define SCORE_LENGTH 4
#define SUM_LENGTH 8
#define K_LENGTH (FA_HAS_FMA ? 16 : 8)

/* CALL(mr) with mr a constant. */
#define TILE_OF(mr, CALL)    \
    switch (mr) {            \
    case 1: CALL(1); break;  \
    case 2: CALL(2); break;  \
    case 3: CALL(3); break;  \
    default: CALL(4); break; \
    }

/* ---- scores ---- */

FA_INLINE void score_step(vreal sum[TILE], const int mr, const real *q, fa_index ldq, const real *k, const real *v,
                          fa_index count)
{
    const vreal key = load_some(k, count), weight = load_some(v, count);
    FA_UNROLL
    for (int r = 0; r < mr; r++) sum[r] = v_fma(weight, v_tanh(v_add(load_some(q + r * ldq, count), key)), sum[r]);
}

FA_INLINE void score_tile(real *e, fa_index lde, const real *q, fa_index ldq, const int mr, const real *k, fa_index ldk,
                          fa_index keys, const real *v, fa_index A)
{
    for (fa_index s = 0; s < keys; s++, k += ldk) {
        long_sum total[TILE];
        FA_UNROLL
        for (int r = 0; r < mr; r++) total[r] = (long_sum){v_zero(), v_zero()};
        for (fa_index first = 0; first < A; first += SCORE_LENGTH * VL) {
            const fa_index end = fa_min(A, first + SCORE_LENGTH * VL);
            vreal sum[TILE];
            FA_UNROLL
            for (int r = 0; r < mr; r++) sum[r] = v_zero();
            fa_index a = first;
            for (; a + VL <= end; a += VL) score_step(sum, mr, q + a, ldq, k + a, v + a, VL);
            if (a < end) score_step(sum, mr, q + a, ldq, k + a, v + a, end - a);
            FA_UNROLL
            for (int r = 0; r < mr; r++) add_block(&total[r], sum[r]);
        }
        FA_UNROLL
        for (int r = 0; r < mr; r++) e[r * lde + s] = v_reduce_add(v_add(total[r].high, total[r].low));
    }
}

void KERNEL(additive_scores)(real *e, fa_index lde, const real *q, fa_index ldq, fa_index rows, const real *k, fa_index ldk,
                             fa_index keys, const real *v, fa_index A)
{
    for (fa_index t = 0; t < rows; t += TILE, e += TILE * lde, q += TILE * ldq) {
#define CALL(mr) score_tile(e, lde, q, ldq, mr, k, ldk, keys, v, A)
        TILE_OF(rows - t, CALL)
#undef CALL
    }
}

void KERNEL(additive_mask_bool)(real *e, fa_index lde, fa_index rows, fa_index keys, const uint8_t *mask, fa_index ldmask)
{
    for (fa_index t = 0; t < rows; t++, e += lde, mask += ldmask)
        for (fa_index s = 0; s < keys; s++) e[s] = mask[s] ? e[s] : -REAL_INFINITY;
}

void KERNEL(additive_mask_add)(real *e, fa_index lde, fa_index rows, fa_index keys, const real *mask, fa_index ldmask)
{
    const vreal none = v_set1(-REAL_INFINITY);
    for (fa_index t = 0; t < rows; t++, e += lde, mask += ldmask)
        for (fa_index s = 0; s < keys; s += VL) {
            const vreal m = load_some(mask + s, keys - s);
            store_some(e + s, v_select(v_eq(m, none), none, v_add(load_some(e + s, keys - s), m)), keys - s);
        }
}

void KERNEL(additive_settle)(real *w, fa_index ldw, const real *e, fa_index lde, fa_index rows, fa_index keys)
{
    const vreal none = v_set1(-REAL_INFINITY);
    for (fa_index t = 0; t < rows; t++, w += ldw, e += lde)
        for (fa_index s = 0; s < keys; s += VL) {
            const fa_index left = keys - s;
            store_some(w + s, v_select(v_eq(load_some(e + s, left), none), v_zero(), load_some(w + s, left)), left);
        }
}

/* ---- weighted sums of rows ---- */

#define COLUMNS FA_NV /* vectors of a row side by side */

typedef struct {
    const real *w, *x;
    fa_index w_row, w_k, ldx, rows; /* rows of x, at most K_LENGTH */
    const unsigned char *takes;     /* [row of x]: bit r is set where row r of the tile takes it */
    int whole;                      /* all take all */
    int add;                        /* to what is in dst */
} weighted_block;

FA_INLINE void weighted_columns(real *dst, fa_index lddst, const weighted_block *b, fa_index column, const int mr, const int nv,
                                fa_index count, const int whole)
{
    vreal sum[TILE][COLUMNS];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int i = 0; i < nv; i++) sum[r][i] = v_zero();
    }
    const real *w = b->w, *x = b->x + column;
    for (fa_index k = 0; k < b->rows; k++, w += b->w_k, x += b->ldx) {
        const unsigned takes = b->takes[k];
        if (!whole && !takes) continue;
        vreal row[COLUMNS];
        FA_UNROLL
        for (int i = 0; i < nv; i++) row[i] = load_some(x + i * VL, count);
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            if (!whole && !(takes >> r & 1)) continue;
            const vreal weight = v_broadcast(w + r * b->w_row);
            FA_UNROLL
            for (int i = 0; i < nv; i++) sum[r][i] = v_fma(weight, row[i], sum[r][i]);
        }
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int i = 0; i < nv; i++) {
            real *p = dst + r * lddst + column + i * VL;
            store_some(p, b->add ? v_add(load_some(p, count), sum[r][i]) : sum[r][i], count);
        }
    }
}

FA_INLINE void weighted_tile(real *dst, fa_index lddst, const weighted_block *b, const int mr, fa_index C, const int whole)
{
    fa_index c = 0;
    for (; c + COLUMNS * VL <= C; c += COLUMNS * VL) weighted_columns(dst, lddst, b, c, mr, COLUMNS, VL, whole);
    for (; c + VL <= C; c += VL) weighted_columns(dst, lddst, b, c, mr, 1, VL, whole);
    if (c < C) weighted_columns(dst, lddst, b, c, mr, 1, C - c, whole);
}

void KERNEL(additive_weighted_rows)(real *dst, fa_index lddst, const real *w, const real *gate, fa_index w_row, fa_index w_k,
                                    real none, fa_index rows, const real *x, fa_index ldx, fa_index K, fa_index C)
{
    for (fa_index t = 0; t < rows; t += TILE, dst += TILE * lddst, w += TILE * w_row, gate += TILE * w_row) {
        const int mr = (int)fa_min(TILE, rows - t);
        for (fa_index k0 = 0; k0 == 0 || k0 < K; k0 += K_LENGTH) {
            unsigned char takes[K_LENGTH];
            weighted_block b = {w + k0 * w_k, x + k0 * ldx, w_row, w_k, ldx, fa_min(K_LENGTH, K - k0), takes, 1, k0 > 0};
            for (fa_index k = 0; k < b.rows; k++) {
                unsigned bits = 0;
                for (int r = 0; r < mr; r++) bits |= (unsigned)(gate[r * w_row + (k0 + k) * w_k] != none) << r;
                takes[k] = (unsigned char)bits;
                b.whole &= bits == (1u << mr) - 1;
            }
            if (b.whole) {
#define CALL(mr) weighted_tile(dst, lddst, &b, mr, C, 1)
                TILE_OF(mr, CALL)
#undef CALL
            } else {
#define CALL(mr) weighted_tile(dst, lddst, &b, mr, C, 0)
                TILE_OF(mr, CALL)
#undef CALL
            }
        }
    }
}

/* ---- backward ---- */

#define PAIR 2 /* keys side by side in products of rows */

/* dw[r, s] = g[r] . x[s] for a tile of g and nx rows of x. */
FA_INLINE void row_products(real *dw, fa_index lddw, const real *g, fa_index ldg, const int mr, const real *x, fa_index ldx,
                            const int nx, fa_index C)
{
    vreal total[TILE][PAIR];
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int i = 0; i < nx; i++) total[r][i] = v_zero();
    }
    for (fa_index first = 0; first < C; first += SUM_LENGTH * VL) {
        const fa_index end = fa_min(C, first + SUM_LENGTH * VL);
        vreal sum[TILE][PAIR];
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            FA_UNROLL
            for (int i = 0; i < nx; i++) sum[r][i] = v_zero();
        }
        for (fa_index c = first; c < end; c += VL) {
            vreal row[PAIR];
            FA_UNROLL
            for (int i = 0; i < nx; i++) row[i] = load_some(x + i * ldx + c, end - c);
            FA_UNROLL
            for (int r = 0; r < mr; r++) {
                const vreal gradient = load_some(g + r * ldg + c, end - c);
                FA_UNROLL
                for (int i = 0; i < nx; i++) sum[r][i] = v_fma(gradient, row[i], sum[r][i]);
            }
        }
        FA_UNROLL
        for (int r = 0; r < mr; r++) {
            FA_UNROLL
            for (int i = 0; i < nx; i++) total[r][i] = v_add(total[r][i], sum[r][i]);
        }
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int i = 0; i < nx; i++) dw[r * lddw + i] = v_reduce_add(total[r][i]);
    }
}

FA_INLINE void product_tile(real *dw, fa_index lddw, const real *g, fa_index ldg, const int mr, const real *x, fa_index ldx,
                            fa_index keys, fa_index C)
{
    fa_index s = 0;
    for (; s + PAIR <= keys; s += PAIR) row_products(dw + s, lddw, g, ldg, mr, x + s * ldx, ldx, PAIR, C);
    if (s < keys) row_products(dw + s, lddw, g, ldg, mr, x + s * ldx, ldx, 1, C);
}

/* de = w (dw - sum w dw) in place, 0 where w is. The terms of the sum have both signs: its chains are short. */
FA_INLINE void score_gradients_of_row(real *de, const real *w, fa_index keys)
{
    long_sum total = {v_zero(), v_zero()};
    for (fa_index s = 0; s < keys; s += VL) {
        const vreal weight = load_some(w + s, keys - s);
        const vreal term = v_mul(weight, load_some(de + s, keys - s));
        add_block(&total, v_select(v_eq(weight, v_zero()), v_zero(), term));
    }
    const vreal sum = v_set1(long_total(&total));
    for (fa_index s = 0; s < keys; s += VL) {
        const vreal weight = load_some(w + s, keys - s);
        const vreal gradient = v_mul(weight, v_sub(load_some(de + s, keys - s), sum));
        store_some(de + s, v_select(v_eq(weight, v_zero()), v_zero(), gradient), keys - s);
    }
}

void KERNEL(additive_score_gradients)(real *de, fa_index ldde, const real *w, fa_index ldw, const real *g, fa_index ldg,
                                      fa_index rows, const real *x, fa_index ldx, fa_index keys, fa_index C)
{
    for (fa_index t = 0; t < rows; t += TILE) {
#define CALL(mr) product_tile(de + t * ldde, ldde, g + t * ldg, ldg, mr, x, ldx, keys, C)
        TILE_OF(rows - t, CALL)
#undef CALL
    }
    for (fa_index t = 0; t < rows; t++) score_gradients_of_row(de + t * ldde, w + t * ldw, keys);
}

typedef struct {
    vreal tanh, slope;
} tanh_pair;

/* tanh x and (1 - tanh^2 x) / 4 = d - d^2 with d = 1 / (e^2|x| + 1): 1 - tanh^2 of a rounded tanh has few digits where tanh is near 1,
   and here an error of d hardly counts where tanh is near 0, as gradients of scores, which add up to 0, need it. */
FA_INLINE tanh_pair tanh_of(vreal x)
{
    const vreal a = v_min(v_set1(GATE_TANH_END), v_abs(x));
    const vreal n = gate_exp(v_add(a, a), 1), d = v_div(v_set1(1), v_add(n, v_set1(2)));
    return (tanh_pair){v_copysign(v_mul(n, d), x), v_fnma(d, d, d)};
}

/* One vector of columns of a tile of queries: their dq; to dk is added what lacks the factor 4 v, and the new sum of dv is returned. */
FA_INLINE vreal tanh_gradient_tile(real *dq, fa_index lddq, real *dk, fa_index lddk, vreal dv, const real *de, fa_index ldde,
                                   const real *q, fa_index ldq, const int mr, const real *k, fa_index ldk, vreal v, fa_index keys,
                                   fa_index count)
{
    vreal query[TILE], total[TILE];
    FA_UNROLL
    for (int r = 0; r < mr; r++) query[r] = load_some(q + r * ldq, count), total[r] = v_zero();
    for (fa_index first = 0; first < keys; first += SUM_LENGTH) {
        const fa_index end = fa_min(keys, first + SUM_LENGTH);
        vreal sum[TILE], sum_v = v_zero();
        FA_UNROLL
        for (int r = 0; r < mr; r++) sum[r] = v_zero();
        for (fa_index s = first; s < end; s++) {
            const vreal key = load_some(k + s * ldk, count);
            vreal along = v_zero();
            FA_UNROLL
            for (int r = 0; r < mr; r++) {
                if (de[r * ldde + s] == 0) continue;
                const vreal d = v_broadcast(de + r * ldde + s);
                const tanh_pair p = tanh_of(v_add(query[r], key));
                const vreal u = v_mul(d, p.slope);
                sum[r] = v_add(sum[r], u);
                along = v_add(along, u);
                sum_v = v_fma(d, p.tanh, sum_v);
            }
            store_some(dk + s * lddk, v_add(load_some(dk + s * lddk, count), along), count);
        }
        FA_UNROLL
        for (int r = 0; r < mr; r++) total[r] = v_add(total[r], sum[r]);
        dv = v_add(dv, sum_v);
    }
    FA_UNROLL
    for (int r = 0; r < mr; r++) store_some(dq + r * lddq, v_mul(v, total[r]), count);
    return dv;
}

FA_INLINE void tanh_gradient_columns(real *dq, fa_index lddq, real *dk, fa_index lddk, real *dv, const real *de, fa_index ldde,
                                     const real *q, fa_index ldq, fa_index rows, const real *k, fa_index ldk, const real *v,
                                     fa_index keys, fa_index count)
{
    const vreal weight = v_mul(v_set1(4), load_some(v, count));
    vreal sum = v_zero();
    for (fa_index s = 0; s < keys; s++) store_some(dk + s * lddk, v_zero(), count);
    for (fa_index t = 0; t < rows; t += TILE, dq += TILE * lddq, de += TILE * ldde, q += TILE * ldq) {
#define CALL(mr) sum = tanh_gradient_tile(dq, lddq, dk, lddk, sum, de, ldde, q, ldq, mr, k, ldk, weight, keys, count)
        TILE_OF(rows - t, CALL)
#undef CALL
    }
    for (fa_index s = 0; s < keys; s++) store_some(dk + s * lddk, v_mul(weight, load_some(dk + s * lddk, count)), count);
    store_some(dv, sum, count);
}

/* dq alone: of SUM_LENGTH keys, the sums of one query's columns, added to those of the keys before, which wait in dq. */
FA_INLINE void query_gradient_block(real *dq, const real *de, const real *q, const real *k, fa_index ldk, fa_index keys, int add,
                                    fa_index count)
{
    const vreal query = load_some(q, count);
    vreal sum = v_zero();
    for (fa_index s = 0; s < keys; s++) {
        if (de[s] == 0) continue;
        const tanh_pair p = tanh_of(v_add(query, load_some(k + s * ldk, count)));
        sum = v_add(sum, v_mul(v_broadcast(de + s), p.slope));
    }
    store_some(dq, v_add(add ? load_some(dq, count) : v_zero(), sum), count);
}

/* A step of a decoder: few queries, so that keys are read along their rows, not again for each vector of columns. The sums are those
   of tanh_gradient_tile. */
static void query_gradients(real *dq, const real *de, const real *q, const real *k, fa_index ldk, const real *v, fa_index keys,
                            fa_index columns)
{
    for (fa_index s = 0; s == 0 || s < keys; s += SUM_LENGTH) {
        const fa_index some = fa_min(SUM_LENGTH, keys - s);
        fa_index a = 0;
        for (; a + VL <= columns; a += VL) query_gradient_block(dq + a, de + s, q + a, k + s * ldk + a, ldk, some, s > 0, VL);
        if (a < columns) query_gradient_block(dq + a, de + s, q + a, k + s * ldk + a, ldk, some, s > 0, columns - a);
    }
    for (fa_index a = 0; a < columns; a += VL) {
        const vreal weight = v_mul(v_set1(4), load_some(v + a, columns - a));
        store_some(dq + a, v_mul(weight, load_some(dq + a, columns - a)), columns - a);
    }
}

void KERNEL(additive_tanh_gradients)(real *dq, fa_index lddq, real *dk, fa_index lddk, real *dv, const real *de, fa_index ldde,
                                     const real *q, fa_index ldq, fa_index rows, const real *k, fa_index ldk, const real *v,
                                     fa_index keys, fa_index columns)
{
    fa_index a = 0;
    for (fa_index t = 0; t < rows && !dk; t++)
        query_gradients(dq + t * lddq, de + t * ldde, q + t * ldq, k, ldk, v, keys, columns);
    if (!dk) return;
    for (; a + VL <= columns; a += VL)
        tanh_gradient_columns(dq + a, lddq, dk + a, lddk, dv + a, de, ldde, q + a, ldq, rows, k + a, ldk, v + a, keys, VL);
    if (a < columns)
        tanh_gradient_columns(dq + a, lddq, dk + a, lddk, dv + a, de, ldde, q + a, ldq, rows, k + a, ldk, v + a, keys,
                              columns - a);
}
