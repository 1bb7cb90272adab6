/* Layers and directions of a recurrent network in one call, with one hand-over to the pool. Each layer and direction is a lane
   (recurrent.c). The threads of the team share the lanes by one of three schedules (choose_schedule, from sizes alone):

     sequences  each takes some of the sequences through all lanes, and none waits
     lanes      directions run side by side, and a layer follows the one below as soon as that has done a chunk of steps (a
                wavefront); above both directions of a layer, the next one waits for the whole of it
     panels     lane after lane; each thread keeps a slice of its units, and of w_hh in its own cache for the whole sequence; they
                wait for each other after each step

   No bit depends on the schedule. */
#include "recurrent_lane.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Rows in a chunk of a wavefront, and the most parts that a sequence is cut into: a layer starts a chunk late. */
#define WAVE_ROWS 48
#define WAVE_CHUNKS 32
#define POLLS_BEFORE_YIELD 1000

typedef enum { BY_SEQUENCES, BY_LANES, BY_PANELS } schedule;

typedef struct {
    FA_ALIGN(64) _Atomic int claimed;
    _Atomic fa_index done; /* steps */
} lane_progress;

typedef struct {
    recurrent_lane *lane; /* [layers][directions] */
    fa_index lanes, directions, steps, B;
    schedule schedule;
    int members;
    fa_index chunk; /* steps of a lane that a thread runs at a time, by lanes */
    lane_progress *progress;
    slot *slots;
    char *work; /* scratch of the threads, each of work_bytes */
    size_t work_bytes;
    fa_team_barrier barrier;
} stack_call;

static void choose_schedule(stack_call *c)
{
    double work = 0, step = 0;
    fa_index slices = INT64_MAX;
    for (fa_index i = 0; i < c->lanes; i++) {
        const recurrent_layer *g = &c->lane[i].g;
        const double gates = (double)c->B * (double)(g->shape->gates * g->H);
        const double output = g->projected ? (double)c->B * (double)g->H * (double)g->P : 0;
        work += (double)c->steps * (gates * (double)(g->P + g->I) + output);
        step += (gates * (double)g->P + output) / (double)c->lanes;
        slices = fa_min(slices, g->panels / 2); /* of two panels, the width of a panel of w_hn */
    }
    const fa_index wanted = fa_members_for(work);
    const fa_index sequences = fa_min(wanted, c->B / SEQUENCES_PER_MEMBER);
    const fa_index layers = c->lanes / c->directions;
    const fa_index side_by_side = fa_min(wanted, c->directions > 1 ? c->directions : layers);
    const fa_index panels = fa_min(fa_min(wanted, slices), (fa_index)(step / STEP_WORK_PER_MEMBER));
    c->schedule = BY_SEQUENCES;
    c->members = (int)fa_max(1, sequences);
    if (side_by_side > c->members && c->steps > 1) {
        c->schedule = BY_LANES;
        c->members = (int)side_by_side;
    }
    if (panels > c->members) {
        c->schedule = BY_PANELS;
        c->members = (int)panels;
    }
    c->chunk = fa_max(fa_max(1, WAVE_ROWS / fa_max(1, c->B)), fa_ceil_div(c->steps, WAVE_CHUNKS));
}

/* ---- the three schedules ---- */

/* The whole of a lane, alone. */
static const lane_share whole = {0, 1, NULL};

/* A thread's part of each lane that it runs. */
static lane_share share_of(stack_call *c, int member)
{
    return c->schedule == BY_LANES ? whole : (lane_share){member, c->members, c->schedule == BY_PANELS ? &c->barrier : NULL};
}

static char *work_of(const stack_call *c, int member) { return c->work + (size_t)member * c->work_bytes; }

static void in_order(stack_call *c, lane_share share, char *work)
{
    for (fa_index i = 0; i < c->lanes; i++) {
        OP(lane_run)(&c->lane[i], share, work, 0, c->steps);
        if (share.barrier) fa_team_wait(share.barrier, share.members);
    }
}

/* Whether lane i can run up to `end`. */
static int inputs_ready(const stack_call *c, fa_index i, fa_index end)
{
    const fa_index below = i / c->directions * c->directions - c->directions;
    if (below < 0) return 1;
    if (c->directions == 1) return atomic_load_explicit(&c->progress[below].done, memory_order_acquire) >= end;
    for (fa_index d = 0; d < c->directions; d++)
        if (atomic_load_explicit(&c->progress[below + d].done, memory_order_acquire) < c->steps) return 0;
    return 1;
}

/* Runs the next chunk of lane i if that is possible now. */
static int try_lane(const stack_call *c, fa_index i, char *work)
{
    lane_progress *p = &c->progress[i];
    int free = 0;
    if (!atomic_compare_exchange_strong(&p->claimed, &free, 1)) return 0;
    const fa_index done = atomic_load(&p->done), end = fa_min(c->steps, done + c->chunk);
    const int run = done < end && inputs_ready(c, i, end);
    if (run) {
        OP(lane_run)(&c->lane[i], whole, work, done, end);
        atomic_store_explicit(&p->done, end, memory_order_release);
    }
    atomic_store(&p->claimed, 0);
    return run;
}

static void side_by_side(const stack_call *c, int member)
{
    /* A thread stays with its lane, whose weights its cache holds, as long as that can run. */
    fa_index lane = member % c->lanes;
    for (int polls = 0;;) {
        fa_index tried = 0, left = 0;
        while (tried < c->lanes && !try_lane(c, lane, work_of(c, member))) {
            left += atomic_load(&c->progress[lane].done) < c->steps;
            lane = (lane + 1) % c->lanes;
            tried++;
        }
        if (tried < c->lanes)
            polls = 0;
        else if (!left)
            return;
        else if (++polls > POLLS_BEFORE_YIELD)
            sched_yield();
    }
}

static void run_member(void *context, int member, int members)
{
    stack_call *c = context;
    if (members != c->members) {
        /* Fewer threads could be had than the work was shared out for: alone, then. The scratch is large enough for that too. */
        if (member == 0) in_order(c, whole, c->work);
    } else if (c->schedule == BY_LANES) {
        side_by_side(c, member);
    } else {
        in_order(c, share_of(c, member), work_of(c, member));
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
    OP(lane_finish)(&c->lane[i / c->B], i % c->B);
}

/* Scratch that any thread may need: in its share, and alone when the others do not come. */
static void plan_work(stack_call *c)
{
    size_t alone = 0;
    c->work_bytes = 0;
    for (fa_index i = 0; i < c->lanes; i++) {
        const size_t bytes = OP(lane_work_bytes)(&c->lane[i], whole);
        if (bytes > alone) alone = bytes;
        for (int m = 0; m < c->members; m++) {
            const size_t part = OP(lane_work_bytes)(&c->lane[i], share_of(c, m));
            if (part > c->work_bytes) c->work_bytes = part;
        }
    }
    /* One after another, so that the first may use the space of all. */
    const size_t each = (alone + (size_t)c->members - 1) / (size_t)c->members;
    if (each > c->work_bytes) c->work_bytes = fa_scratch_bytes((fa_index)each, 1);
}

/* Gives out the scratch of the call; called twice, see arena. */
static void plan_call(stack_call *c, arena *plan)
{
    c->slots = arena_take(plan, c->B, sizeof *c->slots);
    c->progress = arena_take(plan, c->lanes, sizeof *c->progress);
    for (fa_index i = 0; i < c->lanes; i++) {
        OP(lane_plan)(&c->lane[i], plan);
        c->lane[i].slots = c->slots;
    }
    c->work = arena_take(plan, c->members, c->work_bytes);
}

static recurrent_lane make_lane(const fa_recurrent_arguments *a, fa_index index)
{
    const fa_kernels *k = a->packed ? kernels_for(a->isa) : current_kernels();
    recurrent_lane lane = {.a = a, .index = index, .g = OP(recurrent_layer)(k, &a->weights)};
    if (a->packed) {
        arena packed = {.base = (char *)(uintptr_t)a->packed};
        lane.w = OP(recurrent_plan)(&lane.g, &packed, &a->weights, a->type);
    }
    return lane;
}

fa_status OP(recurrent_forward)(const fa_recurrent_arguments *a, fa_index layers, fa_index directions)
{
    enum { FEW_LANES = 8 };
    recurrent_lane few[FEW_LANES];
    fa_scratch lanes = {0}, scratch;
    stack_call c = {.lane = few, .lanes = layers * directions, .directions = directions, .steps = a->T, .B = a->B};
    if (c.B == 0 || (a->weights.H == 0 && a->weights.P == 0)) return FA_OK;
    if (c.lanes > FEW_LANES) {
        if (!fa_scratch_take(&lanes, fa_scratch_bytes(c.lanes, sizeof *c.lane))) return FA_NOMEM;
        c.lane = (recurrent_lane *)(void *)lanes.base;
    }
    for (fa_index i = 0; i < c.lanes; i++) c.lane[i] = make_lane(&a[i], i);
    choose_schedule(&c);
    plan_work(&c);

    fa_status status = FA_NOMEM;
    arena plan = {0};
    plan_call(&c, &plan);
    if (fa_scratch_take(&scratch, plan.used)) {
        plan = (arena){.base = scratch.base};
        plan_call(&c, &plan);
        c.steps = OP(recurrent_sort)(c.slots, c.lane[0].a);
        status = FA_OK;
        for (fa_index i = 0; status == FA_OK && i < c.lanes; i++) {
            status = OP(lane_start)(&c.lane[i]);
            c.progress[i] = (lane_progress){0};
        }
        if (status == FA_OK) {
            fa_team_run(c.members, run_member, &c);
            const double units = (double)c.lanes * (double)c.B * (double)c.lane[0].g.H;
            fa_parallel_for(c.lanes * c.B, fa_members_for(units), finish, &c);
        }
        fa_scratch_give(&scratch);
    }
    if (lanes.base) fa_scratch_give(&lanes);
    return status;
}
