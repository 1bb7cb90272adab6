/* Attention backward (kernels/attention_backward.c has the inside of a block).

   A task is a key block of one kv head. It packs its keys and values, then meets the query tiles of all heads of its group:

     for each query head, for each tile that attends to the block
         S, masks, P, dS                   a few register tiles of rows at a time
         dq += scale dS K                  after the block before has added to this tile
         dv += P' G,  dk += scale dS' Q    sums of the task, in its scratch

   So there are five products, and no partial sums beyond those of a block. Each sum is split at constant places, multiples of
   QUERY_TILE queries or of a block of keys, and its parts are added in ascending order: dk and dv within a task, dq from task to
   task, in a chain. Tasks are dealt out block by block, the heads of a block side by side: the task before in a chain was begun one
   round of heads earlier, and with as many heads as threads nobody waits. With fewer, tasks of one head follow each other one tile
   apart. */
#include "attention.h"

#include <string.h>

#define QUERY_TILE 96
#define GROUP_TILES 4       /* register tiles whose scores stay in the first-level cache between their passes */
#define BLOCK_KEYS 256      /* keys in a block; so many bytes of a row of keys or values: */
#define BLOCK_ROW_BYTES 512 /* larger rows take half as many */

typedef struct {
    real *keys, *values, *columns;          /* of the block: panels of keys of k and v, panels of columns of k */
    real *dk, *dv;                          /* [block, ldk], [block, ldv] */
    real *queries, *gradients, *delta;      /* of a tile: scaled q and G in slices, delta */
    real *query_columns, *gradient_columns; /* q and G in panels of columns */
    real *p, *ds, *products;                /* [QUERY_TILE, attention_stride]; products q k before a softcap */
    real *mask;                             /* a part of a mask whose keys are not contiguous */
} worker_scratch;

typedef struct {
    const fa_attention_backward_arguments *arguments;
    const fa_attention_arguments *a; /* of the forward call */
    const fa_kernels *kernels;
    fa_index block, blocks, tiles, group;
    fa_index group_rows; /* rows of GROUP_TILES register tiles */
    fa_index ldk, ldv;   /* rows of dk and dv: whole vectors */
    fa_index slice;      /* size of a slice of queries or G */
    real scale, scale_high, scale_low;
    worker_scratch *worker;
    fa_index *row_keys;    /* [B, H, Lq, 2] where there is a mask: find_row_keys */
    fa_progress *progress; /* [B, Hk, blocks]: query tiles of the group to whose dq a block has added */
} backward_call;

/* One tile of queries: rows [i0, i0 + rows) of query head h. */
typedef struct {
    fa_index b, h, hk, i0, rows, j0, keys;
    fa_index begin[QUERY_TILE], end[QUERY_TILE];
    int nonfinite_q, nonfinite_g;
} query_tile;

static real *gradient_row(void *base, const fa_index *stride, fa_index b, fa_index h, fa_index i)
{
    return (real *)base + b * stride[0] + h * stride[1] + i * stride[2];
}

/* Packs what a slice buffer holds into panels of columns. */
static void pack_slices(const backward_call *c, real *dst, const real *slices, fa_index rows, fa_index D, int *nonfinite)
{
    const fa_kernels *k = c->kernels;
    const fa_index padded = fa_round_up(rows, k->sizes.tile_k);
    *nonfinite = 0;
    for (fa_index d = 0; d < D; d += k->sizes.query_slice, slices += c->slice) {
        int found;
        k->attention_pack_values(dst + d * padded, slices, k->sizes.query_stride, rows, fa_min(k->sizes.query_slice, D - d),
                                 &found);
        *nonfinite |= found;
    }
}

static void pack_tile(const backward_call *c, const worker_scratch *w, query_tile *t)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const fa_index row = state_row(a, t->b, t->h, t->i0);
    const real *q = query_row(a, t->b, t->h, t->i0), *out = output_row(a, t->b, t->h, t->i0);
    const real *dout = (const real *)g->dout + t->b * g->dout_stride[0] + t->h * g->dout_stride[1] +
                       (query_start(a, t->b) + t->i0) * g->dout_stride[2];
    k->attention_scale_queries(w->queries, c->slice, q, a->q_stride[2], t->rows, a->D, c->scale_high, c->scale_low);
    k->attention_pack_values(w->query_columns, q, a->q_stride[2], t->rows, a->D, &t->nonfinite_q);
    k->attention_output_gradients(w->gradients, c->slice, w->delta, dout, g->dout_stride[2], out, a->out_stride[2], t->rows,
                                  a->Dv, (const real *)a->sum + row);
    pack_slices(c, w->gradient_columns, w->gradients, t->rows, a->Dv, &t->nonfinite_g);
}

/* Whether row r of the tile attends to no key outside the block. */
static int is_whole(const backward_call *c, const query_tile *t, fa_index r)
{
    fa_index begin, end;
    if (c->row_keys) {
        const fa_index *keys = c->row_keys + 2 * ((t->b * c->a->H + t->h) * c->a->Lq + t->i0 + r);
        begin = keys[0], end = keys[1];
    } else {
        key_range(c->a, t->b, t->i0 + r, &begin, &end);
    }
    return begin >= t->j0 && end <= t->j0 + t->keys;
}

/* The first and beyond the last key that each row of head `i` attends to, mask included. Padding that a mask excludes must change no
   bit, and what is the only block of a row decides about bits. */
static void find_row_keys(void *context, fa_index i, int worker)
{
    const backward_call *c = context;
    const fa_attention_arguments *a = c->a;
    const fa_index b = i / a->H, h = i % a->H, *stride = a->mask_stride;
    (void)worker;
    for (fa_index row = 0; row < a->Lq; row++) {
        fa_index *keys = c->row_keys + 2 * (i * a->Lq + row), at = b * stride[0] + h * stride[1] + row * stride[2];
        key_range(a, b, row, &keys[0], &keys[1]);
        if (a->mask_kind == FA_MASK_BOOL) {
            const uint8_t *mask = (const uint8_t *)a->mask + at;
            while (keys[0] < keys[1] && !mask[keys[0] * stride[3]]) keys[0]++;
            while (keys[0] < keys[1] && !mask[(keys[1] - 1) * stride[3]]) keys[1]--;
        } else {
            const real *mask = (const real *)a->mask + at;
            while (keys[0] < keys[1] && mask[keys[0] * stride[3]] == -REAL_INFINITY) keys[0]++;
            while (keys[0] < keys[1] && mask[(keys[1] - 1) * stride[3]] == -REAL_INFINITY) keys[1]--;
        }
    }
}

/* P and dS of the tile. */
static void probabilities(const backward_call *c, const worker_scratch *w, const query_tile *t)
{
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const fa_index stride = k->sizes.attention_stride, query_stride = k->sizes.query_stride;
    const fa_index row = state_row(a, t->b, t->h, t->i0);
    unsigned char whole[QUERY_TILE];
    for (fa_index r = 0; r < t->rows; r += c->group_rows) {
        const fa_index rows = fa_min(c->group_rows, t->rows - r), *begin = t->begin + r, *end = t->end + r;
        real *p = w->p + r * stride, *ds = w->ds + r * stride;
        k->attention_scores(p, w->queries + r * query_stride, c->slice, rows, w->keys, t->keys, begin, end, a->D);
        if (a->softcap > 0) memcpy(w->products + r * stride, p, (size_t)(rows * stride) * sizeof(real));
        OP(attention_adjust_scores)(a, k, p, w->mask, t->b, t->h, t->i0 + r, t->j0, rows, begin, end);
        k->attention_probabilities(p, rows, begin, end, t->keys, (const real *)a->reference + row + r,
                                   (const real *)a->sum + row + r);
        k->attention_scores(ds, w->gradients + r * query_stride, c->slice, rows, w->values, t->keys, begin, end, a->Dv);
        for (fa_index i = 0; i < rows; i++) whole[i] = (unsigned char)is_whole(c, t, r + i);
        k->attention_score_gradients(ds, p, rows, begin, end, t->keys, w->delta + r, (const real *)a->sum + row + r, whole);
        if (a->softcap > 0) k->attention_softcap_gradients(ds, w->products + r * stride, rows, begin, end);
    }
    /* The last steps of TILE_K rows read whole. */
    const size_t missing = (size_t)((fa_round_up(t->rows, k->sizes.tile_k) - t->rows) * stride) * sizeof(real);
    memset(w->p + t->rows * stride, 0, missing);
    memset(w->ds + t->rows * stride, 0, missing);
}

/* The rows of dq of a tile. The first block begins with zeros. */
static void add_query_gradients(const backward_call *c, const worker_scratch *w, const query_tile *t, int attends, int begins,
                                int nonfinite_k)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const fa_index ld = g->dq_stride[2];
    real *dq = gradient_row(g->dq, g->dq_stride, t->b, t->h, query_start(a, t->b) + t->i0);
    for (fa_index r = 0; begins && r < t->rows; r++) memset(dq + r * ld, 0, (size_t)a->D * sizeof(real));
    if (!attends) return;
    k->attention_query_gradients(dq, ld, w->ds, t->rows, w->columns, t->keys, t->begin, t->end, a->D, c->scale);
    if (nonfinite_k)
        k->attention_patch_gradients(dq, ld, w->ds, w->p, k->sizes.attention_stride, 1, t->rows, t->keys,
                                     key_row(a, t->b, t->hk, t->j0), a->k_stride[2], a->D, c->scale);
}

static void add_key_gradients(const backward_call *c, const worker_scratch *w, const query_tile *t)
{
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const fa_index stride = k->sizes.attention_stride;
    k->attention_key_gradients(w->dv, c->ldv, w->p, t->rows, w->gradient_columns, t->keys, t->begin, t->end, a->Dv);
    k->attention_key_gradients(w->dk, c->ldk, w->ds, t->rows, w->query_columns, t->keys, t->begin, t->end, a->D);
    if (t->nonfinite_q)
        k->attention_patch_gradients(w->dk, c->ldk, w->ds, w->p, 1, stride, t->keys, t->rows, query_row(a, t->b, t->h, t->i0),
                                     a->q_stride[2], a->D, 1);
    const fa_index size = k->sizes.query_slice;
    for (fa_index d = 0; t->nonfinite_g && d < a->Dv; d += size)
        k->attention_patch_gradients(w->dv + d, c->ldv, w->p, w->p, 1, stride, t->keys, t->rows,
                                     w->gradients + d / size * c->slice, k->sizes.query_stride, fa_min(size, a->Dv - d), 1);
}

/* Task i. */
static void key_block(void *context, fa_index i, int worker)
{
    const backward_call *c = context;
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const worker_scratch *w = &c->worker[worker];
    const fa_index heads = a->B * a->Hk, j = i / heads, head = i % heads, b = head / a->Hk, hk = head % a->Hk;
    const fa_index j0 = j * c->block, keys = fa_max(0, fa_min(c->block, (a->k_starts ? key_length(a, b) : a->Lk) - j0)),
                   steps = c->group * c->tiles;
    fa_index first, end;
    head_blocks(a, c->block, b, &first, &end);
    if (first == end) first = 0; /* somebody has to write the zeros of dq */
    fa_progress *mine = &c->progress[head * c->blocks + j], *before = j > first ? mine - 1 : NULL;

    memset(w->dk, 0, (size_t)(keys * c->ldk) * sizeof(real));
    memset(w->dv, 0, (size_t)(keys * c->ldv) * sizeof(real));
    int nonfinite_k = 0;
    if (j >= first && j < end) {
        const real *key = key_row(a, b, hk, j0);
        k->attention_pack_keys(w->keys, key, a->k_stride[2], keys, a->D);
        k->attention_pack_keys(w->values, value_row(a, b, hk, j0), a->v_stride[2], keys, a->Dv);
        k->attention_pack_values(w->columns, key, a->k_stride[2], keys, a->D, &nonfinite_k);
    }
    for (fa_index step = 0; step < steps && j >= first && (j < end || j == first); step++) {
        query_tile t = {.b = b, .h = hk * c->group + step / c->tiles, .hk = hk, .i0 = step % c->tiles * QUERY_TILE, .j0 = j0};
        t.rows = fa_min(QUERY_TILE, query_rows(a, b) - t.i0);
        t.keys = keys;
        if (t.rows <= 0) continue;
        int attends = block_ranges(a, b, t.i0, t.rows, j0, keys, t.begin, t.end) > 0;
        if (attends && a->mask_kind != FA_MASK_NONE)
            attends = OP(attention_narrow)(a, b, t.h, t.i0, j0, t.rows, t.begin, t.end) > 0;
        if (!attends && j > first) continue;
        if (attends) {
            pack_tile(c, w, &t);
            probabilities(c, w, &t);
        }
        if (before) fa_progress_wait(before, step + 1);
        add_query_gradients(c, w, &t, attends, j == first, nonfinite_k);
        fa_progress_publish(mine, step + 1);
        if (attends) add_key_gradients(c, w, &t);
    }
    if (before) fa_progress_wait(before, steps);
    fa_progress_publish(mine, steps);
    k->attention_scale_gradients(gradient_row(g->dk, g->dk_stride, b, hk, key_start(a, b) + j0), g->dk_stride[2], w->dk, c->ldk,
                                 keys, a->D, c->scale);
    k->attention_scale_gradients(gradient_row(g->dv, g->dv_stride, b, hk, key_start(a, b) + j0), g->dv_stride[2], w->dv, c->ldv,
                                 keys, a->Dv, 1);
}

/* Gives out the scratch of a call from `plan`; called twice, see arena. */
static void plan_scratch(backward_call *c, arena *plan, int members)
{
    const fa_attention_arguments *a = c->a;
    const fa_kernel_sizes *sizes = &c->kernels->sizes;
    const fa_index slices_q = fa_ceil_div(a->D, sizes->query_slice), slices_g = fa_ceil_div(a->Dv, sizes->query_slice);
    c->worker = arena_take(plan, members, sizeof *c->worker);
    for (int m = 0; m < members; m++) {
        worker_scratch w;
        w.keys = arena_take(plan, c->block * fa_round_up(a->D, sizes->tile_k), sizeof(real));
        w.values = arena_take(plan, c->block * fa_round_up(a->Dv, sizes->tile_k), sizeof(real));
        w.columns = arena_take(plan, c->block * c->ldk, sizeof(real));
        w.dk = arena_take(plan, c->block * c->ldk, sizeof(real));
        w.dv = arena_take(plan, c->block * c->ldv, sizeof(real));
        w.queries = arena_take(plan, slices_q * c->slice, sizeof(real));
        w.gradients = arena_take(plan, slices_g * c->slice, sizeof(real));
        w.delta = arena_take(plan, QUERY_TILE, sizeof(real));
        w.query_columns = arena_take(plan, QUERY_TILE * c->ldk, sizeof(real));
        w.gradient_columns = arena_take(plan, QUERY_TILE * c->ldv, sizeof(real));
        w.p = arena_take(plan, QUERY_TILE * sizes->attention_stride, sizeof(real));
        w.ds = arena_take(plan, QUERY_TILE * sizes->attention_stride, sizeof(real));
        w.products = a->softcap > 0 ? arena_take(plan, QUERY_TILE * sizes->attention_stride, sizeof(real)) : NULL;
        w.mask = arena_take(plan, c->group_rows * sizes->attention_stride, sizeof(real));
        if (plan->base) c->worker[m] = w;
    }
    c->row_keys = a->mask_kind == FA_MASK_NONE ? NULL : arena_take(plan, 2 * a->B * a->H * a->Lq, sizeof *c->row_keys);
    c->progress = arena_take(plan, a->B * a->Hk * c->blocks, sizeof *c->progress);
}

fa_status OP(attention_backward)(const fa_attention_backward_arguments *arguments)
{
    const fa_attention_arguments *a = &arguments->forward;
    const fa_kernels *k = current_kernels();
    const fa_index lanes = k->sizes.lanes, heads = a->B * a->Hk;
    if (heads == 0) return FA_OK;

    backward_call c = {.arguments = arguments, .a = a, .kernels = k, .group = a->H / a->Hk};
    c.block = BLOCK_KEYS / (fa_max(a->D, a->Dv) * (fa_index)sizeof(real) > BLOCK_ROW_BYTES ? 2 : 1);
    c.blocks = fa_max(1, fa_ceil_div(a->Lk, c.block));
    c.tiles = fa_ceil_div(a->Lq, QUERY_TILE);
    c.group_rows = GROUP_TILES * k->sizes.attention_rows;
    c.ldk = fa_max(lanes, fa_round_up(a->D, lanes));
    c.ldv = fa_max(lanes, fa_round_up(a->Dv, lanes));
    c.slice = QUERY_TILE * k->sizes.query_stride;
    c.scale = (real)a->scale;
    query_scale(a, &c.scale_high, &c.scale_low);

    const double pairs = (double)a->B * (double)a->H * (double)a->Lq * (double)a->Lk;
    const int members = fa_members_for(pairs * (3 * (double)a->D + 2 * (double)a->Dv));
    fa_scratch scratch;
    arena plan = {0};
    plan_scratch(&c, &plan, members);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_scratch(&c, &plan, members);
    memset(c.progress, 0, (size_t)(heads * c.blocks) * sizeof *c.progress);
    if (c.row_keys) fa_parallel_for(a->B * a->H, members, find_row_keys, &c);
    fa_parallel_for(heads * c.blocks, members, key_block, &c);
    fa_scratch_give(&scratch);
    return FA_OK;
}
