/* Attention with few queries, forward: keys and values are read from where they lie, once for all query heads that share them
   (kernels/decode.c has the inside of a block). The values are those of attention.c, bit for bit: the same blocks of keys, the same
   chains within them, merged in the same order.

   The rows of a kv head (all queries of its query heads) are taken in parts of at most DECODE_ROWS; a part has an O, sum and reference per
   row. Who does what is decided by sizes and threads, and changes no bit:

     many parts   a task is a part:
                      for each block    scores, masks, softmax, values, merged with O
     few parts    a task is a block of a part, in rounds of blocks whose results fit into ROUND_BYTES:
                      for each block    scores, masks, the reference that its largest score asks for
                      in order          references become running maxima
                      for each block    softmax against the reference before it, values from zero
                      for each part     the blocks merged in order */
#include "attention.h"

#include <string.h>

#define DECODE_QUERIES FA_CACHE_QUERIES  /* more queries repay packed keys and values, which cost about as much as 4 */
#define DECODE_ROWS 48                   /* rows of a part */
#define PARTS_PER_THREAD 3               /* so many parts per thread are an even load */
#define ROUND_BYTES ((fa_index)16 << 20) /* scores and partial O of one round */

/* Whether this type of queries has caches of bytes. */
#if defined(FA_REAL_F32) && !FA_CONVERTS
#define TAKES_BYTES 1
#else
#define TAKES_BYTES 0
#endif

typedef struct {
    real *o, *sum, *reference; /* [rows, ldo], [rows] x 2 */
    real *queries;             /* scaled, in slices; not for a cache of bytes: */
    decode_digits digits;
    int begun; /* O has met keys */
} part_state;

typedef struct {
    real *scores;          /* [rows, stride] */
    real *o, *sum, *alpha; /* of the block alone, O with room for a second chain; alpha: what O and sum before it are scaled by */
    real *reference;       /* what its scores ask for (few parts); in force before it; in force after it */
} block_state;

typedef struct {
    const fa_attention_arguments *a;
    const fa_cache_arguments *cache; /* or NULL */
    const fa_kernels *kernels;
    int bytes;                         /* keys and values are */
    fa_index block, blocks;            /* keys per block, blocks per head */
    fa_index group, heads_of_part;     /* query heads per kv head, and per part */
    fa_index parts;                    /* per kv head */
    fa_index rows;                     /* most rows of a part */
    fa_index stride, ldo, query_slice; /* row strides of scores and O; a slice of the scaled queries */
    real scale_high, scale_low;
    part_state *part;            /* of each worker, or of each part */
    block_state *state;          /* of each worker, or of each block of a round */
    real *mask;                  /* of each worker: [rows, stride] */
    real *unmasked;              /* of each worker: [rows, stride] */
    real *gathered;              /* of each worker: a vector of keys */
    fa_index first_block, round; /* blocks of this round */
} decode_call;

/* What part `i` of the call is. */
typedef struct {
    fa_index b, hk, h, heads, queries, rows; /* rows: head after head, query after query */
} part_place;

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

/* The keys of block j that each row attends to; those that any row does are [*first, the result), nothing if that is 0. */
static fa_index part_ranges(const decode_call *c, const part_place *at, fa_index j, fa_index *begin, fa_index *end,
                            fa_index *first)
{
    const fa_attention_arguments *a = c->a;
    const fa_index j0 = j * c->block, keys = fa_max(0, fa_min(c->block, key_length(a, at->b) - j0));
    fa_index last = 0;
    *first = keys;
    block_ranges(a, at->b, 0, at->queries, j0, keys, begin, end);
    for (fa_index r = 0; r < at->queries; r++) {
        if (end[r] == begin[r]) continue;
        *first = fa_min(*first, begin[r]);
        last = fa_max(last, end[r]);
    }
    for (fa_index r = at->queries; r < at->rows; r++) begin[r] = begin[r - at->queries], end[r] = end[r - at->queries];
    return last;
}

static void start_part(const decode_call *c, part_state *s, const part_place *at)
{
    const fa_attention_arguments *a = c->a;
    for (fa_index r = 0; r < at->rows; r++) {
        s->sum[r] = 0;
        s->reference[r] = -REAL_INFINITY;
    }
    s->begun = 0;
    for (fa_index h = 0; h < at->heads; h++) {
        const fa_index r = h * at->queries, within = fa_min(at->queries, query_length(a, at->b));
        if (a->sinks) c->kernels->attention_sink(s->reference + r, s->sum + r, within, ((const real *)a->sinks)[at->h + h]);
#if TAKES_BYTES
        if (c->bytes) {
            const decode_digits *d = &s->digits;
            const decode_digits rows = {d->words + r * d->ld, d->ld, d->start + r * DIGITS, d->high + r, d->low + r};
            c->kernels->decode_digits_of(&rows, query_row(a, at->b, at->h + h, 0), a->q_stride[2], at->queries, a->D,
                                         c->scale_high, c->scale_low);
            continue;
        }
#endif
        c->kernels->attention_scale_queries(s->queries + r * c->kernels->sizes.query_stride, c->query_slice,
                                            query_row(a, at->b, at->h + h, 0), a->q_stride[2], at->queries, a->D, c->scale_high,
                                            c->scale_low);
    }
}

static void finish_part(const decode_call *c, const part_state *s, const part_place *at)
{
    const fa_attention_arguments *a = c->a;
    if (!s->begun && a->sinks) memset(s->o, 0, (size_t)(at->rows * c->ldo) * sizeof(real)); /* a sum, and nothing to divide */
    for (fa_index h = 0; h < at->heads; h++) {
        const fa_index r = h * at->queries, row = state_row(a, at->b, at->h + h, 0);
        const size_t size = (size_t)at->queries * sizeof(real);
        c->kernels->attention_finish(output_row(a, at->b, at->h + h, 0), a->out_stride[2], s->o + r * c->ldo, c->ldo, at->queries,
                                     a->Dv, s->reference + r, s->sum + r, a->lse ? (real *)a->lse + row : NULL);
        if (a->reference) memcpy((real *)a->reference + row, s->reference + r, size);
        if (a->sum) memcpy((real *)a->sum + row, s->sum + r, size);
    }
}

/* The rows of keys, values or scales of block j of a kv head, `item` bytes per element. */
static decode_rows rows_of(const decode_call *c, const part_place *at, fa_index j, const void *x, const fa_index *stride,
                           size_t item)
{
    const fa_attention_arguments *a = c->a;
    const fa_index j0 = j * c->block, size = (fa_index)item;
    decode_rows rows = {.ld = stride[2] * size, .keys = key_length(a, at->b) - j0};
    if (c->cache && c->cache->table) {
        rows.base = (const char *)x + at->hk * stride[1] * size;
        rows.table = c->cache->table + at->b * c->cache->table_stride;
        rows.page_step = stride[0] * size;
        rows.page_keys = c->cache->page_keys;
        rows.first = j0;
    } else {
        const fa_index row = key_start(a, at->b) + j0;
        rows.base = (const char *)x + (at->b * stride[0] + at->hk * stride[1] + row * stride[2]) * size;
    }
    return rows;
}

#if TAKES_BYTES
static decode_rows scales_of(const decode_call *c, const part_place *at, fa_index j, const float *scales)
{
    const fa_index stride[3] = {c->cache->scale_stride[0], c->cache->scale_stride[1], 1};
    return rows_of(c, at, j, scales, stride, sizeof *scales);
}
#endif

/* Scores of the keys [first, last) of block j, masked. */
static void block_scores(const decode_call *c, const part_state *s, real *scores, int worker, const part_place *at, fa_index j,
                         const fa_index *begin, const fa_index *end, fa_index first, fa_index last)
{
    const fa_attention_arguments *a = c->a;
    const fa_index lanes = c->kernels->sizes.lanes, j0 = j * c->block;
    const decode_rows keys = rows_of(c, at, j, a->k, a->k_stride, c->bytes ? 1 : sizeof(stored));
    real *gathered = c->gathered + worker * lanes * a->D;
    first = first / lanes * lanes;
#if TAKES_BYTES
    if (c->bytes) {
        const decode_rows scales = scales_of(c, at, j, c->cache->k_scale);
        c->kernels->decode_scores_i8(scores, &s->digits, at->rows, &keys, &scales, first, last, a->D, gathered);
    } else
#endif
        c->kernels->decode_scores(scores, s->queries, c->query_slice, at->rows, &keys, first, last, a->D, gathered);
    for (fa_index h = 0; h < at->heads; h++) {
        const fa_index r = h * at->queries;
        OP(attention_adjust_scores)(a, c->kernels, scores + r * c->stride, c->mask + worker * c->rows * c->stride, at->b,
                                    at->h + h, 0, j0, at->queries, begin + r, end + r);
    }
}

/* Adds the values that are not finite to the rows that attend to them: page by page. */
static void patch_values(const decode_call *c, const block_state *block, const real *unmasked, const part_place *at,
                         const decode_rows *values, const fa_index *begin, const fa_index *end, fa_index first, fa_index last)
{
    const fa_index ld = c->a->v_stride[2];
    for (fa_index j = first, next, together; j < last; j = next) {
        fa_index from[DECODE_ROWS], to[DECODE_ROWS];
        const stored *row = find_row(values, j, &together);
        next = fa_min(last, j + together);
        for (fa_index r = 0; r < at->rows; r++) from[r] = fa_max(begin[r], j), to[r] = fa_min(end[r], next);
        c->kernels->attention_patch_values(block->o, c->ldo, block->scores, unmasked, at->rows, from, to, row - j * ld, ld,
                                           c->a->Dv);
    }
}

/* block->o = p v. */
static void block_values(const decode_call *c, const part_state *s, const block_state *block, int worker, const part_place *at,
                         fa_index j, const fa_index *begin, const fa_index *end, fa_index first, fa_index last)
{
    const fa_attention_arguments *a = c->a;
    const fa_index packed = c->kernels->sizes.packed, from = first / packed * packed;
    const decode_rows values = rows_of(c, at, j, a->v, a->v_stride, c->bytes ? 1 : sizeof(stored));
    int nonfinite = 0;
#if TAKES_BYTES
    const decode_rows scales = c->bytes ? scales_of(c, at, j, c->cache->v_scale) : values;
    if (c->bytes)
        c->kernels->decode_values_i8(block->o, c->ldo, block->scores, at->rows, &values, &scales, from, last, a->Dv, &nonfinite);
    else
#endif
        c->kernels->decode_values(block->o, c->ldo, block->scores, at->rows, &values, from, last, a->Dv, &nonfinite);
    if (!nonfinite) return;
    /* Rare: which keys the masks exclude is in the scores, and those have become probabilities. */
    real *unmasked = c->unmasked + worker * c->rows * c->stride;
    block_scores(c, s, unmasked, worker, at, j, begin, end, first, last);
#if TAKES_BYTES
    if (c->bytes) {
        c->kernels->decode_patch_i8(block->o, c->ldo, unmasked, at->rows, begin, end, &scales, a->Dv);
        return;
    }
#endif
    patch_values(c, block, unmasked, at, &values, begin, end, first, last);
}

/* The next block's results go on top of the part's. */
static void merge_block(const decode_call *c, part_state *s, const block_state *block, const part_place *at)
{
    c->kernels->decode_merge(s->o, s->sum, block->o, block->sum, c->ldo, at->rows, c->a->Dv, block->alpha, !s->begun);
    memcpy(s->reference, block->reference, (size_t)at->rows * sizeof(real));
    s->begun = 1;
}

/* Scores to probabilities against block->reference, the one in force before; block->o and block->sum. */
static void block_results(const decode_call *c, const part_state *s, const block_state *block, int worker, const part_place *at,
                          fa_index j, const fa_index *begin, const fa_index *end, fa_index first, fa_index last)
{
    for (fa_index r = 0; r < at->rows; r++) block->sum[r] = 0;
    c->kernels->attention_softmax(block->scores, at->rows, begin, end, fa_round_up(last, c->kernels->sizes.packed),
                                  block->reference, block->sum, block->alpha);
    block_values(c, s, block, worker, at, j, begin, end, first, last);
}

static void whole_part(void *context, fa_index i, int worker)
{
    const decode_call *c = context;
    const part_place at = place_of(c, i);
    part_state *s = &c->part[worker];
    const block_state *block = &c->state[worker];
    start_part(c, s, &at);
    for (fa_index j = 0; j < c->blocks; j++) {
        fa_index begin[DECODE_ROWS], end[DECODE_ROWS], first;
        const fa_index last = part_ranges(c, &at, j, begin, end, &first);
        if (!last) continue;
        block_scores(c, s, block->scores, worker, &at, j, begin, end, first, last);
        memcpy(block->reference, s->reference, (size_t)at.rows * sizeof(real));
        block_results(c, s, block, worker, &at, j, begin, end, first, last);
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
    fa_index begin[DECODE_ROWS], end[DECODE_ROWS], first;
    const fa_index last = part_ranges(c, &at, j, begin, end, &first);
    if (last) block_scores(c, &c->part[part], block->scores, worker, &at, j, begin, end, first, last);
    c->kernels->decode_references(block->reference, block->scores, at.rows, begin, end);
}

/* What each block asks for becomes what is in force before it; the part's own is left as it was before the round. */
static void run_references(const decode_call *c, fa_index part)
{
    const part_place at = place_of(c, part);
    for (fa_index r = 0; r < at.rows; r++) {
        real before = c->part[part].reference[r];
        for (fa_index j = 0; j < c->round; j++) {
            real *reference = &c->state[part * c->round + j].reference[r];
            const real asked = *reference;
            *reference = before;
            if (asked > before) before = asked;
        }
    }
}

static void attend_one(void *context, fa_index i, int worker)
{
    const decode_call *c = context;
    const fa_index part = i / c->round, j = c->first_block + i % c->round;
    const part_place at = place_of(c, part);
    const block_state *block = &c->state[i];
    fa_index begin[DECODE_ROWS], end[DECODE_ROWS], first;
    const fa_index last = part_ranges(c, &at, j, begin, end, &first);
    if (!last) return;
    block_results(c, &c->part[part], block, worker, &at, j, begin, end, first, last);
}

static void merge_one(void *context, fa_index i, int worker)
{
    const decode_call *c = context;
    const part_place at = place_of(c, i);
    part_state *s = &c->part[i];
    (void)worker;
    for (fa_index j = 0; j < c->round; j++) {
        const block_state *block = &c->state[i * c->round + j];
        fa_index begin[DECODE_ROWS], end[DECODE_ROWS], first;
        if (!part_ranges(c, &at, c->first_block + j, begin, end, &first)) continue;
        merge_block(c, s, block, &at);
    }
    if (c->first_block + c->round == c->blocks) finish_part(c, s, &at);
}

/* Gives out the scratch of a call from `plan`; called twice, see arena. `parts`, `blocks`: of which there is a state each. */
static void plan_scratch(decode_call *c, arena *plan, fa_index parts, fa_index blocks, int members)
{
    const fa_index slices = fa_ceil_div(c->a->D, c->kernels->sizes.query_slice);
    c->part = arena_take(plan, parts, sizeof *c->part);
    c->state = arena_take(plan, blocks, sizeof *c->state);
    c->mask = arena_take(plan, members * c->rows * c->stride, sizeof(real));
    c->unmasked = arena_take(plan, members * c->rows * c->stride, sizeof(real));
    c->gathered = arena_take(plan, members * c->kernels->sizes.lanes * c->a->D, sizeof(real));
    for (fa_index i = 0; i < parts; i++) {
        part_state s = {0};
        s.o = arena_take(plan, c->rows * c->ldo, sizeof(real));
        s.sum = arena_take(plan, c->rows, sizeof(real));
        s.reference = arena_take(plan, c->rows, sizeof(real));
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
        s.reference = arena_take(plan, c->rows, sizeof(real));
        if (plan->base) c->state[i] = s;
    }
}

int OP(attention_decodes)(const fa_attention_arguments *a)
{
    return a->strategy == FA_ATTENTION_FUSED && a->Lq <= DECODE_QUERIES && a->Lk > 0;
}

fa_status OP(attention_decode)(const fa_attention_arguments *a, const fa_cache_arguments *cache)
{
    const fa_kernels *k = current_kernels();
    decode_call c = {.a = a, .cache = cache, .kernels = k, .group = a->H / a->Hk};
    c.bytes = cache && cache->k_scale;
    c.block = k->sizes.attention_keys / (fa_max(a->D, a->Dv) > WIDE_HEAD ? 2 : 1);
    c.blocks = fa_ceil_div(a->Lk, c.block);
    c.parts = fa_ceil_div(c.group * a->Lq, DECODE_ROWS / a->Lq * a->Lq);
    c.heads_of_part = fa_ceil_div(c.group, c.parts);
    c.rows = c.heads_of_part * a->Lq;
    c.stride = k->sizes.attention_stride;
    c.ldo = fa_max(k->sizes.lanes, fa_round_up(a->Dv, k->sizes.lanes));
    c.query_slice = c.rows * k->sizes.query_stride;
    query_scale(a, &c.scale_high, &c.scale_low);

    const fa_index parts = a->B * a->Hk * c.parts;
    const int members = fa_members_for((double)a->B * (double)a->H * (double)a->Lq * (double)a->Lk * (double)(a->D + a->Dv));
    const int alone = members > 1 && parts < PARTS_PER_THREAD * members && c.blocks > 1;
    const fa_index block_bytes = c.rows * (c.stride + 2 * c.ldo) * (fa_index)sizeof(real);
    const fa_index at_once = fa_min(c.blocks, fa_max(1, ROUND_BYTES / (parts * block_bytes)));
    const fa_index states = alone ? parts : members, blocks = alone ? parts * at_once : members;

    fa_scratch scratch;
    arena plan = {0};
    plan_scratch(&c, &plan, states, blocks, members);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_scratch(&c, &plan, states, blocks, members);
    if (!alone) {
        fa_parallel_for(parts, members, whole_part, &c);
    } else {
        fa_parallel_for(parts, 1, start_one, &c);
        for (c.first_block = 0; c.first_block < c.blocks; c.first_block += c.round) {
            c.round = fa_min(at_once, c.blocks - c.first_block);
            fa_parallel_for(parts * c.round, members, score_one, &c);
            for (fa_index i = 0; i < parts; i++) run_references(&c, i);
            fa_parallel_for(parts * c.round, members, attend_one, &c);
            fa_parallel_for(parts, members, merge_one, &c);
        }
    }
    fa_scratch_give(&scratch);
    return FA_OK;
}

fa_status OP(cache_attention)(const fa_cache_arguments *c)
{
    const fa_attention_arguments *a = &c->attention;
    if (a->B == 0 || a->H == 0 || a->Lq == 0) return FA_OK;
    return a->Lk > 0 ? OP(attention_decode)(a, c) : OP(attention_forward)(a);
}
