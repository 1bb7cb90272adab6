/* Blocked attention, forward (kernels/attention/attention.c has the inside of a block).

   Work is cut into tiles of at most QUERY_BLOCK rows of one head, and key blocks at multiples of a constant:

     for each tile                             state per row: O, sum, shift; empty at first
         for each key block that some row attends to
             for each group of rows            2 register tiles: their scores stay in the first-level cache
                 scores, masks, softmax, values
         out = O / sum, lse

   Keys and values are packed, which costs about as much as attending from 4 rows. Who packs what when is decided by sizes and
   threads, and changes no bit:

     few tiles per kv head (short batches)           a task is a kv head: it packs one block at a time, for all its tiles
     many kv heads, or a window                      a task is a kv head, or a run of its tiles if a window keeps their keys together:
                                                     it walks them and packs as it comes to new blocks, over those that a window left
     few kv heads                                    two rounds: blocks are packed by all, then tiles are taken by all

   In the first schedule the products of a task prefetch what the next one of its thread begins with: such batches are read once, and go by
   too quickly for the hardware to find out. The fewest queries are decode.c's, which packs nothing. */
#include "attention_forward.h"

#include <stdlib.h>

#define TASKS_PER_THREAD 4                /* so many are an even load */
#define RUN_BLOCKS 3                      /* a run of tiles has queries for so many blocks, at least */
#define PACKED_BYTES ((fa_index)24 << 20) /* packed keys and values at a time in the third schedule, at least one head's */

static fa_index batch_tiles(const attention_call *c, fa_index b) { return fa_ceil_div(query_rows(c->a, b), QUERY_BLOCK); }

static fa_index block_size(const attention_call *c) { return c->key_size + c->value_size; }

static key_block packed_block(const attention_call *c, real *packed, int found)
{
    return (key_block){packed, packed + c->key_size, found};
}

/* What task i begins with, if there is one: prefetched while others attend in so many calls of kernels. */
static upcoming_rows next_task(const attention_call *c, fa_index i, fa_index calls)
{
    const fa_attention_arguments *a = c->a;
    upcoming_rows next = {0};
    if (i >= a->B * a->Hk) return next;
    const fa_index b = c->order[i / a->Hk].batch, hk = i % a->Hk, first_keys = fa_min(c->block, key_length(a, b));
    const fa_index size = (fa_index)sizeof(stored);
    next.rows[0] = (prefetch_rows){query_row(a, b, hk * c->group, 0), a->q_stride[2] * size, a->D * size, query_rows(a, b), NULL};
    next.rows[1] = (prefetch_rows){key_row(a, b, hk, 0), a->k_stride[2] * size, a->D * size, first_keys, NULL};
    next.rows[2] = (prefetch_rows){value_row(a, b, hk, 0), a->v_stride[2] * size, a->Dv * size, first_keys, NULL};
    fa_index rows = 0;
    for (int n = 0; n < UPCOMING; n++) rows += next.rows[n].count;
    next.share = fa_ceil_div(rows, fa_max(1, calls));
    return next;
}

/* First schedule: task i is kv head i; its tiles keep their state while the blocks pass by. */
static void passing_blocks(void *context, fa_index i, int worker)
{
    const attention_call *c = context;
    worker_scratch *w = &c->worker[worker];
    const fa_index b = c->order[i / c->a->Hk].batch, hk = i % c->a->Hk, tiles = batch_tiles(c, b), n = tiles * c->group;
    fa_index first, end;
    head_blocks(c->a, c->block, b, &first, &end);
    const fa_index groups = fa_ceil_div(query_rows(c->a, b), c->group_rows) * c->group;
    upcoming_rows next = next_task(c, i + c->threads, 2 * groups * (end - first));
    for (fa_index t = 0; t < n; t++) OP(attention_start_tile)(c, &w->state[t], b, hk * c->group + t / tiles, t % tiles);
    for (fa_index j = first; j < end; j++) {
        key_block block = packed_block(c, w->packed, 0);
        OP(attention_pack_block)(c, b, hk, j, w->packed, &block.found);
        for (fa_index t = 0; t < n; t++)
            OP(attention_attend)(c, w, &w->state[t], &block, j + 1 == end, b, hk * c->group + t / tiles, t % tiles, j, &next);
    }
    for (fa_index t = 0; t < n; t++) OP(attention_finish_tile)(c, &w->state[t], b, hk * c->group + t / tiles, t % tiles);
}

/* Blocks of a head up to `end`, packed: the last `kept` of them, block j at place j % kept. */
typedef struct {
    real *data;
    int *found;
    fa_index kept, end;
} packed_blocks;

/* All blocks of a tile; those from p->end on are packed now, when the tile comes to them. */
static void whole_tile(const attention_call *c, const worker_scratch *w, packed_blocks *p, fa_index b, fa_index h, fa_index tile)
{
    tile_state state = w->state[0];
    fa_index row, rows, first, end;
    rows_of_query_block(c, b, tile, &row, &rows);
    row_blocks(c->a, c->block, b, row, rows, &first, &end);
    OP(attention_start_tile)(c, &state, b, h, tile);
    for (fa_index j = first; j < end; j++) {
        real *packed = p->data + j % p->kept * block_size(c);
        int *found = p->found + j % p->kept;
        if (j >= p->end) {
            OP(attention_pack_block)(c, b, h / c->group, j, packed, found);
            p->end = j + 1;
        }
        const key_block block = packed_block(c, packed, *found);
        OP(attention_attend)(c, w, &state, &block, j + 1 == end, b, h, tile, j, NULL);
    }
    OP(attention_finish_tile)(c, &state, b, h, tile);
}

/* Second schedule: task i is a run of tiles of a kv head, or all of them; they follow one another, and blocks are packed when the first of
   them comes to them: under a causal mask or a window they are then still in the second-level cache. */
static void packed_run(void *context, fa_index i, int worker)
{
    const attention_call *c = context;
    const worker_scratch *w = &c->worker[worker];
    const fa_index head = i / c->runs, b = c->order[head / c->a->Hk].batch, hk = head % c->a->Hk;
    packed_blocks packed = {w->packed, c->found + worker * c->kept, c->kept, 0};
    fa_index first, tiles;
    split_parts(batch_tiles(c, b), c->runs, i % c->runs, &first, &tiles);
    for (fa_index t = 0; t < tiles * c->group; t++)
        whole_tile(c, w, &packed, b, hk * c->group + t % c->group, first + t / c->group);
}

/* Third schedule, first round: task i is a block of one of the current kv heads. */
static void shared_block(void *context, fa_index i, int worker)
{
    const attention_call *c = context;
    const fa_index head = c->first_head + i / c->blocks, b = c->order[head / c->a->Hk].batch, j = i % c->blocks;
    fa_index first, end;
    (void)worker;
    head_blocks(c->a, c->block, b, &first, &end);
    if (j < first || j >= end) return;
    OP(attention_pack_block)(c, b, head % c->a->Hk, j, c->packed + i * block_size(c), &c->found[i]);
}

/* Second round: task i is a tile. Tiles are taken from the last to the first: under a causal mask the last ones take longest. */
static void shared_tile(void *context, fa_index i, int worker)
{
    const attention_call *c = context;
    const fa_index per_head = c->tiles * c->group, n = i / per_head, t = per_head - 1 - i % per_head;
    const fa_index head = c->first_head + n, b = c->order[head / c->a->Hk].batch;
    if (t / c->group >= batch_tiles(c, b)) return;
    packed_blocks packed = {c->packed + n * c->blocks * block_size(c), c->found + n * c->blocks, c->blocks, c->blocks};
    whole_tile(c, &c->worker[worker], &packed, b, head % c->a->Hk * c->group + t % c->group, t / c->group);
}

typedef enum { PASSING_BLOCKS, PACKED_RUNS, SHARED_HEADS } attention_schedule;

/* Batches from the first on that may differ in their lengths. */
static fa_index different_batches(const fa_attention_arguments *a) { return a->q_lengths || a->k_lengths ? a->B : 1; }

/* Pairs of a query and a key in a head of batch b, about. */
static double pairs_of(const fa_attention_arguments *a, fa_index b)
{
    return (double)query_length(a, b) * (double)key_length(a, b);
}

/* Of all heads together, and of the largest. */
static double count_pairs(const fa_attention_arguments *a, double *largest)
{
    const fa_index different = different_batches(a);
    double total = 0;
    *largest = 0;
    for (fa_index b = 0; b < different; b++) {
        const double pairs = pairs_of(a, b);
        total += pairs;
        if (pairs > *largest) *largest = pairs;
    }
    return total * (double)a->H * (double)(a->B / different);
}

static int by_work(const void *x, const void *y)
{
    const batch_work *p = x, *q = y;
    if (p->work != q->work) return p->work > q->work ? -1 : 1;
    return (p->batch > q->batch) - (p->batch < q->batch);
}

static void order_batches(const attention_call *c)
{
    const fa_attention_arguments *a = c->a;
    for (fa_index b = 0; b < a->B; b++) c->order[b] = (batch_work){pairs_of(a, b), b};
    if (different_batches(a) > 1) qsort(c->order, (size_t)a->B, sizeof *c->order, by_work);
}

/* Whether rows attend to keys on both sides of theirs within a window, and how many beside that one. */
static int has_window(const fa_attention_arguments *a) { return a->left != FA_UNBOUNDED && a->right != FA_UNBOUNDED; }
static fa_index window_keys(const fa_attention_arguments *a) { return fa_min(a->Lk, a->left) + fa_min(a->Lk, a->right); }

/* A window keeps the keys of neighbouring tiles together, so that heads can be cut into runs of tiles for threads that have none. Where
   runs meet, both pack the keys of a window: they are no shorter than that, nor than RUN_BLOCKS. `share`: heads as large as the largest
   that would make up all the work. */
static fa_index count_runs(const fa_attention_arguments *a, fa_index block, double share, int threads)
{
    if (threads == 1 || !has_window(a)) return 1;
    const fa_index least = fa_max(RUN_BLOCKS * block, window_keys(a));
    return fa_max(1, fa_min(a->Lq / least, (fa_index)ceil(TASKS_PER_THREAD * threads / share)));
}

/* Packed blocks that are kept: all of a head, or as many as a tile may come to under a window. */
static fa_index kept_blocks(const attention_call *c)
{
    const fa_attention_arguments *a = c->a;
    if (!has_window(a)) return c->blocks;
    return fa_min(c->blocks, fa_ceil_div(window_keys(a) + QUERY_BLOCK, c->block) + 1);
}

static attention_schedule choose_schedule(const attention_call *c, double share, int threads)
{
    if (c->tiles * c->group <= FEW_TILES) return PASSING_BLOCKS;
    const fa_index run_bytes = c->kept * block_size(c) * (fa_index)sizeof(real);
    const int even = share * (double)c->runs >= TASKS_PER_THREAD * threads;
    if (threads == 1 || (even && run_bytes * threads <= PACKED_BYTES)) return PACKED_RUNS;
    return SHARED_HEADS;
}

/* Gives out the scratch of a call from `plan`; called twice, see arena. */
static void plan_scratch(attention_call *c, arena *plan, attention_schedule schedule, int threads)
{
    const fa_index stride = c->kernels->sizes.attention_stride;
    const fa_index rows = c->group_rows;
    const fa_index queries = c->a->strategy == FA_ATTENTION_BLAS
                                 ? QUERY_BLOCK * c->a->D
                                 : fa_ceil_div(c->a->D, c->kernels->sizes.query_slice) * c->query_slice;
    const fa_index states = schedule == PASSING_BLOCKS ? c->tiles * c->group : 1;
    c->worker = arena_take(plan, threads, sizeof *c->worker);
    c->order = arena_take(plan, c->a->B, sizeof *c->order);
    c->unsettled = arena_take(plan, OP(attention_state_rows)(c->a), sizeof *c->unsettled);
    c->overflowed = arena_take(plan, threads, sizeof *c->overflowed);
    for (int m = 0; m < threads; m++) {
        worker_scratch unused, *w = plan->base ? &c->worker[m] : &unused;
        w->scores = arena_take(plan, rows * stride, sizeof(real));
        w->unmasked = arena_take(plan, rows * stride, sizeof(real));
        w->mask = arena_take(plan, rows * stride, sizeof(real));
        for (fa_index t = 0; t < states; t++) {
            w->state[t].overflowed = plan->base ? &c->overflowed[m] : NULL;
            w->state[t].o = arena_take(plan, QUERY_BLOCK * c->ldo, sizeof(real));
            w->state[t].sum = arena_take(plan, QUERY_BLOCK, sizeof(real));
            w->state[t].shift = arena_take(plan, QUERY_BLOCK, sizeof(real));
            w->state[t].queries = arena_take(plan, queries, sizeof(real));
        }
        w->packed = schedule == SHARED_HEADS
                        ? NULL
                        : arena_take(plan, (schedule == PACKED_RUNS ? c->kept : 1) * block_size(c), sizeof(real));
    }
    c->found = arena_take(plan, c->blocks * fa_max(threads, c->heads), sizeof(int));
    c->packed = schedule == SHARED_HEADS ? arena_take(plan, c->blocks * block_size(c) * c->heads, sizeof(real)) : NULL;
}

/* Whether scores stay as they are, or become -inf, between products and softmax. */
static int only_excludes(const fa_attention_arguments *a)
{
    return !(a->softcap > 0) && !a->alibi_slopes && a->mask_kind != FA_MASK_ADD;
}

/* GROUP_TILES register tiles for a whole block of keys. With few keys more of them, whose scores take half as much room: the panels of
   keys and values share the first-level cache with them. A query block is whole groups. */
static fa_index rows_of_group(const fa_kernels *k, fa_index block, fa_index keys)
{
    const fa_index rows = GROUP_TILES * k->sizes.attention_rows, most = QUERY_BLOCK / rows;
    fa_index times = fa_min(most, fa_max(1, block / 2 / fa_max(1, keys)));
    while (most % times) times--;
    return times * rows;
}

double OP(attention_scale)(fa_index D) { return D ? 1 / sqrt((double)D) : 1; }

fa_status OP(attention_forward)(const fa_attention_arguments *a)
{
    const fa_kernels *k = forward_kernels(a);
    const fa_index lanes = k->sizes.lanes, packed = k->sizes.packed,
                   padded = fa_round_up(fa_ceil_div(a->D, packed), k->sizes.tile_k);
    const fa_index heads = a->B * a->Hk;
    if (a->B == 0 || a->H == 0 || a->Lq == 0) return FA_OK;
    if (a->Dv == 0 && !a->lse && !a->shift) return FA_OK; /* however many rows have nothing to write */
    if (a->strategy == FA_ATTENTION_BLAS && !fa_blas_load()) return FA_NOBLAS;
    if (OP(attention_decodes)(a)) return OP(attention_decode)(a, NULL);

    attention_call c = {.a = a, .kernels = k, .group = a->H / a->Hk};
    c.block = k->sizes.attention_keys / (fa_max(a->D, a->Dv) > WIDE_HEAD ? 2 : 1);
    c.blocks = fa_ceil_div(a->Lk, c.block);
    c.tiles = fa_ceil_div(a->Lq, QUERY_BLOCK);
    c.group_rows = a->strategy == FA_ATTENTION_BLAS ? QUERY_BLOCK : rows_of_group(k, c.block, a->Lk);
    c.ldo = fa_max(lanes, fa_round_up(a->Dv, lanes));
    c.query_slice = QUERY_BLOCK * k->sizes.query_stride;
    c.key_size = c.block * padded;
    c.value_size = c.block / packed * c.ldo;
    c.kept = kept_blocks(&c);
    query_scale(a, &c.scale_high, &c.scale_low);
    c.softmax_scale = 1;
    if (k->sizes.scale_in_softmax && only_excludes(a) && c.scale_high > 0 && isfinite(c.scale_high)) {
        c.softmax_scale = c.scale_high;
        c.scale_high = 1;
    }

    double largest;
    const double pairs = count_pairs(a, &largest);
    const int threads = fa_threads_for(pairs * (double)(a->D + a->Dv));
    const double share = largest > 0 ? pairs / (double)c.group / largest : 1;
    c.runs = count_runs(a, c.block, share, threads);
    const attention_schedule schedule = choose_schedule(&c, share, threads);
    const fa_index head_bytes = fa_max(1, c.blocks * block_size(&c) * (fa_index)sizeof(real));
    c.heads = schedule == SHARED_HEADS ? fa_min(heads, fa_max(1, PACKED_BYTES / head_bytes)) : 0;

    fa_scratch scratch;
    arena plan = {0};
    plan_scratch(&c, &plan, schedule, threads);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_scratch(&c, &plan, schedule, threads);

    c.threads = threads;
    memset(c.overflowed, 0, (size_t)threads * sizeof *c.overflowed);
    order_batches(&c);
    if (schedule == PASSING_BLOCKS) {
        fa_parallel_for(heads, threads, passing_blocks, &c);
    } else if (schedule == PACKED_RUNS) {
        fa_parallel_for(heads * c.runs, threads, packed_run, &c);
    } else {
        const fa_index at_once = c.heads;
        for (c.first_head = 0; c.first_head < heads; c.first_head += at_once) {
            const fa_index n = fa_min(at_once, heads - c.first_head);
            fa_parallel_for(n * c.blocks, threads, shared_block, &c);
            fa_parallel_for(n * c.tiles * c.group, threads, shared_tile, &c);
        }
    }
    int overflowed = 0;
    for (int m = 0; m < threads; m++) overflowed |= c.overflowed[m];
    fa_status status = overflowed & ROWS_UNSETTLED ? OP(attention_settle)(a, NULL, c.unsettled) : FA_OK;
    fa_scratch_give(&scratch);
    if (status == FA_OK && overflowed & SUMS_OVERFLOW) status = OP(attention_recover)(a, NULL);
    return status;
}
