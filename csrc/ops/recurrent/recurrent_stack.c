/* Layers and directions of a recurrent network in one call to the pool. One layer in one direction is a pseudo-layer
   (recurrent.c). The threads of the team share the pseudo-layers by one of three schedules (choose_schedule, from sizes alone):

     sequences  each takes some of the sequences through all pseudo-layers, and none waits
     layers     directions run side by side, and a layer follows the one below as soon as that has done a chunk of steps (a
                wavefront); above both directions of a layer, the next one waits for the whole of it
     panels     one pseudo-layer after another; each thread keeps a slice of its units, and of w_hh in its own cache for the whole
                sequence; they wait for each other between steps. When one comes late the team dissolves; the caller goes on alone for
                some steps, then tries a team again

   No bit depends on the schedule. */
#include "pseudo_layer.h"

#include <stdatomic.h>
#include <stdlib.h>

/* Rows in a chunk of a wavefront, and the most parts that a sequence is cut into: a layer starts a chunk late. */
#define WAVE_ROWS 48
#define WAVE_CHUNKS 32
#define POLLS_BEFORE_YIELD 1000
/* Multiply-adds of a caller alone, some 20 milliseconds, before it tries a team again. */
#define WORK_ALONE 1e9

typedef enum { BY_SEQUENCES, BY_LAYERS, BY_PANELS } schedule;

typedef struct {
    FA_ALIGN(64) _Atomic int claimed;
    _Atomic fa_index done; /* steps */
} layer_progress;

/* A step of a pseudo-layer. */
typedef struct {
    fa_index layer, step;
} place;

typedef struct {
    pseudo_layer *layer; /* [layers][directions] */
    fa_index pseudo_layers, directions, steps, B;
    schedule schedule;
    int threads;
    double step_work; /* multiply-adds of a step of a pseudo-layer */
    fa_index chunk;   /* steps of a pseudo-layer that a thread runs at a time, by layers */
    place from, to;   /* of a team, by panels: where it begins; where the next one does */
    layer_progress *progress;
    slot *slots;
    char *work; /* scratch of the threads, each of work_bytes */
    size_t work_bytes;
    fa_team_barrier barrier;
} stack_call;

static void choose_schedule(stack_call *c)
{
    double work = 0, step = 0;
    fa_index slices = INT64_MAX;
    for (fa_index i = 0; i < c->pseudo_layers; i++) {
        const recurrent_layer *g = &c->layer[i].g;
        const double gates = (double)c->B * (double)(g->shape->gates * g->H);
        const double output = g->projected ? (double)c->B * (double)g->H * (double)g->P : 0;
        work += (double)c->steps * (gates * (double)(g->P + g->I) + output);
        step += (gates * (double)g->P + output) / (double)c->pseudo_layers;
        slices = fa_min(slices, g->panels / 2); /* of two panels, the width of a panel of w_hn */
    }
    const fa_index wanted = fa_threads_for(work);
    const fa_index sequences = fa_min(wanted, c->B / SEQUENCES_PER_THREAD);
    const fa_index layers = c->pseudo_layers / c->directions;
    const fa_index side_by_side = fa_min(wanted, c->directions > 1 ? c->directions : layers);
    const fa_index panels = fa_min(fa_min(wanted, slices), (fa_index)(step / STEP_WORK_PER_THREAD));
    c->schedule = BY_SEQUENCES;
    c->threads = (int)fa_max(1, sequences);
    if (side_by_side > c->threads && c->steps > 1) {
        c->schedule = BY_LAYERS;
        c->threads = (int)side_by_side;
    }
    if (panels > c->threads) {
        c->schedule = BY_PANELS;
        c->threads = (int)panels;
    }
    c->step_work = step;
    c->chunk = fa_max(fa_max(1, WAVE_ROWS / fa_max(1, c->B)), fa_ceil_div(c->steps, WAVE_CHUNKS));
}

/* ---- the three schedules ---- */

/* The whole of a pseudo-layer, on one thread. */
static const layer_share whole = {0, 1, NULL};

/* A thread's part of each pseudo-layer that it runs. */
static layer_share share_of(stack_call *c, int thread)
{
    return c->schedule == BY_LAYERS ? whole : (layer_share){thread, c->threads, c->schedule == BY_PANELS ? &c->barrier : NULL};
}

static char *work_of(const stack_call *c, int thread) { return c->work + (size_t)thread * c->work_bytes; }

/* Share i of all pseudo-layers, where none waits for another. */
static void run_share(void *context, fa_index i, int worker)
{
    stack_call *c = context;
    for (fa_index layer = 0; layer < c->pseudo_layers; layer++)
        OP(pseudo_layer_run)(&c->layer[layer], share_of(c, (int)i), work_of(c, worker), 0, c->steps);
}

static void by_panels(stack_call *c, int thread)
{
    const layer_share share = share_of(c, thread);
    place at = c->from;
    for (int dissolved = 0; !dissolved && at.layer < c->pseudo_layers;) {
        at.step = OP(pseudo_layer_run)(&c->layer[at.layer], share, work_of(c, thread), at.step, c->steps);
        if (at.step < c->steps) break;
        at = (place){at.layer + 1, 0};
        if (at.layer < c->pseudo_layers) dissolved = fa_team_wait(share.barrier, share.threads);
    }
    if (thread == 0) c->to = at;
}

/* Some steps; by layers, all. */
static void alone(stack_call *c)
{
    const fa_index some = c->schedule == BY_LAYERS ? c->steps : 1 + (fa_index)(WORK_ALONE / (c->step_work + 1));
    place at = c->from;
    do {
        const fa_index end = fa_min(c->steps, at.step + some);
        at.step = OP(pseudo_layer_run)(&c->layer[at.layer], whole, c->work, at.step, end) % c->steps;
        at.layer += at.step == 0;
    } while (c->schedule == BY_LAYERS && at.layer < c->pseudo_layers);
    c->to = at;
}

/* Whether pseudo-layer i can run up to `end`. */
static int inputs_ready(const stack_call *c, fa_index i, fa_index end)
{
    const fa_index below = i / c->directions * c->directions - c->directions;
    if (below < 0) return 1;
    if (c->directions == 1) return atomic_load_explicit(&c->progress[below].done, memory_order_acquire) >= end;
    for (fa_index d = 0; d < c->directions; d++)
        if (atomic_load_explicit(&c->progress[below + d].done, memory_order_acquire) < c->steps) return 0;
    return 1;
}

/* Runs the next chunk of pseudo-layer i if that is possible now. */
static int try_layer(const stack_call *c, fa_index i, char *work)
{
    layer_progress *p = &c->progress[i];
    int free = 0;
    if (!atomic_compare_exchange_strong(&p->claimed, &free, 1)) return 0;
    const fa_index done = atomic_load(&p->done), end = fa_min(c->steps, done + c->chunk);
    const int run = done < end && inputs_ready(c, i, end);
    if (run) {
        OP(pseudo_layer_run)(&c->layer[i], whole, work, done, end);
        atomic_store_explicit(&p->done, end, memory_order_release);
    }
    atomic_store(&p->claimed, 0);
    return run;
}

static void side_by_side(stack_call *c, int thread)
{
    /* A thread stays with its pseudo-layer, whose weights its cache holds, as long as that can run. */
    fa_index i = thread % c->pseudo_layers;
    for (int polls = 0;;) {
        fa_index tried = 0, left = 0;
        while (tried < c->pseudo_layers && !try_layer(c, i, work_of(c, thread))) {
            left += atomic_load(&c->progress[i].done) < c->steps;
            i = (i + 1) % c->pseudo_layers;
            tried++;
        }
        if (tried < c->pseudo_layers)
            polls = 0;
        else if (!left)
            break;
        else if (++polls > POLLS_BEFORE_YIELD)
            fa_team_yield();
    }
    if (thread == 0) c->to.layer = c->pseudo_layers;
}

static void run_thread(void *context, int thread, int threads)
{
    stack_call *c = context;
    if (threads == c->threads) {
        c->schedule == BY_LAYERS ? side_by_side(c, thread) : by_panels(c, thread);
    } else if (thread == 0) {
        /* Fewer threads could be had than the work was shared out for. The scratch is large enough for this too. */
        alone(c);
    }
}

/* Whether the shares of a step are independent. */
static int one_product(const pseudo_layer *c) { return !c->g.projected && c->g.cell != FA_GRU_RESET_BEFORE; }

static void run_layers(stack_call *c)
{
    if (c->steps == 0) return;
    if (c->schedule == BY_SEQUENCES || (c->steps == 1 && c->pseudo_layers == 1 && one_product(c->layer))) {
        fa_parallel_for(c->threads, c->threads, run_share, c);
        return;
    }
    for (; c->from.layer < c->pseudo_layers; c->from = c->to) {
        c->barrier = (fa_team_barrier){.patience = fa_patience(c->step_work / c->threads)};
        fa_team_run(c->threads, run_thread, c);
    }
}

/* ---- the call ---- */

static int longer_first(const void *left, const void *right)
{
    const slot *a = left, *b = right;
    if (a->length != b->length) return a->length > b->length ? -1 : 1;
    return a->sequence < b->sequence ? -1 : a->sequence > b->sequence;
}

fa_index OP(recurrent_sort)(slot *slots, const fa_recurrent_arguments *a)
{
    for (fa_index b = 0; b < a->B; b++) slots[b] = (slot){a->lengths ? a->lengths[b] : a->T, b};
    if (a->lengths) qsort(slots, (size_t)a->B, sizeof *slots, longer_first);
    return a->B ? slots[0].length : 0;
}

static void finish(void *context, fa_index i, int worker)
{
    const stack_call *c = context;
    (void)worker;
    OP(pseudo_layer_finish)(&c->layer[i / c->B], i % c->B);
}

/* Scratch that any thread may need: in its share, and alone when the others do not come. */
static void plan_work(stack_call *c)
{
    size_t alone = 0;
    c->work_bytes = 0;
    for (fa_index i = 0; i < c->pseudo_layers; i++) {
        const size_t bytes = OP(pseudo_layer_work_bytes)(&c->layer[i], whole);
        if (bytes > alone) alone = bytes;
        for (int m = 0; m < c->threads; m++) {
            const size_t part = OP(pseudo_layer_work_bytes)(&c->layer[i], share_of(c, m));
            if (part > c->work_bytes) c->work_bytes = part;
        }
    }
    /* One after another, so that the first may use the space of all. */
    const size_t each = (alone + (size_t)c->threads - 1) / (size_t)c->threads;
    if (each > c->work_bytes) c->work_bytes = fa_scratch_bytes((fa_index)each, 1);
}

/* Gives out the scratch of the call; called twice, see arena. */
static void plan_call(stack_call *c, arena *plan)
{
    c->slots = arena_take(plan, c->B, sizeof *c->slots);
    c->progress = arena_take(plan, c->pseudo_layers, sizeof *c->progress);
    for (fa_index i = 0; i < c->pseudo_layers; i++) {
        OP(pseudo_layer_plan)(&c->layer[i], plan);
        c->layer[i].slots = c->slots;
    }
    c->work = arena_take(plan, c->threads, c->work_bytes);
}

static pseudo_layer make_pseudo_layer(const fa_recurrent_arguments *a, fa_index index)
{
    const fa_kernels *k = a->packed ? kernels_for(a->isa) : current_kernels();
    pseudo_layer c = {.a = a, .index = index, .g = OP(recurrent_layer)(k, &a->weights)};
    if (a->packed) {
        arena packed = {.base = (char *)(uintptr_t)a->packed};
        c.w = OP(recurrent_plan)(&c.g, &packed, &a->weights, a->type, 0);
    }
    return c;
}

fa_status OP(recurrent_forward)(const fa_recurrent_arguments *a, fa_index layers, fa_index directions)
{
    enum { FEW_LAYERS = 8 };
    pseudo_layer few[FEW_LAYERS];
    fa_scratch many = {0}, scratch;
    stack_call c = {.layer = few, .pseudo_layers = layers * directions, .directions = directions, .steps = a->T, .B = a->B};
    if (c.B == 0 || (a->weights.H == 0 && a->weights.P == 0)) return FA_OK;
    if (c.pseudo_layers > FEW_LAYERS) {
        if (!fa_scratch_take(&many, fa_scratch_bytes(c.pseudo_layers, sizeof *c.layer))) return FA_NOMEM;
        c.layer = (pseudo_layer *)(void *)many.base;
    }
    for (fa_index i = 0; i < c.pseudo_layers; i++) c.layer[i] = make_pseudo_layer(&a[i], i);
    choose_schedule(&c);
    plan_work(&c);

    fa_status status = FA_NOMEM;
    arena plan = {0};
    plan_call(&c, &plan);
    if (fa_scratch_take(&scratch, plan.used)) {
        plan = (arena){.base = scratch.base};
        plan_call(&c, &plan);
        c.steps = OP(recurrent_sort)(c.slots, c.layer[0].a);
        status = FA_OK;
        for (fa_index i = 0; status == FA_OK && i < c.pseudo_layers; i++) {
            status = OP(pseudo_layer_start)(&c.layer[i]);
            c.progress[i] = (layer_progress){0};
        }
        if (status == FA_OK) {
            run_layers(&c);
            const double units = (double)c.pseudo_layers * (double)c.B * (double)c.layer[0].g.H;
            fa_parallel_for(c.pseudo_layers * c.B, fa_threads_for(units), finish, &c);
        }
        fa_scratch_give(&scratch);
    }
    if (many.base) fa_scratch_give(&many);
    return status;
}
