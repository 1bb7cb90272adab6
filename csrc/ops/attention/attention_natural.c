/* Rows of attention whose scores leave the range of their type in units of log2(e), or as products of scaled queries, and not by the plain
   formula: computed again, one by one (kernels/attention/attention_natural.c has the arithmetic).

   Forward finds them by their sums: NaN, or 0 although there are keys to attend to. Most of those that a call finds have met a NaN or an
   infinity, which is settled first: it costs one look at the keys of a head, not a row. What such a row saves for backward is marked by
   a sum below 0. */
#include "decode.h"

enum { KEYS_AT_ONCE = 16 };

/* What an unsettled row is so far. */
enum { ROW_IS_NAN = 1, ROW_IS_EMPTY };

#define NATURAL_LSE (sizeof(real) == sizeof(float) ? 0x1p26 : 0x1p55) /* beyond it an lse has lost the fractions, and more */

typedef struct {
    double *o;          /* [Dv] */
    real *scores, *row; /* [keys of a block]; [D or Dv], of bytes */
    unsigned char *bad; /* [Lk]: keys that are not finite */
} natural_scratch;

typedef struct {
    decode_call call; /* where the rows of a head are */
    const unsigned char *unsettled;
    fa_index parts; /* of DECODE_ROWS rows, per head */
    natural_scratch *worker;
} natural_call;

/* What happens to the scores of a row: in the kernel, and after it, where a mask of bytes stands beside one of numbers. */
typedef struct {
    natural_options o;
    const stored *bias;
    fa_index bias_step;
} row_options;

/* Of row i and the keys from j0 on. */
static row_options options_of(const fa_attention_arguments *a, fa_index b, fa_index h, fa_index i, fa_index j0)
{
    const byte_mask keep = byte_mask_of(a);
    row_options x = {.o = {.scale = a->scale, .softcap = a->softcap, .diagonal = diagonal_of(a, b, i) - j0}};
    const stored *add = (const stored *)a->mask;
    if (a->alibi_slopes) x.o.slope = (double)((const real *)a->alibi_slopes)[h];
    if (a->mask_kind == FA_MASK_ADD) add += mask_place(a->mask_stride, b, h, i, j0);
    if (keep.p) {
        x.o.keep = keep.p + mask_place(keep.stride, b, h, i, j0);
        x.o.mask_step = keep.stride[3];
        x.bias = a->mask_kind == FA_MASK_ADD ? add : NULL;
        x.bias_step = a->mask_stride[3];
    } else if (a->mask_kind == FA_MASK_ADD) {
        x.o.add = add;
        x.o.mask_step = a->mask_stride[3];
    }
    return x;
}

/* attention_natural_scores with all options. */
static void row_scores(const fa_kernels *k, real *s, real *products, const stored *q, const stored *keys, fa_index ldk,
                       fa_index begin, fa_index end, fa_index D, const row_options *x)
{
    k->attention_natural_scores(s, products, q, keys, ldk, begin, end, D, &x->o);
    for (fa_index j = begin; x->bias && j < end; j++) {
        real bias;
        if (!x->o.keep[j * x->o.mask_step]) continue;
        k->widen(&bias, x->bias + j * x->bias_step, 1);
        s[j] = bias == -REAL_INFINITY ? bias : s[j] + bias;
    }
}

/* Rows [j, j + *n) of keys or values, of which row i is at the result + i ld; of bytes one at a time. */
static const stored *rows_from(const natural_call *c, const natural_scratch *w, const decode_rows *rows,
                               const decode_rows *scales, fa_index j, fa_index size, fa_index *n, fa_index *ld)
{
    const void *row = find_row(rows, j, n);
#if FA_FLOAT_ARRAYS
    if (c->call.bytes) {
        fa_index together;
        c->call.kernels->decode_widen_i8(w->row, row, size, *(const real *)find_row(scales, j, &together));
        *n = 1;
        *ld = 0;
        return w->row;
    }
#endif
    (void)c, (void)w, (void)scales, (void)size;
    *ld = rows->ld / (fa_index)sizeof(stored);
    return (const stored *)row - j * *ld;
}

typedef struct {
    decode_rows keys, values, key_scales, value_scales;
} block_rows;

static block_rows find_block_rows(const natural_call *c, const part_place *at, fa_index j)
{
    const fa_attention_arguments *a = c->call.a;
    const size_t item = c->call.bytes ? 1 : sizeof(stored);
    block_rows rows = {.keys = OP(decode_rows_of)(&c->call, at, j, a->k, a->k_stride, item),
                       .values = OP(decode_rows_of)(&c->call, at, j, a->v, a->v_stride, item)};
#if FA_FLOAT_ARRAYS
    if (c->call.bytes) {
        rows.key_scales = OP(decode_scales_of)(&c->call, at, j, c->call.cache->k_scale);
        rows.value_scales = OP(decode_scales_of)(&c->call, at, j, c->call.cache->v_scale);
    }
#endif
    return rows;
}

/* The scores of the keys [begin, end) of a block, to w->scores. */
static void natural_scores(const natural_call *c, const natural_scratch *w, const block_rows *rows, const stored *q,
                           const row_options *o, fa_index begin, fa_index end)
{
    const fa_index D = c->call.a->D;
    for (fa_index j = begin, n, ld; j < end; j += n) {
        const stored *k = rows_from(c, w, &rows->keys, &rows->key_scales, j, D, &n, &ld);
        n = fa_min(n, end - j);
        row_scores(c->call.kernels, w->scores, NULL, q, k, ld, j, j + n, D, o);
    }
}

static void find_bad_keys(const natural_call *c, const natural_scratch *w, const part_place *at)
{
    const fa_attention_arguments *a = c->call.a;
    const fa_index length = key_length(a, at->b);
    for (fa_index j0 = 0; j0 < length; j0 += c->call.block) {
        const block_rows rows = find_block_rows(c, at, j0 / c->call.block);
        const fa_index keys = fa_min(c->call.block, length - j0);
        for (fa_index j = 0, n, ld; j < keys; j += n) {
            const stored *k = rows_from(c, w, &rows.keys, &rows.key_scales, j, a->D, &n, &ld);
            n = fa_min(n, keys - j);
            c->call.kernels->attention_find_nonfinite(w->bad + j0 + j, k + j * ld, ld, n, a->D);
        }
    }
}

/* Whether a score is NaN or +inf. */
static int has_spoilt(const real *s, fa_index begin, fa_index end)
{
    for (fa_index j = begin; j < end; j++)
        if (!(s[j] < REAL_INFINITY)) return 1;
    return 0;
}

/* Whether what is not finite among the keys, masks and slopes of the row at `at`, or its sink, makes it NaN; or q itself, `any` of which
   is not finite. */
static int is_spoilt(const natural_call *c, const natural_scratch *w, const part_place *at, const stored *q, int any,
                     fa_index begin, fa_index end)
{
    const fa_attention_arguments *a = c->call.a;
    const int adds = a->alibi_slopes || a->mask_kind == FA_MASK_ADD;
    if (a->sinks && !(((const real *)a->sinks)[at->h] < REAL_INFINITY)) return 1;
    for (fa_index j0 = begin / c->call.block * c->call.block; j0 < end; j0 += c->call.block) {
        const row_options o = options_of(a, at->b, at->h, at->i0, j0);
        const fa_index first = fa_max(0, begin - j0), last = fa_min(c->call.block, end - j0);
        if (adds) row_scores(c->call.kernels, w->scores, NULL, q, q, 0, first, last, 0, &o);
        if (adds && has_spoilt(w->scores, first, last)) return 1;
        const block_rows rows = find_block_rows(c, at, j0 / c->call.block);
        for (fa_index j = first; j < last; j++) {
            if (!any && !w->bad[j0 + j]) continue;
            natural_scores(c, w, &rows, q, &o, j, j + 1);
            if (has_spoilt(w->scores, j, j + 1)) return 1;
        }
    }
    return 0;
}

/* The keys [begin, end) of the block from key j0 on, at most KEYS_AT_ONCE, on top of those before them. With dropout O is that of `kept`,
   which has the keys that stay. */
static void add_values(const natural_call *c, const natural_scratch *w, const part_place *at, natural_state *state,
                       natural_state *kept, const stored *v, fa_index ld, fa_index begin, fa_index end, fa_index j0)
{
    const fa_attention_arguments *a = c->call.a;
    const fa_kernels *k = c->call.kernels;
    const int drops = a->dropout > 0;
    k->attention_natural_values(w->o, state, w->scores, v, ld, begin, end, drops ? 0 : a->Dv);
    if (!drops) return;
    const dropout_rule rule = rule_of_dropout(a->dropout, a->seed);
    real stays[KEYS_AT_ONCE], *of_key = stays - (j0 + begin);
    for (fa_index j = begin; j < end; j++) stays[j - begin] = 1;
    k->dropout_row(of_key, of_key, j0 + begin, end - begin, rule.seed, rule.threshold, rule.scale, at->i0, at->b, at->h);
    for (fa_index j = begin; j < end; j++)
        if (stays[j - begin] != 0) k->attention_natural_values(w->o, kept, w->scores, v, ld, j, j + 1, a->Dv);
}

/* What O of the keys that stay is divided by, as a state of theirs. */
static natural_state divisor_of(const fa_attention_arguments *a, const natural_state *state, const natural_state *kept)
{
    if (!(a->dropout > 0)) return *state;
    const double scale = (double)rule_of_dropout(a->dropout, a->seed).scale;
    return (natural_state){kept->top, kept->sum == 0 ? 0 : state->sum * exp(state->top - kept->top) / scale};
}

/* The row at->i0. One that is NaN is left so at the first score that makes it so: most rows of overflowing scores have one among a few
   keys. */
static void settle_row(const natural_call *c, const natural_scratch *w, const part_place *at)
{
    const fa_attention_arguments *a = c->call.a;
    const fa_kernels *k = c->call.kernels;
    const stored *q = query_row(a, at->b, at->h, at->i0);
    const fa_index place = state_row(a, at->b, at->h, at->i0);
    natural_state state = {.top = -REAL_INFINITY, .sum = 0}, kept = state;
    unsigned char bad;
    fa_index begin, end;
    k->attention_find_nonfinite(&bad, q, 0, 1, a->D);
    keys_by_position(a, at->b, at->i0, &begin, &end);
    if (is_spoilt(c, w, at, q, bad, begin, end)) return;
    memset(w->o, 0, (size_t)a->Dv * sizeof *w->o);
    if (a->sinks && ((const real *)a->sinks)[at->h] > -REAL_INFINITY)
        state = (natural_state){.top = (double)((const real *)a->sinks)[at->h], .sum = 1};
    for (fa_index j0 = begin / c->call.block * c->call.block; j0 < end; j0 += c->call.block) {
        const row_options o = options_of(a, at->b, at->h, at->i0, j0);
        const block_rows rows = find_block_rows(c, at, j0 / c->call.block);
        const fa_index last = fa_min(c->call.block, end - j0);
        for (fa_index first = fa_max(0, begin - j0), next; first < last; first = next) {
            next = fa_min(last, first + KEYS_AT_ONCE);
            natural_scores(c, w, &rows, q, &o, first, next);
            if (c->unsettled[place] == ROW_IS_NAN && has_spoilt(w->scores, first, next)) return;
            for (fa_index j = first, n, ld; j < next; j += n) {
                const stored *v = rows_from(c, w, &rows.values, &rows.value_scales, j, a->Dv, &n, &ld);
                n = fa_min(n, next - j);
                add_values(c, w, at, &state, &kept, v, ld, j, j + n, j0);
            }
        }
    }
    stored *out = output_row(a, at->b, at->h, at->i0);
    const natural_state divisor = divisor_of(a, &state, &kept);
    k->attention_natural_finish(out, NULL, NULL, NULL, w->o, &divisor, a->Dv);
    k->attention_natural_finish(out, a->lse ? (real *)a->lse + place : NULL, a->shift ? (real *)a->shift + place : NULL,
                                a->sum ? (real *)a->sum + place : NULL, w->o, &state, 0);
}

/* Task: DECODE_ROWS rows of a head. */
static void settle_rows(void *context, fa_index i, int worker)
{
    const natural_call *c = context;
    const fa_attention_arguments *a = c->call.a;
    const natural_scratch *w = &c->worker[worker];
    part_place at = {.b = i / c->parts / a->H, .h = i / c->parts % a->H};
    const fa_index first = i % c->parts * DECODE_ROWS, end = fa_min(first + DECODE_ROWS, query_rows(a, at.b));
    int looked = 0;
    at.hk = at.h / c->call.group;
    for (at.i0 = first; at.i0 < end; at.i0++) {
        if (!c->unsettled[state_row(a, at.b, at.h, at.i0)]) continue;
        if (!looked) find_bad_keys(c, w, &at);
        looked = 1;
        settle_row(c, w, &at);
    }
}

static void plan_scratch(natural_call *c, arena *plan, int threads)
{
    const fa_attention_arguments *a = c->call.a;
    c->worker = arena_take(plan, threads, sizeof *c->worker);
    for (int m = 0; m < threads; m++) {
        natural_scratch w;
        w.o = arena_take(plan, a->Dv, sizeof *w.o);
        w.scores = arena_take(plan, c->call.block, sizeof(real));
        w.row = arena_take(plan, fa_max(a->D, a->Dv), sizeof(real));
        w.bad = arena_take(plan, a->Lk, sizeof *w.bad);
        if (plan->base) c->worker[m] = w;
    }
}

fa_index OP(attention_state_rows)(const fa_attention_arguments *a)
{
    return a->q_starts ? a->H * a->lse_stride : a->B * a->H * a->Lq;
}

int OP(attention_mark_unsettled)(unsigned char *unsettled, const real *sum, const unsigned char *attends, fa_index rows)
{
    int any = 0;
    for (fa_index r = 0; r < rows; r++) {
        unsettled[r] = (unsigned char)(isnan(sum[r]) ? ROW_IS_NAN : sum[r] == 0 && attends[r] ? ROW_IS_EMPTY : 0);
        any |= unsettled[r];
    }
    return any;
}

fa_status OP(attention_settle)(const fa_attention_arguments *a, const fa_cache_arguments *cache, const unsigned char *unsettled)
{
    const fa_kernels *k = current_kernels();
    natural_call c = {.call = {.a = a, .cache = cache, .kernels = k, .group = a->H / a->Hk}, .unsettled = unsettled};
    c.call.bytes = cache && cache->k_scale;
    c.call.block = k->sizes.attention_keys;
    c.parts = fa_ceil_div(a->Lq, DECODE_ROWS);
    const int threads = fa_threads_for((double)a->B * (double)a->H * (double)a->Lq * (double)a->Lk * (double)(a->D + a->Dv));
    fa_scratch scratch;
    arena plan = {0};
    plan_scratch(&c, &plan, threads);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_scratch(&c, &plan, threads);
    fa_parallel_for(a->B * a->H * c.parts, threads, settle_rows, &c);
    fa_scratch_give(&scratch);
    return FA_OK;
}

void OP(attention_natural_rows)(const fa_attention_arguments *a, const fa_kernels *k, const score_block *x, real *products,
                                fa_index b, fa_index h, fa_index i0, fa_index j0)
{
    const fa_index row = state_row(a, b, h, i0), stride = k->sizes.attention_stride;
    const real *shift = (const real *)a->shift + row, *sum = (const real *)a->sum + row;
    for (fa_index r = 0; r < x->rows; r++) {
        if (!(sum[r] < 0)) continue;
        const row_options o = options_of(a, b, h, i0 + r, j0);
        row_scores(k, x->s + r * stride, products ? products + r * stride : NULL, query_row(a, b, h, i0 + r),
                   key_row(a, b, h / (a->H / a->Hk), j0), a->k_stride[2], x->begin[r], x->end[r], a->D, &o);
        k->attention_natural_powers(x->s + r * stride, x->begin[r], x->end[r], shift[r]);
    }
}

#if !FA_CONVERTS
void OP(attention_natural_weights)(const fa_attention_arguments *a, const fa_kernels *k, real *weights, const score_block *x,
                                   fa_index b, fa_index h, fa_index i, fa_index j0, real lse)
{
    const fa_index begin = *x->begin, end = *x->end;
    unsigned char bad = fabs((double)lse) > NATURAL_LSE;
    if (!isfinite(lse)) return;
    if (!bad) k->attention_find_nonfinite(&bad, (const stored *)weights + begin, 0, 1, end - begin);
    if (!bad) return;
    const row_options o = options_of(a, b, h, i, j0);
    row_scores(k, x->s, NULL, query_row(a, b, h, i), key_row(a, b, h / (a->H / a->Hk), j0), a->k_stride[2], begin, end, a->D, &o);
    k->attention_natural_weights(weights, x->s, begin, end, lse);
}
#endif
