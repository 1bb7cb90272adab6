/* Layer norm and RMS norm of rows, z = x, or x + residual where there is one:

     layer   y = (z - mean) rstd w + b     mean = sum z / n     rstd = 1 / sqrt(sum (z - mean)^2 / n + eps)
     rms     y = z rstd w                                       rstd = 1 / sqrt(sum z^2 / n + eps)

   and with x^ = (z - mean) rstd (rms: z rstd), g = dy w:

     layer   dz = rstd (g - sum g / n - x^ sum g x^ / n)     dw = sum over rows of dy x^     db = sum over rows of dy
     rms     dz = rstd (g - x^ sum g x^ / n)                 dw likewise

   The mean is found in two steps: m, the rounded mean, then the mean of z - m. Of a row with a large common offset it is taken off
   as well, as `low`, and keeps the digits that the offset would cost; the variance is about the sum of both. NaN or an infinity in a
   row makes the row NaN (rms: an infinity makes the others 0).

   Where squares or sums of a row overflow, all of it is computed again times LARGE_SCALE, a power of two: rows of any finite numbers
   have a norm.

   Arrays of 16 bits: z is rounded, as the sum is kept; statistics, dw and db are reals; y and dx are rounded once. */
#include "../common.h"
#include "rows.h"

#define CHAINS 4 /* partial sums side by side: the latency of an addition */

/* A sum over a row: CHAINS chains of a block, added up in pairs at its end. */
typedef struct {
    vreal chain[CHAINS];
    long_sum total;
} row_sum;

FA_INLINE void clear_chains(row_sum *s)
{
    FA_UNROLL
    for (int i = 0; i < CHAINS; i++) s->chain[i] = v_zero();
}

FA_INLINE void start_sum(row_sum *s)
{
    clear_chains(s);
    s->total = (long_sum){v_zero(), v_zero()};
}

FA_INLINE void end_block(row_sum *s)
{
    add_block(&s->total, v_add(v_add(s->chain[0], s->chain[1]), v_add(s->chain[2], s->chain[3])));
    clear_chains(s);
}

/* Runs step(walk, j, count, i) for each vector of a row, the columns j to j + count, whose terms belong to chain i of the sums; those (b
   may be NULL) are of `walk`. The vectors of a row fall to the same chains whatever the number of columns. */
typedef void row_step(void *walk, fa_index j, fa_index count, const int i);
FA_INLINE void for_row(fa_index n, row_step *step, void *walk, row_sum *a, row_sum *b)
{
    for (fa_index first = 0; first < n; first += SUM_BLOCK * VL) {
        const fa_index end = fa_min(n, first + SUM_BLOCK * VL);
        fa_index j = first;
        for (; j + CHAINS * VL <= end; j += CHAINS * VL) {
            FA_UNROLL
            for (int i = 0; i < CHAINS; i++) step(walk, j + i * VL, VL, i);
        }
        FA_UNROLL
        for (int i = 0; i < CHAINS; i++)
            if (j + i * VL < end) step(walk, j + i * VL, end - (j + i * VL), i);
        end_block(a);
        if (b) end_block(b);
    }
}

/* The first lanes of a vector; the others 0. */
FA_INLINE vreal first_lanes(vreal a, fa_index count) { return count >= VL ? a : v_select(v_first(count), a, v_zero()); }

/* z = x + residual into `sum`, unless there is none; returns where z is. */
FA_INLINE const stored *add_residual(stored *sum, const stored *x, const stored *residual, fa_index n)
{
    if (!residual) return x;
    for (fa_index j = 0; j < n; j += VL)
        store_stored_some(sum + j, v_add(load_stored_some(x + j, n - j), load_stored_some(residual + j, n - j)), n - j);
    return sum;
}

/* Longer than real: an error of rstd is one of the whole row. */
#if defined(FA_REAL_F32)
typedef double longer;
#define ROOT __builtin_sqrt
#else
typedef long double longer;
#define ROOT __builtin_sqrtl
#endif

static longer root_of_mean(longer square_sum, fa_index n, longer eps) { return ROOT(square_sum / (longer)n + eps); }

/* d / root, rounded once where there is a multiply-add: 1 / root in two pieces. Elsewhere the division is the shortest form. */
typedef struct {
    vreal high, low;
} row_scale;

FA_INLINE row_scale scale_of_row(longer root)
{
#if FA_HAS_FMA
    const longer inverse = 1 / root;
    return (row_scale){v_set1((real)inverse), v_set1((real)(inverse - (longer)(real)inverse))};
#else
    return (row_scale){v_set1((real)root), v_zero()};
#endif
}

FA_INLINE vreal scaled(vreal d, row_scale s) { return FA_HAS_FMA ? v_fma(d, s.high, v_mul(d, s.low)) : v_div(d, s.high); }

/* Rows that need it have numbers of 2^58 (double: 2^506) at least, for millions of columns; squares of the largest in these units, 2^32
   (2^256), add up without overflow, and what becomes 0 is nothing beside them. */
#if defined(FA_REAL_F32)
#define LARGE_SCALE 0x1p-96f
#else
#define LARGE_SCALE 0x1p-768
#endif

FA_INLINE vreal load_z(const stored *z, fa_index count, const int large)
{
    const vreal x = load_stored_some(z, count);
    return large ? v_mul(x, v_set1(LARGE_SCALE)) : x;
}
FA_INLINE longer eps_of(double eps, const int large) { return large ? (longer)eps * LARGE_SCALE * LARGE_SCALE : (longer)eps; }

/* What the statistics of a row are made of; `large`: of z times LARGE_SCALE. */
typedef struct {
    const stored *z;
    int large;
    vreal mean;
    row_sum sum, square;
} row_statistics;

FA_INLINE void add_numbers(void *walk, fa_index j, fa_index count, const int i)
{
    row_statistics *s = walk;
    s->sum.chain[i] = v_add(s->sum.chain[i], load_z(s->z + j, count, s->large));
}

FA_INLINE void add_deviations(void *walk, fa_index j, fa_index count, const int i)
{
    row_statistics *s = walk;
    const vreal d = first_lanes(v_sub(load_z(s->z + j, count, s->large), s->mean), count);
    s->sum.chain[i] = v_add(s->sum.chain[i], d);
    s->square.chain[i] = v_fma(d, d, s->square.chain[i]);
}

FA_INLINE void add_squares(void *walk, fa_index j, fa_index count, const int i)
{
    row_statistics *s = walk;
    const vreal a = load_z(s->z + j, count, s->large);
    s->square.chain[i] = v_fma(a, a, s->square.chain[i]);
}

/* The root of variance + eps; *mean and *low of the two steps. */
FA_INLINE longer layer_statistics(const stored *z, fa_index n, double eps, real *mean, real *low, const int large)
{
    row_statistics s = {.z = z, .large = large};
    start_sum(&s.sum);
    for_row(n, add_numbers, &s, &s.sum, NULL);
    *mean = long_total(&s.sum.total) / (real)n;
    s.mean = v_set1(*mean);
    start_sum(&s.sum);
    start_sum(&s.square);
    for_row(n, add_deviations, &s, &s.sum, &s.square);
    const longer rest = (longer)long_total(&s.sum.total) / (longer)n;
    const longer root = root_of_mean((longer)long_total(&s.square.total) - rest * rest * (longer)n, n, eps_of(eps, large));
    /* Where the mean is no larger than the deviations, they are rounded as coarsely as it is: their mean is noise. */
    *low = (longer)*mean > root || (longer)*mean < -root ? (real)rest : 0;
    return root;
}

FA_INLINE longer rms_statistics(const stored *z, fa_index n, double eps, const int large)
{
    row_statistics s = {.z = z, .large = large};
    start_sum(&s.square);
    for_row(n, add_squares, &s, &s.square, NULL);
    return root_of_mean((longer)long_total(&s.square.total), n, eps_of(eps, large));
}

FA_INLINE vreal apply_weight(vreal a, const stored *w, const stored *b, fa_index count)
{
    if (w && b) return v_fma(a, load_stored_some(w, count), load_stored_some(b, count));
    if (w) return v_mul(a, load_stored_some(w, count));
    return b ? v_add(a, load_stored_some(b, count)) : a;
}

/* One row of y with w and b known to be there or not. */
FA_INLINE void write_layer(stored *y, const stored *z, fa_index n, vreal m, vreal low, row_scale scale, const stored *w,
                           const stored *b, const int large)
{
    fa_index j = 0;
    for (; j + VL <= n; j += VL) {
        const vreal a = scaled(v_sub(v_sub(load_z(z + j, VL, large), m), low), scale);
        v_store_stored(y + j, apply_weight(a, w ? w + j : NULL, b ? b + j : NULL, VL));
    }
    if (j < n) {
        const vreal a = scaled(v_sub(v_sub(load_z(z + j, n - j, large), m), low), scale);
        v_store_stored_n(y + j, apply_weight(a, w ? w + j : NULL, b ? b + j : NULL, n - j), n - j);
    }
}

/* A row whose sums overflow, or which has NaN or an infinity. Returns the root. */
FA_NOINLINE longer large_layer_row(stored *y, const stored *z, fa_index n, double eps, const stored *w, const stored *b,
                                   real *mean)
{
    real m, low;
    const longer root = layer_statistics(z, n, eps, &m, &low, 1);
    write_layer(y, z, n, v_set1(m), v_set1(low), scale_of_row(root), w, b, 1);
    *mean = (m + low) / LARGE_SCALE;
    return root / LARGE_SCALE;
}

void KERNEL(layer_norm_rows)(stored *y, stored *sum, real *mean, real *rstd, const stored *x, const stored *residual,
                             const stored *w, const stored *b, fa_index rows, fa_index n, double eps)
{
    for (fa_index i = 0; i < rows; i++, y += n, x += n) {
        const stored *z = add_residual(sum, x, residual, n);
        real m, low;
        longer root = layer_statistics(z, n, eps, &m, &low, 0);
        const vreal vm = v_set1(m), vlow = v_set1(low);
        if (FA_UNLIKELY(!(root < (longer)REAL_INFINITY))) {
            low = 0;
            root = large_layer_row(y, z, n, eps, w, b, &m);
        } else if (w && b) {
            write_layer(y, z, n, vm, vlow, scale_of_row(root), w, b, 0);
        } else if (w) {
            write_layer(y, z, n, vm, vlow, scale_of_row(root), w, NULL, 0);
        } else {
            write_layer(y, z, n, vm, vlow, scale_of_row(root), NULL, b, 0);
        }
        if (mean) mean[i] = m + low, rstd[i] = (real)(1 / root);
        if (residual) sum += n, residual += n;
    }
}

FA_INLINE void write_rms(stored *y, const stored *z, fa_index n, longer root, const stored *w, const int large)
{
    const row_scale scale = scale_of_row(root);
    for (fa_index j = 0; j < n; j += VL)
        store_stored_some(y + j, apply_weight(scaled(load_z(z + j, n - j, large), scale), w ? w + j : NULL, NULL, n - j), n - j);
}

/* As large_layer_row. */
FA_NOINLINE longer large_rms_row(stored *y, const stored *z, fa_index n, double eps, const stored *w)
{
    const longer root = rms_statistics(z, n, eps, 1);
    write_rms(y, z, n, root, w, 1);
    return root / LARGE_SCALE;
}

void KERNEL(rms_norm_rows)(stored *y, stored *sum, real *rstd, const stored *x, const stored *residual, const stored *w,
                           fa_index rows, fa_index n, double eps)
{
    for (fa_index i = 0; i < rows; i++, y += n, x += n) {
        const stored *z = add_residual(sum, x, residual, n);
        longer root = rms_statistics(z, n, eps, 0);
        if (FA_UNLIKELY(!(root < (longer)REAL_INFINITY)))
            root = large_rms_row(y, z, n, eps, w);
        else
            write_rms(y, z, n, root, w, 0);
        if (rstd) rstd[i] = (real)(1 / root);
        if (residual) sum += n, residual += n;
    }
}

/* A row of the backward: sums of g x^ and of g, and, in the same pass, the gradients of w and b. rms: mean is 0, and the sum of g
   is left out. */
typedef struct {
    real *dw, *db;
    const stored *dy, *x, *w;
    vreal mean, rstd;
    int rms;
    row_sum along, sum;
} backward_sums;

FA_INLINE void add_gradients(void *walk, fa_index j, fa_index count, const int i)
{
    backward_sums *s = walk;
    const vreal d = load_stored_some(s->dy + j, count), z = load_stored_some(s->x + j, count);
    const vreal a = v_mul(s->rms ? z : first_lanes(v_sub(z, s->mean), count), s->rstd);
    const vreal g = s->w ? v_mul(d, load_stored_some(s->w + j, count)) : d;
    s->along.chain[i] = v_fma(g, a, s->along.chain[i]);
    if (!s->rms) s->sum.chain[i] = v_add(s->sum.chain[i], g);
    if (s->dw) store_some(s->dw + j, v_fma(d, a, load_some(s->dw + j, count)), count);
    if (s->db) store_some(s->db + j, v_add(d, load_some(s->db + j, count)), count);
}

FA_INLINE void backward_row(stored *dx, real *dw, real *db, const stored *dy, const stored *x, const stored *w,
                            const stored *dsum, fa_index n, real mean, real rstd, const int rms)
{
    const vreal m = v_set1(mean), r = v_set1(rstd);
    backward_sums s = {.dw = dw, .db = db, .dy = dy, .x = x, .w = w, .mean = m, .rstd = r, .rms = rms};
    start_sum(&s.along);
    start_sum(&s.sum);
    for_row(n, add_gradients, &s, &s.along, &s.sum);
    const vreal slope = v_set1(long_total(&s.along.total) / (real)n), level = v_set1(long_total(&s.sum.total) / (real)n);
    for (fa_index j = 0; j < n; j += VL) {
        const fa_index count = n - j;
        const vreal z = load_stored_some(x + j, count), a = v_mul(rms ? z : v_sub(z, m), r);
        const vreal d = load_stored_some(dy + j, count), g = w ? v_mul(d, load_stored_some(w + j, count)) : d;
        const vreal dz = v_mul(r, v_fnma(a, slope, rms ? g : v_sub(g, level)));
        store_stored_some(dx + j, dsum ? v_add(dz, load_stored_some(dsum + j, count)) : dz, count);
    }
}

void KERNEL(layer_norm_backward_rows)(stored *dx, real *dw, real *db, const stored *dy, const stored *x, const stored *w,
                                      const stored *dsum, const real *mean, const real *rstd, fa_index rows, fa_index n)
{
    for (fa_index i = 0; i < rows; i++, dx += n, dy += n, x += n) {
        if (w && dw && db)
            backward_row(dx, dw, db, dy, x, w, dsum, n, mean[i], rstd[i], 0);
        else
            backward_row(dx, w ? dw : NULL, db, dy, x, w, dsum, n, mean[i], rstd[i], 0);
        if (dsum) dsum += n;
    }
}

void KERNEL(rms_norm_backward_rows)(stored *dx, real *dw, const stored *dy, const stored *x, const stored *w, const stored *dsum,
                                    const real *rstd, fa_index rows, fa_index n)
{
    for (fa_index i = 0; i < rows; i++, dx += n, dy += n, x += n) {
        backward_row(dx, dw, NULL, dy, x, w, dsum, n, 0, rstd[i], 1);
        if (dsum) dsum += n;
    }
}

void KERNEL(add_rows)(real *y, const real *x, fa_index ldx, fa_index rows, fa_index n)
{
    for (fa_index j = 0; j < n; j += VL) {
        vreal sum = v_zero();
        for (fa_index i = 0; i < rows; i++) sum = v_add(sum, load_some(x + i * ldx + j, n - j));
        store_some(y + j, v_add(load_some(y + j, n - j), sum), n - j);
    }
}

void KERNEL(scatter_add_rows)(real *dst, fa_index ld, const fa_index *id, const real *src, fa_index ldsrc, fa_index rows,
                              fa_index n)
{
    for (fa_index i = 0; i < rows; i++) {
        real *to = dst + id[i] * ld;
        const real *from = src + i * ldsrc;
        for (fa_index j = 0; j < n; j += VL)
            store_some(to + j, v_add(load_some(to + j, n - j), load_some(from + j, n - j)), n - j);
    }
}
