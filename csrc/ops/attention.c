/* Blocked attention, forward (kernels/attention.c has the inside of a block).

   Work is cut into tiles of at most QUERY_TILE rows of one head, and key blocks at multiples of a constant:

     for each tile                             state per row: O, sum, reference; empty at first
         for each key block that some row attends to
             for each group of rows            2 register tiles: their scores stay in the first-level cache
                 scores, masks, softmax, values
         out = O / sum, lse

   Keys and values are packed, which costs about as much as attending from 4 rows. Who packs what when is decided by sizes and
   threads, and changes no bit:

     few tiles per kv head (short batches)           a task is a kv head: it packs one block at a time, for all its tiles
     many kv heads                                   a task is a kv head: it packs all of it, then walks its tiles
     few kv heads                                    two rounds: blocks are packed by all, then tiles are taken by all

   The fewest queries are decode.c's, which packs nothing.

   Strategy "blas" runs the two products of a block as BLAS calls on constant tiles of QUERY_TILE rows, padded. A row whose only
   block this is goes straight to `out`; otherwise its O is kept between blocks. */
#include "attention.h"

#include <stdlib.h>
#include <string.h>

#define QUERY_TILE 96
#define GROUP_TILES 2                     /* register tiles in a group */
#define FEW_TILES 4                       /* so many tiles keep their state while blocks of keys pass by */
#define HEADS_PER_THREAD 4                /* so many kv heads per thread are an even load */
#define PACKED_BYTES ((fa_index)24 << 20) /* packed keys and values at a time in the third way, at least one head's */

/* A group has met no keys yet and its O is undefined; or its sums are in O; or its result is out. */
typedef enum { NOT_BEGUN = 0, BEGUN, FINISHED } group_progress;

typedef struct {
    real *o, *sum, *reference;          /* of a tile: [QUERY_TILE, ldo], [QUERY_TILE] x 2 */
    unsigned char progress[QUERY_TILE]; /* of each group: group_progress */
    real *queries;                      /* scaled, in slices of [QUERY_TILE, query_stride]; plain [QUERY_TILE, D] for BLAS */
} tile_state;

typedef struct {
    real *keys, *values; /* of one block */
    int nonfinite;       /* values that are not finite: attention_patch_values */
} key_block;

typedef struct {
    real *scores, *unmasked, *mask; /* of a group, or of a tile for BLAS */
    tile_state state[FEW_TILES];
    real *packed; /* of one block, or of one head */
} worker_scratch;

typedef struct {
    double work; /* of a batch, pairs of a query and a key */
    fa_index batch;
} batch_work;

typedef struct {
    const fa_attention_arguments *a;
    const fa_kernels *kernels;
    batch_work *order;             /* [B], the longest first: what is left to the end is short */
    fa_index block, blocks;        /* keys per block, blocks per head */
    fa_index tiles;                /* tiles per head */
    fa_index group_rows;           /* most rows in a group */
    fa_index group;                /* query heads per kv head */
    fa_index ldo, query_slice;     /* row stride of O; size of a slice of the scaled queries */
    fa_index key_size, value_size; /* packed sizes of a block */
    real scale_high, scale_low;
    worker_scratch *worker;
    /* third way: */
    fa_index first_head, heads;
    real *packed;
    int *nonfinite;
} attention_call;

static fa_index rows_of_group(const attention_call *c)
{
    return c->a->strategy == FA_ATTENTION_BLAS ? QUERY_TILE : c->group_rows;
}
/* Rows [*first, *first + *rows) of part `i` when `size` is cut evenly into parts of at most `most`. */
static void deal(fa_index size, fa_index most, fa_index i, fa_index *first, fa_index *rows)
{
    const fa_index parts = fa_max(1, fa_ceil_div(size, most)), base = size / parts, larger = size % parts;
    *first = i * base + fa_min(i, larger);
    *rows = base + (i < larger);
}

/* BLAS gets tiles at fixed places: OpenBLAS gives the rows of a tile different kernels by their place in it, so a row has the
   same bits only at the same index. */
static void rows_of_tile(const fa_attention_arguments *a, fa_index b, fa_index tile, fa_index *first, fa_index *rows)
{
    if (a->strategy == FA_ATTENTION_BLAS) {
        *first = tile * QUERY_TILE;
        *rows = fa_min(QUERY_TILE, query_rows(a, b) - *first);
    } else {
        deal(query_rows(a, b), QUERY_TILE, tile, first, rows);
    }
}

static void pack_block(const attention_call *c, fa_index b, fa_index hk, fa_index j, real *dst, int *nonfinite)
{
    const fa_attention_arguments *a = c->a;
    const fa_index first = j * c->block, keys = fa_min(c->block, key_length(a, b) - first);
    const stored *k = key_row(a, b, hk, first), *v = value_row(a, b, hk, first);
    if (a->strategy == FA_ATTENTION_BLAS) {
        /* Whole tiles for BLAS: the keys that are missing are zeros. */
        memset(dst, 0, (size_t)(c->key_size + c->value_size) * sizeof(real));
        for (fa_index i = 0; i < keys; i++) c->kernels->widen(dst + i * a->D, k + i * a->k_stride[2], a->D);
        c->kernels->attention_copy_values(dst + c->key_size, c->ldo, v, a->v_stride[2], keys, a->Dv, nonfinite);
        return;
    }
    c->kernels->attention_pack_keys(dst, k, a->k_stride[2], keys, a->D);
    c->kernels->attention_pack_values(dst + c->key_size, v, a->v_stride[2], keys, a->Dv, nonfinite);
}

static void start_tile(const attention_call *c, tile_state *s, fa_index b, fa_index h, fa_index tile)
{
    const fa_attention_arguments *a = c->a;
    fa_index first, rows;
    rows_of_tile(a, b, tile, &first, &rows);
    for (fa_index r = 0; r < rows; r++) {
        s->sum[r] = 0;
        s->reference[r] = -REAL_INFINITY;
        s->progress[r] = NOT_BEGUN;
    }
    if (a->sinks) {
        const fa_index within = fa_max(0, fa_min(rows, query_length(a, b) - first));
        c->kernels->attention_sink(s->reference, s->sum, within, ((const real *)a->sinks)[h]);
    }
    if (a->strategy == FA_ATTENTION_BLAS) {
        memset(s->o, 0, (size_t)(QUERY_TILE * c->ldo) * sizeof(real));
        memset(s->queries, 0, (size_t)(QUERY_TILE * a->D) * sizeof(real));
        for (fa_index r = 0; r < rows; r++) c->kernels->widen(s->queries + r * a->D, query_row(a, b, h, first + r), a->D);
        return;
    }
    c->kernels->attention_scale_queries(s->queries, c->query_slice, query_row(a, b, h, first), a->q_stride[2], rows, a->D,
                                        c->scale_high, c->scale_low);
}

static void finish_tile(const attention_call *c, const tile_state *s, fa_index b, fa_index h, fa_index tile)
{
    const fa_attention_arguments *a = c->a;
    fa_index first, rows;
    rows_of_tile(a, b, tile, &first, &rows);
    const fa_index most = rows_of_group(c);
    for (fa_index g = 0; g * most < rows; g++) {
        fa_index r, n;
        deal(rows, most, g, &r, &n);
        if (s->progress[g] == NOT_BEGUN && a->sinks) /* a sum, but nothing to divide by it */
            memset(s->o + r * c->ldo, 0, (size_t)(n * c->ldo) * sizeof(real));
        stored *out = s->progress[g] == FINISHED ? NULL : output_row(a, b, h, first + r);
        const fa_index row = state_row(a, b, h, first + r);
        real *lse = a->lse ? (real *)a->lse + row : NULL;
        c->kernels->attention_finish(out, a->out_stride[2], s->o + r * c->ldo, c->ldo, n, a->Dv, s->reference + r, s->sum + r,
                                     lse);
        if (a->reference) memcpy((real *)a->reference + row, s->reference + r, (size_t)n * sizeof(real));
        if (a->sum) memcpy((real *)a->sum + row, s->sum + r, (size_t)n * sizeof(real));
    }
}

/* One tile and one key block, the `only` one of the tile or one of several. */
static void attend(const attention_call *c, const worker_scratch *w, tile_state *s, const key_block *block, int only, fa_index b,
                   fa_index h, fa_index tile, fa_index j)
{
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const int blas = a->strategy == FA_ATTENTION_BLAS;
    const fa_index stride = k->sizes.attention_stride, j0 = j * c->block, keys = fa_min(c->block, key_length(a, b) - j0);
    const fa_index most = rows_of_group(c);
    fa_index tile_first, tile_rows;
    rows_of_tile(a, b, tile, &tile_first, &tile_rows);
    for (fa_index g = 0; g * most < tile_rows; g++) {
        fa_index begin[QUERY_TILE], end[QUERY_TILE], first, rows;
        real alpha[QUERY_TILE];
        deal(tile_rows, most, g, &first, &rows);
        if (!block_ranges(a, b, tile_first + first, rows, j0, keys, begin, end)) continue;
        if (a->mask_kind != FA_MASK_NONE && !OP(attention_narrow)(a, b, h, tile_first + first, j0, rows, begin, end)) continue;
        real *o = s->o + first * c->ldo;
        if (blas)
            blas_gemm(1, QUERY_TILE, c->block, a->D, c->scale_high, s->queries, fa_max(1, a->D), block->keys, fa_max(1, a->D), 0,
                      w->scores, stride);
        else
            k->attention_scores(w->scores, s->queries + first * k->sizes.query_stride, c->query_slice, rows, block->keys, keys,
                                begin, end, a->D);
        if (blas) k->attention_plain_scores(w->scores, rows, begin, end, c->scale_high == 0 ? 0 : c->scale_low / c->scale_high);
        OP(attention_adjust_scores)(a, k, w->scores, w->mask, b, h, tile_first + first, j0, rows, begin, end);
        if (block->nonfinite) memcpy(w->unmasked, w->scores, (size_t)(rows * stride) * sizeof(real));
        k->attention_softmax(w->scores, rows, begin, end, blas ? c->block : 0, s->reference + first, s->sum + first, alpha);
        if (blas) {
            k->attention_scale_rows(o, c->ldo, rows, a->Dv, alpha);
            blas_gemm(0, QUERY_TILE, c->ldo, c->block, 1, w->scores, stride, block->values, c->ldo, 1, o, c->ldo);
            s->progress[g] = BEGUN;
        } else if (only && !block->nonfinite) {
            k->attention_values(output_row(a, b, h, tile_first + first), a->out_stride[2], NULL, 0, w->scores, rows,
                                block->values, keys, begin, end, a->Dv, alpha, s->sum + first);
            s->progress[g] = FINISHED;
        } else {
            k->attention_values(o, c->ldo, s->progress[g] == NOT_BEGUN ? NULL : o, c->ldo, w->scores, rows, block->values, keys,
                                begin, end, a->Dv, alpha, NULL);
            s->progress[g] = BEGUN;
        }
        if (block->nonfinite)
            k->attention_patch_values(o, c->ldo, w->scores, w->unmasked, rows, begin, end, value_row(a, b, h / c->group, j0),
                                      a->v_stride[2], a->Dv);
    }
}

static fa_index batch_tiles(const attention_call *c, fa_index b) { return fa_ceil_div(query_rows(c->a, b), QUERY_TILE); }

static fa_index block_size(const attention_call *c) { return c->key_size + c->value_size; }

static key_block packed_block(const attention_call *c, real *packed, int nonfinite)
{
    return (key_block){packed, packed + c->key_size, nonfinite};
}

/* First way: task i is kv head i; its tiles keep their state while the blocks pass by. */
static void passing_blocks(void *context, fa_index i, int worker)
{
    const attention_call *c = context;
    worker_scratch *w = &c->worker[worker];
    const fa_index b = c->order[i / c->a->Hk].batch, hk = i % c->a->Hk, tiles = batch_tiles(c, b), n = tiles * c->group;
    fa_index first, end;
    head_blocks(c->a, c->block, b, &first, &end);
    for (fa_index t = 0; t < n; t++) start_tile(c, &w->state[t], b, hk * c->group + t / tiles, t % tiles);
    for (fa_index j = first; j < end; j++) {
        key_block block = packed_block(c, w->packed, 0);
        pack_block(c, b, hk, j, w->packed, &block.nonfinite);
        for (fa_index t = 0; t < n; t++)
            attend(c, w, &w->state[t], &block, end - first == 1, b, hk * c->group + t / tiles, t % tiles, j);
    }
    for (fa_index t = 0; t < n; t++) finish_tile(c, &w->state[t], b, hk * c->group + t / tiles, t % tiles);
}

static void whole_tile(const attention_call *c, const worker_scratch *w, real *packed, const int *nonfinite, fa_index b,
                       fa_index h, fa_index tile)
{
    tile_state state = w->state[0];
    fa_index row, rows, first, end;
    rows_of_tile(c->a, b, tile, &row, &rows);
    row_blocks(c->a, c->block, b, row, rows, &first, &end);
    start_tile(c, &state, b, h, tile);
    for (fa_index j = first; j < end; j++) {
        const key_block block = packed_block(c, packed + j * block_size(c), nonfinite[j]);
        attend(c, w, &state, &block, end - first == 1, b, h, tile, j);
    }
    finish_tile(c, &state, b, h, tile);
}

/* Second way: task i is kv head i; all of it is packed, then its tiles follow one another. */
static void packed_head(void *context, fa_index i, int worker)
{
    const attention_call *c = context;
    const worker_scratch *w = &c->worker[worker];
    const fa_index b = c->order[i / c->a->Hk].batch, hk = i % c->a->Hk, tiles = batch_tiles(c, b);
    int *nonfinite = c->nonfinite + worker * c->blocks;
    fa_index first, end;
    head_blocks(c->a, c->block, b, &first, &end);
    for (fa_index j = first; j < end; j++) pack_block(c, b, hk, j, w->packed + j * block_size(c), &nonfinite[j]);
    for (fa_index t = 0; t < tiles * c->group; t++)
        whole_tile(c, w, w->packed, nonfinite, b, hk * c->group + t / tiles, t % tiles);
}

/* Third way, first round: task i is a block of one of the kv heads in hand. */
static void shared_block(void *context, fa_index i, int worker)
{
    const attention_call *c = context;
    const fa_index head = c->first_head + i / c->blocks, b = c->order[head / c->a->Hk].batch, j = i % c->blocks;
    fa_index first, end;
    (void)worker;
    head_blocks(c->a, c->block, b, &first, &end);
    if (j < first || j >= end) return;
    pack_block(c, b, head % c->a->Hk, j, c->packed + i * block_size(c), &c->nonfinite[i]);
}

/* Second round: task i is a tile. Tiles are taken from the last to the first: under a causal mask the last ones take longest. */
static void shared_tile(void *context, fa_index i, int worker)
{
    const attention_call *c = context;
    const fa_index per_head = c->tiles * c->group, n = i / per_head, t = per_head - 1 - i % per_head;
    const fa_index head = c->first_head + n, b = c->order[head / c->a->Hk].batch;
    if (t / c->group >= batch_tiles(c, b)) return;
    whole_tile(c, &c->worker[worker], c->packed + n * c->blocks * block_size(c), c->nonfinite + n * c->blocks, b,
               head % c->a->Hk * c->group + t % c->group, t / c->group);
}

typedef enum { PASSING_BLOCKS, PACKED_HEADS, SHARED_HEADS } attention_way;

/* Pairs of a query and a key in a head of batch b, about. */
static double pairs_of(const fa_attention_arguments *a, fa_index b)
{
    return (double)query_length(a, b) * (double)key_length(a, b);
}

/* Of all heads together, and of the largest. */
static double count_pairs(const fa_attention_arguments *a, double *largest)
{
    const fa_index different = a->q_lengths || a->k_lengths ? a->B : 1;
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
    if (a->q_lengths || a->k_lengths) qsort(c->order, (size_t)a->B, sizeof *c->order, by_work);
}

/* `share`: heads as large as the largest that would make up all the work. */
static attention_way choose_way(const attention_call *c, double share, int members)
{
    if (c->tiles * c->group <= FEW_TILES) return PASSING_BLOCKS;
    const fa_index head_bytes = c->blocks * block_size(c) * (fa_index)sizeof(real);
    if (members == 1 || (share >= HEADS_PER_THREAD * members && head_bytes * members <= PACKED_BYTES)) return PACKED_HEADS;
    return SHARED_HEADS;
}

/* Gives out the scratch of a call from `plan`; called twice, see arena. */
static void plan_scratch(attention_call *c, arena *plan, attention_way way, int members)
{
    const fa_index stride = c->kernels->sizes.attention_stride, head = c->blocks * block_size(c);
    const fa_index rows = c->a->strategy == FA_ATTENTION_BLAS ? QUERY_TILE : c->group_rows;
    const fa_index queries = c->a->strategy == FA_ATTENTION_BLAS
                                 ? QUERY_TILE * c->a->D
                                 : fa_ceil_div(c->a->D, c->kernels->sizes.query_slice) * c->query_slice;
    const fa_index states = way == PASSING_BLOCKS ? c->tiles * c->group : 1;
    c->worker = arena_take(plan, members, sizeof *c->worker);
    c->order = arena_take(plan, c->a->B, sizeof *c->order);
    for (int m = 0; m < members; m++) {
        worker_scratch w = {0};
        w.scores = arena_take(plan, rows * stride, sizeof(real));
        w.unmasked = arena_take(plan, rows * stride, sizeof(real));
        w.mask = arena_take(plan, rows * stride, sizeof(real));
        for (fa_index t = 0; t < states; t++) {
            w.state[t].o = arena_take(plan, QUERY_TILE * c->ldo, sizeof(real));
            w.state[t].sum = arena_take(plan, QUERY_TILE, sizeof(real));
            w.state[t].reference = arena_take(plan, QUERY_TILE, sizeof(real));
            w.state[t].queries = arena_take(plan, queries, sizeof(real));
        }
        w.packed = way == SHARED_HEADS ? NULL : arena_take(plan, way == PACKED_HEADS ? head : block_size(c), sizeof(real));
        if (plan->base) c->worker[m] = w;
    }
    c->nonfinite = arena_take(plan, c->blocks * fa_max(members, c->heads), sizeof(int));
    c->packed = way == SHARED_HEADS ? arena_take(plan, head * c->heads, sizeof(real)) : NULL;
}

/* BLAS multiplies reals: not the set whose packed operands are pairs, but the one below it. */
static const fa_kernels *attention_kernels(fa_attention_strategy strategy)
{
    const fa_kernels *k = current_kernels();
    return strategy == FA_ATTENTION_BLAS && k->sizes.packed > 1 ? kernels_for(FA_ISA_LEVEL_AVX512) : k;
}

fa_status OP(attention_forward)(const fa_attention_arguments *a)
{
    const fa_kernels *k = attention_kernels(a->strategy);
    const fa_index lanes = k->sizes.lanes, packed = k->sizes.packed,
                   padded = fa_round_up(fa_ceil_div(a->D, packed), k->sizes.tile_k);
    const fa_index heads = a->B * a->Hk;
    if (a->B == 0 || a->H == 0 || a->Lq == 0) return FA_OK;
    if (a->strategy == FA_ATTENTION_BLAS && !fa_blas_load()) return FA_NOBLAS;
    if (OP(attention_decodes)(a)) return OP(attention_decode)(a, NULL);

    attention_call c = {.a = a, .kernels = k, .group = a->H / a->Hk};
    c.block = k->sizes.attention_keys / (fa_max(a->D, a->Dv) > WIDE_HEAD ? 2 : 1);
    c.blocks = fa_ceil_div(a->Lk, c.block);
    c.tiles = fa_ceil_div(a->Lq, QUERY_TILE);
    c.group_rows = GROUP_TILES * k->sizes.attention_rows;
    c.ldo = fa_max(lanes, fa_round_up(a->Dv, lanes));
    c.query_slice = QUERY_TILE * k->sizes.query_stride;
    c.key_size = c.block * padded;
    c.value_size = c.block / packed * c.ldo;
    query_scale(a, &c.scale_high, &c.scale_low);

    double largest;
    const double pairs = count_pairs(a, &largest);
    const int members = fa_members_for(pairs * (double)(a->D + a->Dv));
    const attention_way way = choose_way(&c, largest > 0 ? pairs / (double)c.group / largest : 0, members);
    const fa_index head_bytes = fa_max(1, c.blocks * block_size(&c) * (fa_index)sizeof(real));
    c.heads = way == SHARED_HEADS ? fa_min(heads, fa_max(1, PACKED_BYTES / head_bytes)) : 0;

    fa_scratch scratch;
    arena plan = {0};
    plan_scratch(&c, &plan, way, members);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_scratch(&c, &plan, way, members);

    order_batches(&c);
    if (way == PASSING_BLOCKS) {
        fa_parallel_for(heads, members, passing_blocks, &c);
    } else if (way == PACKED_HEADS) {
        fa_parallel_for(heads, members, packed_head, &c);
    } else {
        const fa_index at_once = c.heads;
        for (c.first_head = 0; c.first_head < heads; c.first_head += at_once) {
            const fa_index n = fa_min(at_once, heads - c.first_head);
            fa_parallel_for(n * c.blocks, members, shared_block, &c);
            fa_parallel_for(n * c.tiles * c.group, members, shared_tile, &c);
        }
    }
    fa_scratch_give(&scratch);
    return FA_OK;
}
