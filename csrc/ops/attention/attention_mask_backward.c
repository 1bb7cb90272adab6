/* Gradients of the mask, the slopes and the sinks of attention.

   dmask has the shape of the mask: a sum over the axes along which that was broadcast. Sums over rows are parts of a task, and added
   when it ends; everything else is added tile by tile. Where several tasks add to an element, heads or batches that share a mask or
   blocks of a mask without keys, each waits for the one before it, at the same tile: one order of additions on any number of
   threads, and no memory beyond dmask itself.

   dslopes are sums of a task for each of its heads, in [B, H, blocks]; dsinks need no scores, only delta: sums of a head in [B, H].
   Both are added up at the end. */
#include "attention_backward.h"

#include <string.h>

#define SINK_ROWS 8

static int over_rows(const backward_call *c) { return c->arguments->dmask_stride[2] == 0; }
static int over_keys(const backward_call *c) { return c->arguments->dmask_stride[3] == 0; }

/* Sums over rows of a task: those of its heads apart, where the mask has them. */
static fa_index mask_parts(const backward_call *c) { return c->arguments->dmask_stride[1] == 0 ? 1 : c->group; }

static real *mask_part(const backward_call *c, const gradient_scratch *w, fa_index h)
{
    return w->dmask + (mask_parts(c) == 1 ? 0 : h % c->group) * c->block;
}

static real *gradient_place(const backward_call *c, fa_index b, fa_index h, fa_index i, fa_index j)
{
    const fa_index *stride = c->arguments->dmask_stride;
    return (real *)c->arguments->dmask + b * stride[0] + h * stride[1] + i * stride[2] + j * stride[3];
}

void OP(attention_plan_options)(backward_call *c, arena *plan)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    const fa_index *stride = g->dmask_stride;
    c->slope_parts = g->dslopes ? arena_take(plan, a->B * a->H * c->blocks, sizeof(real)) : NULL;
    c->sink_parts = g->dsinks ? arena_take(plan, a->B * a->H, sizeof(real)) : NULL;
    c->mask_in_order = g->dmask && ((a->B > 1 && !stride[0]) || (a->Hk > 1 && !stride[1]) || (c->blocks > 1 && !stride[3]));
}

void OP(attention_plan_option_parts)(const backward_call *c, gradient_scratch *w, arena *plan)
{
    const fa_attention_backward_arguments *g = c->arguments;
    w->dmask = g->dmask && over_rows(c) ? arena_take(plan, mask_parts(c) * c->block, sizeof(real)) : NULL;
    w->dslopes = g->dslopes ? arena_take(plan, c->group, sizeof(real)) : NULL;
}

void OP(attention_begin_options)(const backward_call *c, const gradient_scratch *w)
{
    if (w->dmask) memset(w->dmask, 0, (size_t)(mask_parts(c) * c->block) * sizeof(real));
    if (w->dslopes) memset(w->dslopes, 0, (size_t)c->group * sizeof(real));
}

void OP(attention_add_slopes)(const backward_call *c, const gradient_scratch *w, const gradient_tile *t, fa_index first,
                              fa_index rows)
{
    const fa_kernels *k = c->kernels;
    if (!w->dslopes) return;
    const score_block ds = block_of_tile(t, w->ds, first, rows, 1);
    k->attention_alibi_gradients(w->dslopes + t->h % c->group, &ds, t->j0 - diagonal_of(c->a, t->b, t->i0 + first));
}

void OP(attention_add_mask)(const backward_call *c, const gradient_scratch *w, const gradient_tile *t, fa_index task,
                            fa_index step, int attends)
{
    if (!c->arguments->dmask) return;
    if (!w->dmask && c->mask_in_order && task > 0) fa_progress_wait(c->progress + task - 1, step);
    if (!attends) return;
    real *dst = w->dmask ? mask_part(c, w, t->h) : gradient_place(c, t->b, t->h, t->i0, t->j0);
    const score_block ds = block_of_tile(t, w->ds, 0, t->rows, 1);
    c->kernels->attention_mask_gradients(dst, c->arguments->dmask_stride[2], &ds, over_rows(c), over_keys(c));
}

void OP(attention_end_options)(const backward_call *c, const gradient_scratch *w, fa_index task, fa_index b, fa_index hk,
                               fa_index j, fa_index keys)
{
    const fa_index steps = c->group * c->tiles;
    for (fa_index g = 0; w->dslopes && g < c->group; g++)
        c->slope_parts[(b * c->a->H + hk * c->group + g) * c->blocks + j] = w->dslopes[g];
    if (!c->arguments->dmask) return;
    if (c->mask_in_order && task > 0) fa_progress_wait(c->progress + task - 1, steps + 1);
    for (fa_index part = 0; w->dmask && part < mask_parts(c); part++)
        c->kernels->add_rows(gradient_place(c, b, hk * c->group + part, 0, j * c->block), w->dmask + part * c->block, 0, 1,
                             over_keys(c) ? 1 : keys);
}

/* total += part, and what rounding loses of it to `lost` (Neumaier 1974). */
static void add_part(real *total, real *lost, real part)
{
    const real sum = *total + part;
    if (isfinite(sum)) *lost += fabs((double)*total) >= fabs((double)part) ? (*total - sum) + part : (part - sum) + *total;
    *total = sum;
}

/* The sink of head i: rows a tile at a time; with dlse, whose terms may be as large as their sum, a few, so that the rounding of that counts
   for little. A row without keys counts where its lse does, or others may have keys for it. */
static void head_sink(void *context, fa_index i, int worker)
{
    const backward_call *c = context;
    const fa_attention_backward_arguments *g = c->arguments;
    const real *dlse = (const real *)g->dlse;
    const fa_attention_arguments *a = c->a;
    const fa_index b = i / a->H, h = i % a->H;
    (void)worker;
    real total = 0, lost = 0;
    for (fa_index i0 = 0, rows; i0 < query_length(a, b); i0 += rows) {
        unsigned char counts[GRADIENT_TILE];
        real delta[GRADIENT_TILE];
        real part = 0;
        rows = fa_min(dlse ? SINK_ROWS : GRADIENT_TILE, query_length(a, b) - i0);
        const fa_index row = state_row(a, b, h, i0);
        for (fa_index r = 0; r < rows; r++) {
            fa_index begin, end;
            attended_keys(c, b, h, i0 + r, &begin, &end);
            const int attends = begin < end || g->partial;
            delta[r] = (attends ? c->delta[row + r] : 0) - (dlse ? dlse[row + r] : 0);
            counts[r] = attends || dlse;
        }
        c->kernels->attention_sink_gradients(dlse ? &part : &total, ((const real *)a->sinks)[h], delta,
                                             (const real *)a->shift + row, (const real *)a->sum + row, counts, rows);
        add_part(&total, &lost, part);
    }
    c->sink_parts[i] = total + lost;
}

void OP(attention_finish_options)(const backward_call *c, int threads)
{
    const fa_attention_backward_arguments *g = c->arguments;
    const fa_attention_arguments *a = c->a;
    const size_t bytes = (size_t)a->H * sizeof(real);
    if (g->dslopes) {
        /* Of each head first, then over the batch: padding, which is blocks of zeros at the end of a head, changes no bit. */
        real *head = c->slope_parts;
        for (fa_index i = 0; i < a->B * a->H; i++) {
            real total = 0;
            c->kernels->sum_rows(&total, c->slope_parts + i * c->blocks, 1, NULL, c->blocks, 1);
            head[i] = total;
        }
        memset(g->dslopes, 0, bytes);
        c->kernels->sum_rows(g->dslopes, head, a->H, NULL, a->B, a->H);
    }
    if (g->dsinks) {
        fa_parallel_for(a->B * a->H, threads, head_sink, (void *)c);
        memset(g->dsinks, 0, bytes);
        c->kernels->sum_rows(g->dsinks, c->sink_parts, a->H, NULL, a->B, a->H);
    }
}
