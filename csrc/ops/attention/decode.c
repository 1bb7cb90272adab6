/* Attention with few queries, forward: keys and values are read from where they lie, once for all query heads that share them
   (kernels/decode/decode.c has the inside of a block). The values are those of attention.c, bit for bit: the same blocks of keys, the same
   chains within them, merged in the same order.

   The rows of a kv head (all queries of its query heads) are taken in parts of at most DECODE_ROWS; a part has an O, sum and shift per
   row. Who does what is decided by sizes and threads, and changes no bit:

     many parts   a task is a part:
                      for each block    scores, masks, softmax, values, merged with O
     few parts    a task is a block of a part, in rounds of blocks whose results fit into ROUND_BYTES:
                      for each block    scores, masks, the shift that its largest score asks for
                      in order          shifts become running maxima
                      for each block    softmax against the shift before it, values from zero
                      for each part     the blocks merged in order

   Sums p v are divided by the sum of p at the end, so that those of values near the largest numbers overflow where their mean does
   not. Kernels report large values; if then an element of a row is not finite, by whatever op, the rows of its head are computed
   again here, from their largest scores and with smaller powers, and that element taken from there. All others keep their bits. */
#include "decode.h"

#include <string.h>

#define DECODE_QUERIES FA_CACHE_QUERIES  /* more queries repay packed keys and values, which cost about as much as 4 */
#define PARTS_PER_THREAD 3               /* so many parts per thread are an even load */
#define ROUND_BYTES ((fa_index)16 << 20) /* scores and partial O of one round */
#define RECOVER_SHIFT 40                 /* powers are smaller by 2 to this: sums of 2^39 values of any size are finite */
#define SHIFT_RISE 4096.0                /* beyond it no sum is left in either type */

static part_place place_of(const decode_call *c, fa_index i)
{
    const fa_attention_arguments *a = c->a;
    const fa_index head = i / c->parts, part = i % c->parts, first = part * c->heads_of_part;
    part_place place = {.b = head / a->Hk, .hk = head % a->Hk};
    place.h = place.hk * c->group + first;
    place.heads = fa_min(c->heads_of_part, c->group - first);
    place.queries = query_rows(a, place.b);
    place.rows = place.heads * place.queries;
    return place;
}

/* Whether any row attends to a key of block j. */
static int find_keys(const decode_call *c, const part_place *at, fa_index j, block_keys *x)
{
    const fa_attention_arguments *a = c->a;
    const fa_index j0 = j * c->block, keys = fa_max(0, fa_min(c->block, key_length(a, at->b) - j0));
    const score_block queries = {.rows = at->queries, .keys = keys, .begin = x->begin, .end = x->end};
    x->j = j;
    x->first = keys;
    x->last = 0;
    block_ranges(a, at->b, at->i0, j0, &queries);
    for (fa_index r = 0; r < at->queries; r++) {
        if (x->end[r] == x->begin[r]) continue;
        x->first = fa_min(x->first, x->begin[r]);
        x->last = fa_max(x->last, x->end[r]);
    }
    for (fa_index r = at->queries; r < at->rows; r++) {
        x->begin[r] = x->begin[r - at->queries];
        x->end[r] = x->end[r - at->queries];
    }
    return x->last > 0;
}

static void start_part(const decode_call *c, part_state *s, const part_place *at)
{
    const fa_attention_arguments *a = c->a;
    s->begun = s->large = 0;
    for (fa_index r = 0; r < at->rows; r++) {
        s->sum[r] = 0;
        s->shift[r] = -REAL_INFINITY;
    }
    for (fa_index h = 0; h < at->heads; h++) {
        const fa_index r = h * at->queries, within = fa_min(at->queries, query_length(a, at->b) - at->i0);
        if (a->sinks) c->kernels->attention_sink(s->shift + r, s->sum + r, within, ((const real *)a->sinks)[at->h + h]);
#if FA_FLOAT_ARRAYS
        if (c->bytes) {
            const decode_digits *d = &s->digits;
            const decode_digits rows = {d->words + r * d->ld, d->ld, d->start + r * DIGITS, d->high + r, d->low + r};
            c->kernels->decode_digits_of(&rows, query_row(a, at->b, at->h + h, at->i0), a->q_stride[2], at->queries, a->D,
                                         c->scale_high, c->scale_low);
            continue;
        }
#endif
        c->kernels->attention_pack_a(s->queries + r * c->kernels->sizes.query_stride, c->query_slice,
                                     query_row(a, at->b, at->h + h, at->i0), a->q_stride[2], at->queries, a->D, c->scale_high,
                                     c->scale_low);
    }
}

static void finish_part(const decode_call *c, part_state *s, const part_place *at)
{
    const fa_attention_arguments *a = c->a;
    if (!s->begun && a->sinks) memset(s->o, 0, (size_t)(at->rows * c->ldo) * sizeof(real)); /* a sum, and nothing to divide */
    for (fa_index h = 0; h < at->heads; h++) {
        const fa_index r = h * at->queries, row = state_row(a, at->b, at->h + h, 0);
        const size_t size = (size_t)at->queries * sizeof(real);
        stored *out = output_row(a, at->b, at->h + h, 0);
        int overflows = 0;
        c->kernels->attention_finish(out, a->out_stride[2], s->o + r * c->ldo, c->ldo, at->queries, a->Dv, s->shift + r,
                                     s->sum + r, a->lse ? (real *)a->lse + row : NULL);
        if (s->large) c->kernels->attention_overflows(&overflows, out, a->out_stride[2], at->queries, a->Dv, s->sum + r);
        if (overflows) s->overflowed |= SUMS_OVERFLOW;
        unsigned char attends[FA_CACHE_QUERIES];
        for (fa_index i = 0, begin, end; i < at->queries; i++) {
            keys_by_position(a, at->b, i, &begin, &end);
            attends[i] = end > begin;
        }
        if (OP(attention_mark_unsettled)(c->unsettled + row, s->sum + r, attends, at->queries)) s->overflowed |= ROWS_UNSETTLED;
        if (a->shift) memcpy((real *)a->shift + row, s->shift + r, size);
        if (a->sum) memcpy((real *)a->sum + row, s->sum + r, size);
    }
}

/* The next block's results go on top of the part's. */
static void merge_block(const decode_call *c, part_state *s, const block_state *block, const part_place *at)
{
    c->kernels->decode_merge(s->o, s->sum, block->o, block->sum, c->ldo, at->rows, c->a->Dv, block->alpha, !s->begun);
    memcpy(s->shift, block->shift, (size_t)at->rows * sizeof(real));
    s->begun = 1;
    s->large |= block->large;
}

static void whole_part(void *context, fa_index i, int worker)
{
    const decode_call *c = context;
    const part_place at = place_of(c, i);
    part_state *s = &c->part[worker];
    block_state *block = &c->state[worker];
    start_part(c, s, &at);
    for (fa_index j = 0; j < c->blocks; j++) {
        block_keys x;
        if (!find_keys(c, &at, j, &x)) continue;
        OP(decode_block_scores)(c, s, block->scores, worker, &at, &x);
        memcpy(block->shift, s->shift, (size_t)at.rows * sizeof(real));
        OP(decode_block_results)(c, s, block, worker, &at, &x);
        merge_block(c, s, block, &at);
    }
    finish_part(c, s, &at);
}

static void start_one(void *context, fa_index i, int worker)
{
    const decode_call *c = context;
    const part_place at = place_of(c, i);
    (void)worker;
    start_part(c, &c->part[i], &at);
}

static void score_one(void *context, fa_index i, int worker)
{
    const decode_call *c = context;
    const fa_index part = i / c->round, j = c->first_block + i % c->round;
    const part_place at = place_of(c, part);
    const block_state *block = &c->state[i];
    block_keys x;
    if (find_keys(c, &at, j, &x)) OP(decode_block_scores)(c, &c->part[part], block->scores, worker, &at, &x);
    const score_block scores = scores_of_part(&at, block->scores, &x, 1);
    c->kernels->decode_shifts(block->shift, &scores);
}

/* What each block asks for becomes what is in force before it; the part's own is left as it was before the round. */
static void run_shifts(const decode_call *c, fa_index part)
{
    const part_place at = place_of(c, part);
    for (fa_index r = 0; r < at.rows; r++) {
        real before = c->part[part].shift[r];
        for (fa_index j = 0; j < c->round; j++) {
            real *shift = &c->state[part * c->round + j].shift[r];
            const real asked = *shift;
            *shift = before;
            if (asked > before) before = asked;
        }
    }
}

static void attend_one(void *context, fa_index i, int worker)
{
    const decode_call *c = context;
    const fa_index part = i / c->round, j = c->first_block + i % c->round;
    const part_place at = place_of(c, part);
    block_state *block = &c->state[i];
    block_keys x;
    if (!find_keys(c, &at, j, &x)) return;
    OP(decode_block_results)(c, &c->part[part], block, worker, &at, &x);
}

static void merge_one(void *context, fa_index i, int worker)
{
    const decode_call *c = context;
    const part_place at = place_of(c, i);
    part_state *s = &c->part[i];
    (void)worker;
    for (fa_index j = 0; j < c->round; j++) {
        const block_state *block = &c->state[i * c->round + j];
        block_keys x;
        if (!find_keys(c, &at, c->first_block + j, &x)) continue;
        merge_block(c, s, block, &at);
    }
    if (c->first_block + c->round == c->blocks) finish_part(c, s, &at);
}

/* Gives out the scratch of a call from `plan`; called twice, see arena. `parts`, `blocks`: of which there is a state each. */
static void plan_scratch(decode_call *c, arena *plan, fa_index parts, fa_index blocks, int threads)
{
    const fa_index slices = fa_ceil_div(c->a->D, c->kernels->sizes.query_slice);
    c->part = arena_take(plan, parts, sizeof *c->part);
    c->state = arena_take(plan, blocks, sizeof *c->state);
    c->unsettled = arena_take(plan, OP(attention_state_rows)(c->a), sizeof *c->unsettled);
    c->mask = arena_take(plan, threads * c->rows * c->stride, sizeof(real));
    c->unmasked = arena_take(plan, threads * c->rows * c->stride, sizeof(real));
    c->gathered = arena_take(plan, threads * c->kernels->sizes.lanes * c->a->D, sizeof(real));
    for (fa_index i = 0; i < parts; i++) {
        part_state s = {0};
        s.o = arena_take(plan, c->rows * c->ldo, sizeof(real));
        s.sum = arena_take(plan, c->rows, sizeof(real));
        s.shift = arena_take(plan, c->rows, sizeof(real));
        s.queries = arena_take(plan, c->bytes ? 0 : slices * c->query_slice, sizeof(real));
        s.digits.ld = c->bytes ? fa_round_up(c->a->D, 4 * c->kernels->sizes.lanes) / 4 * DIGITS : 0;
        const fa_index digit_rows = c->bytes ? c->rows : 0;
        s.digits.words = arena_take(plan, digit_rows * s.digits.ld, sizeof(int32_t));
        s.digits.start = arena_take(plan, digit_rows * DIGITS, sizeof(int32_t));
        s.digits.high = arena_take(plan, digit_rows, sizeof(float));
        s.digits.low = arena_take(plan, digit_rows, sizeof(float));
        if (plan->base) c->part[i] = s;
    }
    for (fa_index i = 0; i < blocks; i++) {
        block_state s = {0};
        s.scores = arena_take(plan, c->rows * c->stride, sizeof(real));
        s.o = arena_take(plan, 2 * c->rows * c->ldo, sizeof(real));
        s.sum = arena_take(plan, c->rows, sizeof(real));
        s.alpha = arena_take(plan, c->rows, sizeof(real));
        s.shift = arena_take(plan, c->rows, sizeof(real));
        if (plan->base) c->state[i] = s;
    }
}

int OP(attention_decodes)(const fa_attention_arguments *a)
{
    return a->strategy == FA_ATTENTION_FUSED && a->Lq <= DECODE_QUERIES && a->Lk > 0;
}

/* A call whose parts have at most so many rows. */
static decode_call call_of(const fa_attention_arguments *a, const fa_cache_arguments *cache, fa_index rows)
{
    const fa_kernels *k = forward_kernels(a);
    decode_call c = {.a = a, .cache = cache, .kernels = k, .group = a->H / a->Hk, .rows = rows};
    c.bytes = cache && cache->k_scale;
    c.block = k->sizes.attention_keys / (fa_max(a->D, a->Dv) > WIDE_HEAD ? 2 : 1);
    c.blocks = fa_ceil_div(a->Lk, c.block);
    c.stride = k->sizes.attention_stride;
    c.ldo = fa_max(k->sizes.lanes, fa_round_up(a->Dv, k->sizes.lanes));
    c.query_slice = rows * k->sizes.query_stride;
    query_scale(a, &c.scale_high, &c.scale_low);
    return c;
}

static int threads_for(const fa_attention_arguments *a)
{
    return fa_threads_for((double)a->B * (double)a->H * (double)a->Lq * (double)a->Lk * (double)(a->D + a->Dv));
}

/* What a sum is worth when what comes off the scores rises from `shift` to `top`, and off the powers RECOVER_SHIFT. */
static real lowered_sum(real sum, real shift, real top)
{
    const double rise = (double)top - (double)shift;
    return sum == 0 ? 0 : (real)ldexp((double)sum, -(int)fmin(rise, SHIFT_RISE) - RECOVER_SHIFT);
}

/* Task: DECODE_ROWS rows of a head whose sums of large values overflowed: again, the elements that are not finite. */
static void recover_rows(void *context, fa_index i, int worker)
{
    const decode_call *c = context;
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    part_state *s = &c->part[worker];
    block_state *block = &c->state[worker];
    part_place at = {.b = i / c->parts / a->H, .h = i / c->parts % a->H, .heads = 1, .i0 = i % c->parts * DECODE_ROWS};
    at.hk = at.h / c->group;
    at.queries = at.rows = fa_min(DECODE_ROWS, query_rows(a, at.b) - at.i0);
    if (at.rows <= 0) return;
    stored *out = output_row(a, at.b, at.h, at.i0);
    real top[DECODE_ROWS] = {0};
    int overflows;
    k->attention_overflows(&overflows, out, a->out_stride[2], at.rows, a->Dv, top);
    if (!overflows) return;

    block_keys x;
    start_part(c, s, &at);
    memcpy(top, s->shift, (size_t)at.rows * sizeof(real));
    for (fa_index j = 0; j < c->blocks; j++) {
        if (!find_keys(c, &at, j, &x)) continue;
        OP(decode_block_scores)(c, s, block->scores, worker, &at, &x);
        const score_block scores = scores_of_part(&at, block->scores, &x, 1);
        k->decode_shifts(block->shift, &scores);
        for (fa_index r = 0; r < at.rows; r++)
            if (block->shift[r] > top[r]) top[r] = block->shift[r];
    }
    for (fa_index r = 0; r < at.rows; r++) {
        s->sum[r] = lowered_sum(s->sum[r], s->shift[r], top[r]);
        s->shift[r] = RECOVER_SHIFT;
    }
    for (fa_index j = 0; j < c->blocks; j++) {
        if (!find_keys(c, &at, j, &x)) continue;
        OP(decode_block_scores)(c, s, block->scores, worker, &at, &x);
        const score_block scores = scores_of_part(&at, block->scores, &x, 1);
        k->attention_lower_scores(&scores, top);
        memcpy(block->shift, s->shift, (size_t)at.rows * sizeof(real));
        OP(decode_block_results)(c, s, block, worker, &at, &x);
        merge_block(c, s, block, &at);
    }
    if (s->begun) k->attention_recover_values(out, a->out_stride[2], s->o, c->ldo, at.rows, a->Dv, s->sum);
}

fa_status OP(attention_recover)(const fa_attention_arguments *a, const fa_cache_arguments *cache)
{
    decode_call c = call_of(a, cache, DECODE_ROWS);
    const int threads = threads_for(a);
    c.parts = fa_ceil_div(a->Lq, DECODE_ROWS);
    fa_scratch scratch;
    arena plan = {0};
    plan_scratch(&c, &plan, threads, threads, threads);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_scratch(&c, &plan, threads, threads, threads);
    fa_parallel_for(a->B * a->H * c.parts, threads, recover_rows, &c);
    fa_scratch_give(&scratch);
    return FA_OK;
}

fa_status OP(attention_decode)(const fa_attention_arguments *a, const fa_cache_arguments *cache)
{
    const fa_index group = a->H / a->Hk, parts_of_head = fa_ceil_div(group * a->Lq, DECODE_ROWS / a->Lq * a->Lq);
    const fa_index heads_of_part = fa_ceil_div(group, parts_of_head);
    decode_call c = call_of(a, cache, heads_of_part * a->Lq);
    c.parts = parts_of_head;
    c.heads_of_part = heads_of_part;

    const fa_index parts = a->B * a->Hk * c.parts;
    const int threads = threads_for(a);
    const int alone = threads > 1 && parts < PARTS_PER_THREAD * threads && c.blocks > 1;
    const fa_index block_bytes = c.rows * (c.stride + 2 * c.ldo) * (fa_index)sizeof(real);
    const fa_index at_once = fa_min(c.blocks, fa_max(1, ROUND_BYTES / (parts * block_bytes)));
    const fa_index states = alone ? parts : threads, blocks = alone ? parts * at_once : threads;

    fa_scratch scratch;
    arena plan = {0};
    plan_scratch(&c, &plan, states, blocks, threads);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_scratch(&c, &plan, states, blocks, threads);
    if (!alone) {
        fa_parallel_for(parts, threads, whole_part, &c);
    } else {
        fa_parallel_for(parts, 1, start_one, &c);
        for (c.first_block = 0; c.first_block < c.blocks; c.first_block += c.round) {
            c.round = fa_min(at_once, c.blocks - c.first_block);
            fa_parallel_for(parts * c.round, threads, score_one, &c);
            for (fa_index i = 0; i < parts; i++) run_shifts(&c, i);
            fa_parallel_for(parts * c.round, threads, attend_one, &c);
            fa_parallel_for(parts, threads, merge_one, &c);
        }
    }
    int overflowed = 0;
    for (fa_index i = 0; i < states; i++) overflowed |= c.part[i].overflowed;
    fa_status status = overflowed & ROWS_UNSETTLED ? OP(attention_settle)(a, cache, c.unsettled) : FA_OK;
    fa_scratch_give(&scratch);
    if (status == FA_OK && overflowed & SUMS_OVERFLOW) status = OP(attention_recover)(a, cache);
    return status;
}

fa_status OP(cache_attention)(const fa_cache_arguments *c)
{
    const fa_attention_arguments *a = &c->attention;
    if (a->B == 0 || a->H == 0 || a->Lq == 0) return FA_OK;
    return a->Lk > 0 ? OP(attention_decode)(a, c) : OP(attention_forward)(a);
}
