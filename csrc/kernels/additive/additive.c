/* Additive attention over the keys of one sequence, q and k projected already:

     e[t, s] = sum over a of v[a] tanh(q[t, a] + k[s, a])                 (1)
     w = softmax of e over s,  context[t] = sum over s of w[t, s] x[s]    (2)

   and backward, from g, the gradient of the context, with the tanh of (1) computed anew:

     dw[t, s] = g[t] . x[s],  de = w (dw - sum over s of w dw),  dx[s] = sum over t of w[t, s] g[t]
     u = de (1 - tanh^2):  dq[t] = v sum over s of u,  dk[s] = v sum over t of u,  dv = sum over t and s of de tanh

   Lanes are columns, so that no array is transposed and no sum of the backward crosses lanes; a score is a reduction in a fixed tree.
   A pair with e = -inf is masked: it has the weight 0 and its rows are not part of any sum, whatever they hold. In the backward that
   is every pair of weight 0. A query without keys has the context 0. */
#include "../common.h"
#include "../gemm/tile.h"
#include "../rows/rows.h"

/* Queries (of dx: keys) side by side: chains enough for the latency of a tanh, and each row of k is read once for all. */
#define TILE 4
/* Chains of sums, added up in order: vectors of a score, whose error is one of the whole weight and which is added up in double length;
   vectors, or keys for each query of a tile; rows of a weighted sum, fewer where products are rounded as well. */
#define SCORE_LENGTH 4
#define SUM_LENGTH 8
#define K_LENGTH (FA_HAS_FMA ? 16 : 8)

/* ---- tanh ---- */

_Static_assert(TILE * 2 <= MOST_ABREAST, "two vectors of columns of a tile are interleaved");

/* Two vectors of columns side by side. Their tanh share a division, which takes as long as all the rest of one; both are of the same
   query and key, so that no value depends on other queries or keys. */
typedef struct {
    vreal at[2];
} columns_pair;

/* The first `count` columns of 2 VL; the others are 0. */
FA_INLINE columns_pair load_pair(const real *p, fa_index count)
{
    if (count >= 2 * VL) return (columns_pair){{v_load(p), v_load(p + VL)}};
    return (columns_pair){{load_some(p, count), count > VL ? load_some(p + VL, count - VL) : v_zero()}};
}
FA_INLINE void store_pair(real *p, columns_pair a, fa_index count)
{
    store_some(p, a.at[0], count);
    if (count > VL) store_some(p + VL, a.at[1], count - VL);
}

/* Of x = q + k: n = e^2|x| - 1, sum = n + 2 and d = 1 / sum, so that |tanh x| = n d; and (1 - tanh^2 x) / 4 = d - d^2: 1 - tanh^2 of a
   rounded tanh has few digits where tanh is near 1, and here an error of d hardly counts where tanh is near 0, as gradients of scores,
   which add up to 0, need it. */
typedef struct {
    vreal x[TILE * 2], n[TILE * 2], sum[TILE * 2], d[TILE * 2]; /* [query or key][vector] */
} tanh_parts;

FA_INLINE void parts_of_tanh(tanh_parts *p, const real *q, fa_index ldq, const int mr, columns_pair k, fa_index count)
{
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        const columns_pair query = load_pair(q + r * ldq, count);
        FA_UNROLL
        for (int i = 0; i < 2; i++) {
            const vreal x = v_add(query.at[i], k.at[i]), a = v_min(v_set1(GATE_TANH_END), v_abs(x));
            p->x[r * 2 + i] = x;
            p->n[r * 2 + i] = v_add(a, a);
        }
    }
    gate_exps(p->n, mr * 2, 1);
    FA_UNROLL
    for (int i = 0; i < mr * 2; i++) p->sum[i] = v_add(p->n[i], v_set1(2));
    FA_UNROLL
    for (int i = 0; i < mr * 2; i += 2) {
        const vreal inverse = v_div(v_set1(1), v_mul(p->sum[i], p->sum[i + 1]));
        p->d[i] = v_mul(p->sum[i + 1], inverse);
        p->d[i + 1] = v_mul(p->sum[i], inverse);
    }
}

FA_INLINE vreal tanh_from(const tanh_parts *p, const int i) { return v_copysign(v_mul(p->n[i], p->d[i]), p->x[i]); }

FA_INLINE vreal slope_from(const tanh_parts *p, const int i) { return v_fnma(p->d[i], p->d[i], p->d[i]); } /* a quarter of it */

/* To the last bit but for the rounding of n: scores add up hundreds of them, and weights magnify the errors of scores. */
FA_INLINE vreal careful_tanh_from(const tanh_parts *p, const int i)
{
    const vreal n = p->n[i], sum = p->sum[i], sum_low = v_sub(n, v_sub(sum, v_set1(2))), t = v_mul(n, p->d[i]);
    const vreal rest = v_fnma(t, sum_low, residual(t, sum, n));
    return v_copysign(v_fma(rest, p->d[i], t), p->x[i]);
}

/* ---- scores ---- */

FA_INLINE void score_step(vreal sum[TILE], const int mr, const real *q, fa_index ldq, const real *k, const real *v,
                          fa_index count)
{
    const columns_pair weight = load_pair(v, count);
    tanh_parts p;
    parts_of_tanh(&p, q, ldq, mr, load_pair(k, count), count);
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        FA_UNROLL
        for (int i = 0; i < 2; i++) sum[r] = v_fma(weight.at[i], careful_tanh_from(&p, r * 2 + i), sum[r]);
    }
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
            for (fa_index a = first; a < end; a += 2 * VL) score_step(sum, mr, q + a, ldq, k + a, v + a, end - a);
            FA_UNROLL
            for (int r = 0; r < mr; r++) add_block(&total[r], sum[r]);
        }
        FA_UNROLL
        for (int r = 0; r < mr; r++) e[r * lde + s] = v_reduce_add(lanes_total(&total[r]));
    }
}

void KERNEL(additive_scores)(real *e, fa_index lde, const real *q, fa_index ldq, fa_index rows, const real *k, fa_index ldk,
                             fa_index keys, const real *v, fa_index A)
{
    for (fa_index t = 0; t < rows; t += TILE, e += TILE * lde, q += TILE * ldq) {
        if (rows - t >= TILE) {
            score_tile(e, lde, q, ldq, TILE, k, ldk, keys, v, A);
            continue;
        }
        /* Few queries, as in a step of a decoder: keys side by side, each query with a tile of them. */
        for (fa_index r = 0; r < rows - t; r++) {
            fa_index s = 0;
            for (; s + TILE <= keys; s += TILE) score_tile(e + r * lde + s, 1, k + s * ldk, ldk, TILE, q + r * ldq, ldq, 1, v, A);
            score_tile(e + r * lde + s, lde, q + r * ldq, ldq, 1, k + s * ldk, ldk, keys - s, v, A);
        }
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
    real *dst;
    const real *w, *x;
    fa_index lddst, w_row, w_k, ldx, columns, rows; /* rows of x, at most K_LENGTH */
    const unsigned char *takes;                     /* [row of x]: bit r is set where row r of the tile takes it */
    int whole;                                      /* all take all */
    int add;                                        /* to what is in dst */
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

FA_INLINE void weighted_tile(const weighted_block *b, const int mr, const int whole)
{
    const fa_index lddst = b->lddst, C = b->columns;
    real *dst = b->dst;
    fa_index c = 0;
    for (; c + COLUMNS * VL <= C; c += COLUMNS * VL) weighted_columns(dst, lddst, b, c, mr, COLUMNS, VL, whole);
    for (; c + VL <= C; c += VL) weighted_columns(dst, lddst, b, c, mr, 1, VL, whole);
    if (c < C) weighted_columns(dst, lddst, b, c, mr, 1, C - c, whole);
}

FA_INLINE void weighted_whole(const void *tile, const int mr, const int nv)
{
    (void)nv;
    weighted_tile(tile, mr, 1);
}
FA_INLINE void weighted_part(const void *tile, const int mr, const int nv)
{
    (void)nv;
    weighted_tile(tile, mr, 0);
}

void KERNEL(additive_weighted_rows)(real *dst, fa_index lddst, const row_weights *weights, fa_index rows, const real *x,
                                    fa_index ldx, fa_index K, fa_index C)
{
    const real *w = weights->w, *gate = weights->gate;
    const fa_index w_row = weights->row, w_k = weights->step;
    const real none = weights->none;
    for (fa_index t = 0; t < rows; t += TILE, dst += TILE * lddst, w += TILE * w_row, gate += TILE * w_row) {
        const int mr = (int)fa_min(TILE, rows - t);
        for (fa_index k0 = 0; k0 == 0 || k0 < K; k0 += K_LENGTH) {
            unsigned char takes[K_LENGTH];
            weighted_block b = {.dst = dst,
                                .w = w + k0 * w_k,
                                .x = x + k0 * ldx,
                                .lddst = lddst,
                                .w_row = w_row,
                                .w_k = w_k,
                                .ldx = ldx,
                                .columns = C,
                                .rows = fa_min(K_LENGTH, K - k0),
                                .takes = takes,
                                .whole = 1,
                                .add = k0 > 0};
            for (fa_index k = 0; k < b.rows; k++) {
                unsigned bits = 0;
                for (int r = 0; r < mr; r++) bits |= (unsigned)(gate[r * w_row + (k0 + k) * w_k] != none) << r;
                takes[k] = (unsigned char)bits;
                b.whole &= bits == (1u << mr) - 1;
            }
            if (b.whole)
                tile_dispatch(weighted_whole, &b, mr, TILE, 1);
            else
                tile_dispatch(weighted_part, &b, mr, TILE, 1);
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

/* Rows of dw and of g, and all of x. */
typedef struct {
    real *dw;
    const real *g, *x;
    fa_index lddw, ldg, ldx, keys, C;
} product_rows;

FA_INLINE void multiply_rows(const void *tile, const int mr, const int nv)
{
    const product_rows *t = tile;
    (void)nv;
    product_tile(t->dw, t->lddw, t->g, t->ldg, mr, t->x, t->ldx, t->keys, t->C);
}

void KERNEL(additive_score_gradients)(real *de, fa_index ldde, const real *w, fa_index ldw, const real *g, fa_index ldg,
                                      fa_index rows, const real *x, fa_index ldx, fa_index keys, fa_index C)
{
    for (fa_index t = 0; t < rows; t += TILE) {
        const product_rows tile = {de + t * ldde, g + t * ldg, x, ldde, ldg, ldx, keys, C};
        tile_dispatch(multiply_rows, &tile, fa_min(TILE, rows - t), TILE, 1);
    }
    for (fa_index t = 0; t < rows; t++) score_gradients_of_row(de + t * ldde, w + t * ldw, keys);
}

/* 4 v, which the sums of u lack. */
FA_INLINE columns_pair load_weight(const real *v, fa_index count)
{
    const columns_pair a = load_pair(v, count);
    return (columns_pair){{v_mul(v_set1(4), a.at[0]), v_mul(v_set1(4), a.at[1])}};
}

FA_INLINE columns_pair plus(columns_pair a, columns_pair b)
{
    return (columns_pair){{v_add(a.at[0], b.at[0]), v_add(a.at[1], b.at[1])}};
}

FA_INLINE columns_pair multiply(columns_pair a, columns_pair b)
{
    return (columns_pair){{v_mul(a.at[0], b.at[0]), v_mul(a.at[1], b.at[1])}};
}

/* Whether none of a tile's pairs is masked. */
FA_INLINE int all_weigh(const real *de, fa_index ldde)
{
    int all = 1;
    FA_UNROLL
    for (int r = 0; r < TILE; r++) all &= de[r * ldde] != 0;
    return all;
}

typedef struct {
    columns_pair dq[TILE], dk, dv;
} gradient_sums;

/* Of one key and mr queries of weight. */
FA_INLINE void add_gradients(gradient_sums *sum, const int first, const int mr, const real *de, fa_index ldde, const real *q,
                             fa_index ldq, columns_pair key, fa_index count)
{
    tanh_parts p;
    parts_of_tanh(&p, q, ldq, mr, key, count);
    FA_UNROLL
    for (int r = 0; r < mr; r++) {
        const vreal d = v_broadcast(de + r * ldde);
        FA_UNROLL
        for (int i = 0; i < 2; i++) {
            const vreal slope = slope_from(&p, r * 2 + i);
            sum->dq[first + r].at[i] = v_fma(d, slope, sum->dq[first + r].at[i]);
            sum->dk.at[i] = v_fma(d, slope, sum->dk.at[i]);
            sum->dv.at[i] = v_fma(d, tanh_from(&p, r * 2 + i), sum->dv.at[i]);
        }
    }
}

/* Two vectors of columns of TILE queries, or of the last of them: their dq; to dk is added what lacks the factor 4 v, and to dv its
   sum. */
FA_INLINE void tanh_gradient_tile(const tanh_gradients *x, fa_index t, columns_pair *dv, columns_pair v, fa_index count)
{
    const real *de = x->de + t * x->ldde, *q = x->q + t * x->ldq, *k = x->k;
    const fa_index ldde = x->ldde, ldq = x->ldq, ldk = x->ldk, lddk = x->lddk, rows = x->rows - t, keys = x->keys;
    real *dq = x->dq + t * x->lddq, *dk = x->dk;
    const columns_pair zero = {{v_zero(), v_zero()}};
    columns_pair total[TILE];
    FA_UNROLL
    for (int r = 0; r < TILE; r++) total[r] = zero;
    for (fa_index first = 0; first < keys; first += SUM_LENGTH) {
        const fa_index end = fa_min(keys, first + SUM_LENGTH);
        gradient_sums sum = {.dv = zero};
        FA_UNROLL
        for (int r = 0; r < TILE; r++) sum.dq[r] = zero;
        for (fa_index s = first; s < end; s++) {
            const columns_pair key = load_pair(k + s * ldk, count);
            sum.dk = zero;
            if (rows >= TILE && all_weigh(de + s, ldde)) {
                add_gradients(&sum, 0, TILE, de + s, ldde, q, ldq, key, count);
            } else {
                FA_UNROLL
                for (int r = 0; r < TILE; r++)
                    if (r < rows && de[r * ldde + s] != 0)
                        add_gradients(&sum, r, 1, de + r * ldde + s, ldde, q + r * ldq, ldq, key, count);
            }
            store_pair(dk + s * lddk, plus(load_pair(dk + s * lddk, count), sum.dk), count);
        }
        FA_UNROLL
        for (int r = 0; r < TILE; r++) total[r] = plus(total[r], sum.dq[r]);
        *dv = plus(*dv, sum.dv);
    }
    for (fa_index r = 0; r < fa_min(rows, TILE); r++) store_pair(dq + r * x->lddq, multiply(v, total[r]), count);
}

/* Two vectors of columns, of which so many are there. */
FA_INLINE void tanh_gradient_columns(const tanh_gradients *x, fa_index count)
{
    const columns_pair zero = {{v_zero(), v_zero()}}, weight = load_weight(x->v, count);
    const fa_index lddk = x->lddk, keys = x->keys;
    real *dk = x->dk;
    columns_pair sum = zero;
    for (fa_index s = 0; s < keys; s++) store_pair(dk + s * lddk, zero, count);
    for (fa_index t = 0; t < x->rows; t += TILE) tanh_gradient_tile(x, t, &sum, weight, count);
    for (fa_index s = 0; s < keys; s++) store_pair(dk + s * lddk, multiply(weight, load_pair(dk + s * lddk, count)), count);
    store_pair(x->dv, sum, count);
}

/* n keys of weight side by side. */
FA_INLINE void add_query_gradient(columns_pair *sum, const int n, const real *de, columns_pair query, const real *k, fa_index ldk,
                                  fa_index count)
{
    tanh_parts p;
    parts_of_tanh(&p, k, ldk, n, query, count);
    FA_UNROLL
    for (int s = 0; s < n; s++) {
        FA_UNROLL
        for (int i = 0; i < 2; i++) sum->at[i] = v_fma(v_broadcast(de + s), slope_from(&p, s * 2 + i), sum->at[i]);
    }
}

/* dq alone: of SUM_LENGTH keys, the sums of one query's columns, added to those of the keys before, which wait in dq. */
FA_INLINE void query_gradient_block(real *dq, const real *de, const real *q, const real *k, fa_index ldk, fa_index keys, int add,
                                    fa_index count)
{
    const columns_pair query = load_pair(q, count);
    columns_pair sum = {{v_zero(), v_zero()}};
    for (fa_index s = 0; s < keys; s += TILE) {
        const fa_index some = fa_min(TILE, keys - s);
        if (some == TILE && all_weigh(de + s, 1)) {
            add_query_gradient(&sum, TILE, de + s, query, k + s * ldk, ldk, count);
        } else {
            for (fa_index i = s; i < s + some; i++)
                if (de[i] != 0) add_query_gradient(&sum, 1, de + i, query, k + i * ldk, ldk, count);
        }
    }
    store_pair(dq, add ? plus(load_pair(dq, count), sum) : sum, count);
}

/* A step of a decoder: few queries, so that keys are read along their rows, not again for each two vectors of columns. The sums are
   those of tanh_gradient_tile. */
static void query_gradients(real *dq, const real *de, const real *q, const real *k, fa_index ldk, const real *v, fa_index keys,
                            fa_index columns)
{
    for (fa_index s = 0; s == 0 || s < keys; s += SUM_LENGTH) {
        const fa_index some = fa_min(SUM_LENGTH, keys - s);
        for (fa_index a = 0; a < columns; a += 2 * VL)
            query_gradient_block(dq + a, de + s, q + a, k + s * ldk + a, ldk, some, s > 0, columns - a);
    }
    for (fa_index a = 0; a < columns; a += 2 * VL)
        store_pair(dq + a, multiply(load_weight(v + a, columns - a), load_pair(dq + a, columns - a)), columns - a);
}

void KERNEL(additive_tanh_gradients)(const tanh_gradients *x)
{
    for (fa_index t = 0; t < x->rows && !x->dk; t++)
        query_gradients(x->dq + t * x->lddq, x->de + t * x->ldde, x->q + t * x->ldq, x->k, x->ldk, x->v, x->keys, x->columns);
    if (!x->dk) return;
    for (fa_index a = 0; a < x->columns; a += 2 * VL) {
        tanh_gradients part = *x;
        part.dq += a, part.dk += a, part.dv += a;
        part.q += a, part.k += a, part.v += a;
        tanh_gradient_columns(&part, x->columns - a);
    }
}
