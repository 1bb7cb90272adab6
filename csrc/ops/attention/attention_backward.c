/* Attention backward (kernels/attention/attention_backward.c has the inside of a block).

   A key block of one kv head packs its keys and values, then takes the query blocks of all heads of its group:

     for each tile that attends to the block, for each query head
         S, masks, P, dS                   a few register tiles of rows at a time
         dq += scale dS K                  after the block before has added to this tile
         dv += P' dO,  dk += scale dS' Q   sums of the task, in its scratch

   So there are five products, and no partial sums beyond those of a block. Each sum is split at constant places, multiples of
   GRADIENT_TILE queries or of a block of keys, and its parts are added in ascending order: dk and dv within a block, dq from block
   to block, in a chain. The first of a chain finds delta too.

   A worker takes the blocks of a head one after another, as what a head reads again and again may fit its second-level cache. Of the
   last heads, one for each worker, blocks are tasks of their own: split block by block, the heads side by side, so that the one
   before in a chain was begun a round of heads earlier, and with as many heads as threads nobody waits. With fewer, tasks of one head
   follow each other one tile apart. What the next tile reads is prefetched during the products of a tile.

   Where arrays are no reals, dq is summed up in scratch, for some heads at a time, and rounded when the last block of a head has
   added to it. */
#include "attention_backward.h"

#include <math.h>
#include <string.h>

#define GROUP_TILES 4                    /* register tiles whose scores stay in the first-level cache between their passes */
#define BLOCK_KEYS 256                   /* keys in a block; so many bytes of a row of keys or values: */
#define BLOCK_ROW_BYTES 512              /* larger rows take half as many */
#define TRANSPOSED_PADDING 16            /* keeps rows of gradients from falling on the same cache sets */
#define ROUND_BYTES ((fa_index)16 << 20) /* of dq in scratch, for the kv heads at a time; but at least one with its group */

static stored *written_row(void *base, const fa_index *stride, fa_index b, fa_index h, fa_index i)
{
    return (stored *)base + b * stride[0] + h * stride[1] + i * stride[2];
}

/* Where dq of a row is summed up, and the distance of its rows. */
static real *summed_row(const backward_call *c, fa_index b, fa_index h, fa_index i, fa_index *ld)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
#if FA_CONVERTS
    (void)g;
    const fa_index head = b * a->Hk + h / c->group - c->first_head;
    *ld = a->D;
    return c->dq + ((head * c->group + h % c->group) * a->Lq + i) * a->D;
#else
    *ld = g->dq_stride[2];
    return written_row(g->dq, g->dq_stride, b, h, query_start(a, b) + i);
#endif
}

static void find_delta(const backward_call *c, const gradient_tile *t)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    c->kernels->attention_delta(c->delta + state_row(a, t->b, t->h, t->i0), gradient_row(g, t->b, t->h, t->i0), g->dout_stride[2],
                                output_row(a, t->b, t->h, t->i0), a->out_stride[2], t->rows, a->Dv);
}

static void pack_tile(const backward_call *c, const gradient_scratch *w, gradient_tile *t)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const stored *q = query_row(a, t->b, t->h, t->i0), *dout = gradient_row(g, t->b, t->h, t->i0);
    k->attention_pack_a(w->queries, c->slice, q, a->q_stride[2], t->rows, a->D, c->scale_high, c->scale_low);
    k->attention_pack_b(w->query_columns, q, a->q_stride[2], t->rows, a->D, &t->found_q);
    k->attention_pack_a(w->gradients, c->slice, dout, g->dout_stride[2], t->rows, a->Dv, c->early ? c->score_scale : 1, 0);
    k->attention_pack_b(w->gradient_columns, dout, g->dout_stride[2], t->rows, a->Dv, &t->found_g);
}

/* 0 where row r of the tile attends to keys outside the block; otherwise 1, or 2 with a sink, which is outside too. */
static unsigned char whole_row(const backward_call *c, const gradient_tile *t, fa_index r)
{
    fa_index begin, end;
    if (c->arguments->partial) return 0;
    attended_keys(c, t->b, t->h, t->i0 + r, &begin, &end);
    return (unsigned char)(begin < t->j0 || end > t->j0 + t->keys ? 0 : c->a->sinks ? 2 : 1);
}

/* The first and beyond the last key that each row of head `i` attends to, mask included. Padding that a mask excludes must change no
   bit, and what is the only block of a row decides about bits. */
static void find_row_keys(void *context, fa_index i, int worker)
{
    const backward_call *c = context;
    const fa_attention_arguments *a = c->a;
    const fa_index b = i / a->H, h = i % a->H;
    (void)worker;
    for (fa_index row = 0; row < a->Lq; row++) {
        fa_index *keys = c->row_keys + 2 * (i * a->Lq + row);
        const score_block one = {.rows = 1, .begin = &keys[0], .end = &keys[1]};
        keys_by_position(a, b, row, &keys[0], &keys[1]);
        OP(attention_narrow)(a, b, h, row, 0, &one);
    }
}

static void scale_score_gradients(const backward_call *c, const gradient_scratch *w, const gradient_tile *t, fa_index first,
                                  fa_index rows)
{
    for (fa_index r = first; r < first + rows; r++) {
        real *ds = w->ds + r * c->kernels->sizes.attention_stride;
        for (fa_index j = t->begin[r]; j < t->end[r]; j++) ds[j] *= c->score_scale;
    }
}

/* What becomes of dS of some rows, an even first one, before the products. */
static void finish_scores(const backward_call *c, const gradient_scratch *w, const gradient_tile *t, fa_index first,
                          fa_index rows)
{
    const fa_kernels *k = c->kernels;
    const fa_index at = first * k->sizes.attention_stride, at_pairs = first / 2 * k->sizes.attention_stride;
    if (!c->early && c->score_scale != 1) scale_score_gradients(c, w, t, first, rows);
    const score_block ds = block_of_tile(t, w->ds, first, rows, 1);
    if (c->a->softcap > 0) k->attention_softcap_gradients(&ds, w->products + at);
    k->attention_pair_gradients(w->p + at_pairs, w->ds_pairs + at_pairs, w->p + at, w->ds + at, rows, t->keys);
}

/* dS += P dlse. */
static void add_lse_gradients(const backward_call *c, const gradient_scratch *w, const gradient_tile *t, fa_index first,
                              fa_index rows)
{
    const real *dlse = (const real *)c->arguments->dlse;
    const fa_index stride = c->kernels->sizes.attention_stride, row = state_row(c->a, t->b, t->h, t->i0);
    for (fa_index r = first; dlse && r < first + rows; r++) {
        const real *p = w->p + r * stride, factor = dlse[row + r] * (c->early ? c->score_scale : 1);
        real *ds = w->ds + r * stride;
        for (fa_index j = t->begin[r]; j < t->end[r]; j++) ds[j] += p[j] == 0 ? 0 : p[j] * factor;
    }
}

/* P and dS of the tile; dS is not finished where dmask is wanted, which takes it as it is. */
static void probabilities(const backward_call *c, const gradient_scratch *w, const gradient_tile *t)
{
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const fa_index stride = k->sizes.attention_stride, query_stride = k->sizes.query_stride;
    const fa_index row = state_row(a, t->b, t->h, t->i0);
    unsigned char whole[GRADIENT_TILE];
    real delta[GRADIENT_TILE];
    for (fa_index r = 0; r < t->rows; r += c->group_rows) {
        const fa_index rows = fa_min(c->group_rows, t->rows - r);
        const score_block p = block_of_tile(t, w->p, r, rows, c->scale_high);
        const score_block ds = block_of_tile(t, w->ds, r, rows, c->early ? c->score_scale : 1);
        real *products = a->softcap > 0 ? w->products + r * stride : NULL;
        k->attention_product_nt(&p, w->queries + r * query_stride, c->slice, w->keys, a->D, NULL);
        if (products) memcpy(products, p.s, (size_t)(rows * stride) * sizeof(real));
        OP(attention_adjust_scores)(a, k, &p, w->mask, t->b, t->h, t->i0 + r, t->j0);
        OP(attention_natural_rows)(a, k, &p, products, t->b, t->h, t->i0 + r, t->j0);
        k->attention_probabilities(&p, (const real *)a->shift + row + r, (const real *)a->sum + row + r);
        k->attention_product_nt(&ds, w->gradients + r * query_stride, c->slice, w->values, a->Dv, NULL);
        OP(attention_drop)(a, k, &ds, t->b, t->h, t->i0 + r, t->j0);
        for (fa_index i = 0; i < rows; i++) {
            whole[i] = whole_row(c, t, r + i);
            delta[i] = c->delta[row + r + i] * (c->early ? c->score_scale : 1);
        }
        k->attention_score_gradients(&ds, p.s, delta, whole);
        add_lse_gradients(c, w, t, r, rows);
        OP(attention_drop)(a, k, &p, t->b, t->h, t->i0 + r, t->j0); /* from here on p is what values are multiplied with */
        OP(attention_add_slopes)(c, w, t, r, rows);
        if (!c->arguments->dmask) finish_scores(c, w, t, r, rows);
    }
}

/* Rows [rows, padded) of an operand of key gradients, which reads whole steps. */
static void clear_rows(const backward_call *c, real *p, fa_index rows)
{
    const fa_index filled = fa_ceil_div(rows, c->kernels->sizes.packed), stride = c->kernels->sizes.attention_stride;
    const fa_index missing = fa_round_up(filled, c->kernels->sizes.tile_k) - filled;
    memset(p + filled * stride, 0, (size_t)(missing * stride) * sizeof(real));
}

/* What the tile of a later step reads first. */
typedef struct {
    prefetch_rows q, dout, dq;
} tile_ahead;

static tile_ahead step_ahead(const backward_call *c, fa_index b, fa_index hk, fa_index step)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    const fa_index h = hk * c->group + step % c->group, i0 = step / c->group * GRADIENT_TILE;
    const fa_index rows = fa_min(GRADIENT_TILE, query_rows(a, b) - i0), size = (fa_index)sizeof(stored);
    tile_ahead ahead = {0};
    fa_index ld;
    if (rows <= 0) return ahead;
    ahead.q = (prefetch_rows){query_row(a, b, h, i0), a->q_stride[2] * size, a->D * size, rows, NULL};
    ahead.dout = (prefetch_rows){gradient_row(g, b, h, i0), g->dout_stride[2] * size, a->Dv * size, rows, NULL};
    const real *dq = summed_row(c, b, h, i0, &ld);
    ahead.dq = (prefetch_rows){dq, ld * (fa_index)sizeof(real), a->D * (fa_index)sizeof(real), rows, NULL};
    return ahead;
}

/* The rows of dq of a tile. The first block begins with zeros. */
static void add_query_gradients(const backward_call *c, const gradient_scratch *w, const gradient_tile *t, int attends,
                                int begins, int nonfinite_k, const prefetch_rows *next)
{
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    fa_index ld;
    real *dq = summed_row(c, t->b, t->h, t->i0, &ld);
    for (fa_index r = 0; begins && r < t->rows; r++) memset(dq + r * ld, 0, (size_t)a->D * sizeof(real));
    if (!attends) return;
    const score_block ds = block_of_tile(t, w->ds, 0, t->rows, 1), p = block_of_tile(t, w->p, 0, t->rows, 1);
    k->attention_product_nn(dq, ld, &ds, w->columns, a->D, c->scale, next);
    if (nonfinite_k)
        k->attention_patch_gradients(dq, ld, 1, &p, w->ds_pairs, key_row(a, t->b, t->hk, t->j0), a->k_stride[2], a->D, c->scale,
                                     0);
}

/* The rows of dk or dv of a block, of ld columns each; or transposed, ld rows of so many keys. */
static fa_index gradient_stride(const backward_call *c, fa_index keys, fa_index ld)
{
    const fa_kernel_sizes *sizes = &c->kernels->sizes;
    return sizes->transposed_gradients ? fa_round_up(keys, sizes->packed * sizes->lanes) + TRANSPOSED_PADDING : ld;
}

static fa_index gradient_size(const backward_call *c, fa_index keys, fa_index ld)
{
    return (c->kernels->sizes.transposed_gradients ? ld : keys) * gradient_stride(c, keys, ld);
}

static void clear_key_gradients(const backward_call *c, const gradient_scratch *w, fa_index keys)
{
    memset(w->dk, 0, (size_t)gradient_size(c, keys, c->ldk) * sizeof(real));
    memset(w->dv, 0, (size_t)gradient_size(c, keys, c->ldv) * sizeof(real));
}

/* Without `more` the first ones of a block. */
static void add_key_gradients(const backward_call *c, const gradient_scratch *w, const gradient_tile *t, int more,
                              const tile_ahead *next)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const int transposed = k->sizes.transposed_gradients != 0;
    const fa_index ldk = gradient_stride(c, t->keys, c->ldk), ldv = gradient_stride(c, t->keys, c->ldv);
    const score_block p = block_of_tile(t, w->p, 0, t->rows, 1), ds = block_of_tile(t, w->ds_pairs, 0, t->rows, 1);
    k->attention_product_tn(w->dv, ldv, &p, w->gradient_columns, a->Dv, more, &next->dout);
    k->attention_product_tn(w->dk, ldk, &ds, w->query_columns, a->D, more, &next->q);
    if (t->found_q & VALUES_NOT_FINITE)
        k->attention_patch_gradients(w->dk, transposed ? 1 : ldk, transposed ? ldk : 1, &p, w->ds_pairs,
                                     query_row(a, t->b, t->h, t->i0), a->q_stride[2], a->D, 1, 1);
    if (t->found_g & VALUES_NOT_FINITE)
        k->attention_patch_gradients(w->dv, transposed ? 1 : ldv, transposed ? ldv : 1, &p, w->p,
                                     gradient_row(g, t->b, t->h, t->i0), g->dout_stride[2], a->Dv, 1, 1);
}

/* A tile and the block of the task, up to its dq. */
static void compute_scores(const backward_call *c, const gradient_scratch *w, gradient_tile *t, fa_index task, fa_index tile_end,
                           int attends)
{
    if (attends) {
        pack_tile(c, w, t);
        probabilities(c, w, t);
    }
    OP(attention_add_mask)(c, w, t, task, tile_end, attends);
    if (!attends) return;
    for (fa_index r = 0; c->arguments->dmask && r < t->rows; r += c->group_rows)
        finish_scores(c, w, t, r, fa_min(c->group_rows, t->rows - r));
    clear_rows(c, w->p, t->rows);
    clear_rows(c, w->ds_pairs, t->rows);
}

/* Rows [i, i + rows) of a gradient of head h in `base`, from sums in `src`, whose strides are ld and 1, or 1 and ld if `transposed`. */
static void store_rows(const backward_call *c, void *base, const fa_index *stride, fa_index b, fa_index h, fa_index i,
                       const real_rows *src, fa_index rows, fa_index D, real scale, int transposed)
{
#if FA_CONVERTS
    if (c->arguments->wide) {
        real *dst = (real *)base + b * stride[0] + h * stride[1] + i * stride[2];
        const fa_index row = transposed ? 1 : src->ld, column = transposed ? src->ld : 1;
        for (fa_index r = 0; r < rows; r++)
            for (fa_index d = 0; d < D; d++) dst[r * stride[2] + d] = src->p[r * row + d * column] * scale;
        return;
    }
#endif
    c->kernels->attention_scale_gradients(written_row(base, stride, b, h, i), stride[2], src->p, src->ld, rows, D, scale,
                                          transposed);
}

/* dk and dv of the block, and from its last block on dq of the head. */
static void store_gradients(const backward_call *c, const gradient_scratch *w, fa_index b, fa_index hk, fa_index j0,
                            fa_index keys, int last)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    const fa_index first = key_start(a, b) + j0;
    const int transposed = c->kernels->sizes.transposed_gradients != 0;
    const real_rows dk = {w->dk, gradient_stride(c, keys, c->ldk)}, dv = {w->dv, gradient_stride(c, keys, c->ldv)};
    store_rows(c, g->dk, g->dk_stride, b, hk, first, &dk, keys, a->D, c->scale, transposed);
    store_rows(c, g->dv, g->dv_stride, b, hk, first, &dv, keys, a->Dv, 1, transposed);
    for (fa_index h = hk * c->group; FA_CONVERTS && last && h < (hk + 1) * c->group; h++) {
        real_rows dq;
        dq.p = summed_row(c, b, h, 0, &dq.ld);
        store_rows(c, g->dq, g->dq_stride, b, h, query_start(a, b), &dq, query_rows(a, b), a->D, 1, 0);
    }
}

/* The order of additions to dq: how far the tasks of three blocks of a head are. */
typedef struct {
    fa_progress *mine;
    fa_progress *before; /* which adds before this one, or NULL */
    fa_progress *first;  /* which finds delta; NULL where this is the first one */
} block_chain;

/* Of block j of one of the current heads, whose chain begins with block `first`. */
static block_chain chain_of(const backward_call *c, fa_index j, fa_index first, fa_index head)
{
    fa_progress *mine = c->progress + j * c->heads + head;
    return (block_chain){mine, j > first ? mine - c->heads : NULL, j > first ? mine - (j - first) * c->heads : NULL};
}

/* Block j of one of the current heads. */
static void block_gradients(const backward_call *c, const gradient_scratch *w, fa_index j, fa_index current)
{
    const fa_attention_arguments *a = c->a;
    const fa_kernels *k = c->kernels;
    const fa_index head = c->first_head + current, b = head / a->Hk, hk = head % a->Hk, i = j * c->heads + current;
    const fa_index j0 = j * c->block, keys = fa_max(0, fa_min(c->block, (a->k_starts ? key_length(a, b) : a->Lk) - j0)),
                   steps = c->group * c->tiles;
    fa_index first, end;
    head_blocks(a, c->block, b, &first, &end); /* without any the first one writes the zeros of dq */
    const int active = j >= first && (j < end || j == first);
    const block_chain chain = chain_of(c, j, first, current);

    /* Where they are transposed, the first tile that attends writes all of them. */
    int more = !k->sizes.transposed_gradients;
    if (more) clear_key_gradients(c, w, keys);
    OP(attention_begin_options)(c, w);
    int found_k = 0;
    if (j >= first && j < end) {
        const stored *key = key_row(a, b, hk, j0);
        k->attention_pack_bt(w->keys, key, a->k_stride[2], keys, a->D);
        k->attention_pack_bt(w->values, value_row(a, b, hk, j0), a->v_stride[2], keys, a->Dv);
        k->attention_pack_b(w->columns, key, a->k_stride[2], keys, a->D, &found_k);
    }
    for (fa_index step = 0; active && step < steps; step++) {
        const fa_index tile = step / c->group;
        gradient_tile t = {.b = b, .h = hk * c->group + step % c->group, .hk = hk, .i0 = tile * GRADIENT_TILE, .j0 = j0};
        t.rows = fa_min(GRADIENT_TILE, query_rows(a, b) - t.i0);
        t.keys = keys;
        if (t.rows <= 0) continue;
        const score_block ranges = block_of_tile(&t, NULL, 0, t.rows, 1);
        int attends = block_ranges(a, b, t.i0, j0, &ranges) > 0;
        if (attends && a->mask_kind != FA_MASK_NONE) attends = OP(attention_narrow)(a, b, t.h, t.i0, j0, &ranges) > 0;
        if (!attends && j > first) continue;
        if (chain.first)
            fa_progress_wait(chain.first, step + 1);
        else
            find_delta(c, &t);
        compute_scores(c, w, &t, i, (tile + 1) * c->group, attends);
        const tile_ahead ahead = step_ahead(c, b, hk, step + 1);
        if (chain.before) fa_progress_wait(chain.before, step + 1);
        add_query_gradients(c, w, &t, attends, j == first, found_k & VALUES_NOT_FINITE, &ahead.dq);
        fa_progress_publish(chain.mine, step + 1);
        if (attends) add_key_gradients(c, w, &t, more, &ahead);
        more |= attends;
    }
    if (!more) clear_key_gradients(c, w, keys);
    if (chain.before) fa_progress_wait(chain.before, steps);
    OP(attention_end_options)(c, w, i, b, hk, j, keys);
    fa_progress_publish(chain.mine, steps + 1);
    store_gradients(c, w, b, hk, j0, keys, active && j + 1 >= end);
}

/* Task i of the current heads: a whole head, or a block of one of the others. */
static void head_or_block(void *context, fa_index i, int worker)
{
    const backward_call *c = context;
    const gradient_scratch *w = &c->worker[worker];
    const fa_index part = i - c->whole, others = c->heads - c->whole;
    for (fa_index j = 0; part < 0 && j < c->blocks; j++) block_gradients(c, w, j, i);
    if (part >= 0) block_gradients(c, w, part / others, c->whole + part % others);
}

/* Gives out the scratch of a call from `plan`; called twice, see arena. */
static void plan_scratch(backward_call *c, arena *plan, int threads)
{
    const fa_attention_arguments *a = c->a;
    const fa_kernel_sizes *sizes = &c->kernels->sizes;
    const fa_index slices_q = fa_ceil_div(a->D, sizes->query_slice), slices_g = fa_ceil_div(a->Dv, sizes->query_slice);
    const fa_index scores = GRADIENT_TILE * sizes->attention_stride;
    c->worker = arena_take(plan, threads, sizeof *c->worker);
    for (int m = 0; m < threads; m++) {
        gradient_scratch w;
        w.keys = arena_take(plan, c->block * fa_round_up(a->D, sizes->tile_k), sizeof(real));
        w.values = arena_take(plan, c->block * fa_round_up(a->Dv, sizes->tile_k), sizeof(real));
        w.columns = arena_take(plan, c->block * c->ldk, sizeof(real));
        w.dk = arena_take(plan, gradient_size(c, c->block, c->ldk), sizeof(real));
        w.dv = arena_take(plan, gradient_size(c, c->block, c->ldv), sizeof(real));
        w.queries = arena_take(plan, slices_q * c->slice, sizeof(real));
        w.gradients = arena_take(plan, slices_g * c->slice, sizeof(real));
        w.query_columns = arena_take(plan, GRADIENT_TILE * c->ldk, sizeof(real));
        w.gradient_columns = arena_take(plan, GRADIENT_TILE * c->ldv, sizeof(real));
        w.p = arena_take(plan, scores, sizeof(real));
        w.ds = arena_take(plan, scores, sizeof(real));
        w.ds_pairs = sizes->packed > 1 ? arena_take(plan, scores / 2, sizeof(real)) : w.ds;
        w.products = a->softcap > 0 ? arena_take(plan, scores, sizeof(real)) : NULL;
        w.mask = arena_take(plan, c->group_rows * sizes->attention_stride, sizeof(real));
        OP(attention_plan_option_parts)(c, &w, plan);
        if (plan->base) c->worker[m] = w;
    }
    c->row_keys = a->mask_kind == FA_MASK_NONE ? NULL : arena_take(plan, 2 * a->B * a->H * a->Lq, sizeof *c->row_keys);
    c->delta = arena_take(plan, a->q_starts ? a->H * a->lse_stride : a->B * a->H * a->Lq, sizeof(real));
    c->progress = arena_take(plan, c->heads * c->blocks, sizeof *c->progress);
    c->dq = FA_CONVERTS ? arena_take(plan, c->heads * c->group * a->Lq * a->D, sizeof(real)) : NULL;
    OP(attention_plan_options)(c, plan);
}

/* A scale comes in two parts. A power of two is part of dS, as in the plain formula, so that sums of dS K and dS' Q overflow where scaled
   ones do; it changes bits only beside the ends of the range, and has an end before the lower one. Where it is below 1 dout carries it, at
   no cost, unless somebody wants dS as it is. Matrix tiles, which take dout without a scale, keep one below 1 for the end. */
static void scale_of_gradients(backward_call *c)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const double scale = (double)(real)c->a->scale;
    const int lowest = sizeof(real) == sizeof(float) ? -100 : -900;
    const int power = scale == 0 || (fabs(scale) < 1 && c->kernels->sizes.transposed_gradients) ? 0 : ilogb(scale);
    const int exponent = power < lowest ? lowest : power;
    c->score_scale = (real)ldexp(1, exponent);
    c->scale = (real)ldexp(scale, -exponent);
    c->early = exponent <= 0 && !g->dmask && !g->dslopes;
}

/* How many of the kv heads are taken at a time. It decides the order of additions only to a dmask without keys, which adds up the
   blocks of all heads at a time: there the number may not depend on lengths, lest padding changed bits. */
static fa_index heads_at_once(const backward_call *c, fa_index heads)
{
    if (!FA_CONVERTS) return heads;
    if (c->arguments->dmask && c->arguments->dmask_stride[3] == 0) return fa_min(heads, 1);
    const fa_index head_bytes = fa_max(1, c->group * c->a->Lq * c->a->D * (fa_index)sizeof(real));
    return fa_min(heads, fa_max(1, ROUND_BYTES / head_bytes));
}

fa_status OP(attention_backward)(const fa_attention_backward_arguments *arguments)
{
    const fa_attention_arguments *a = &arguments->forward;
    const fa_kernels *k = current_kernels();
    const fa_index lanes = k->sizes.lanes, heads = a->B * a->Hk;

    backward_call c = {.arguments = arguments, .a = a, .kernels = k, .group = a->Hk ? a->H / a->Hk : 0};
    if (a->D == 0 && a->Dv == 0 && !arguments->dmask && !arguments->dslopes && !arguments->dsinks) return FA_OK;
    c.block = BLOCK_KEYS / (fa_max(a->D, a->Dv) * (fa_index)sizeof(real) > BLOCK_ROW_BYTES ? 2 : 1);
    c.blocks = fa_max(1, fa_ceil_div(a->Lk, c.block));
    c.tiles = fa_ceil_div(a->Lq, GRADIENT_TILE);
    c.group_rows = GROUP_TILES * k->sizes.attention_rows;
    c.ldk = fa_max(lanes, fa_round_up(a->D, lanes));
    c.ldv = fa_max(lanes, fa_round_up(a->Dv, lanes));
    c.slice = GRADIENT_TILE * k->sizes.query_stride;
    scale_of_gradients(&c);
    c.heads = heads_at_once(&c, heads);
    query_scale(a, &c.scale_high, &c.scale_low);

    const double pairs = (double)a->B * (double)a->H * (double)a->Lq * (double)a->Lk;
    const int threads = fa_threads_for(pairs * (3 * (double)a->D + 2 * (double)a->Dv));
    fa_scratch scratch;
    arena plan = {0};
    plan_scratch(&c, &plan, threads);
    if (!fa_scratch_take(&scratch, plan.used)) return FA_NOMEM;
    plan = (arena){.base = scratch.base};
    plan_scratch(&c, &plan, threads);
    if (c.row_keys) fa_parallel_for(a->B * a->H, threads, find_row_keys, &c);
    if (arguments->dmask) memset(arguments->dmask, 0, (size_t)arguments->dmask_size * sizeof(real));
    const fa_index at_once = c.heads;
    for (; c.first_head < heads; c.first_head += at_once) {
        c.heads = fa_min(at_once, heads - c.first_head);
        memset(c.progress, 0, (size_t)(c.heads * c.blocks) * sizeof *c.progress);
        c.whole = arguments->dmask ? 0 : threads == 1 ? c.heads : fa_max(0, c.heads - threads);
        fa_parallel_for(c.whole + (c.heads - c.whole) * c.blocks, threads, head_or_block, &c);
    }
    OP(attention_finish_options)(&c, threads);
    fa_scratch_give(&scratch);
    return FA_OK;
}
