#include "scratch.h"
#include "platform/platform.h"

#include <stdatomic.h>
#include <string.h>

#define HUGE_PAGE ((size_t)2 << 20)

/* A place for a free block. Whoever makes it BUSY owns it for a few instructions: nobody waits, a busy place is passed over. */
enum { EMPTY = 0, FULL, BUSY };
typedef struct {
    FA_ALIGN(FA_CACHE_LINE) _Atomic int state;
    fa_scratch block;
} place;
static place kept[FA_SCRATCH_KEPT_BLOCKS];

static int seize(place *p, int state) { return atomic_compare_exchange_strong(&p->state, &state, BUSY); }
static void leave(place *p, int state) { atomic_store_explicit(&p->state, state, memory_order_release); }

/* Of size, rounded up to whole steps. */
static int allocate(fa_scratch *scratch, size_t size, size_t step)
{
    const size_t alignment = size >= HUGE_PAGE ? HUGE_PAGE : FA_CACHE_LINE;
    if (size > SIZE_MAX / 2) return 0;
    size = (size + step - 1) / step * step;
    void *base = fa_memory_take(alignment, size);
    if (!base) return 0;
    /* Packed operands are read in long streams: huge pages save the page walks, and most of the page faults. */
    if (size >= HUGE_PAGE) fa_memory_is_large(base, size / HUGE_PAGE * HUGE_PAGE);
    scratch->base = base;
    scratch->size = size;
    return 1;
}

/* Memory as it comes, or in a build that looks for reads of unset memory (scripts/patterned) full of NaN. */
static int taken(const fa_scratch *scratch)
{
#if FA_PATTERNED
    memset(scratch->base, 0xff, scratch->size);
#else
    (void)scratch;
#endif
    return 1;
}

int fa_scratch_take(fa_scratch *scratch, size_t size)
{
    if (size < FA_CACHE_LINE) size = FA_CACHE_LINE;
    place *best = NULL; /* held while a better one is looked for */
    for (place *p = kept; p < kept + FA_SCRATCH_KEPT_BLOCKS; p++) {
        if (!seize(p, FULL)) continue;
        if (p->block.size >= size && (!best || p->block.size < best->block.size)) {
            if (best) leave(best, FULL);
            best = p;
        } else {
            leave(p, FULL);
        }
    }
    if (!best) {
        /* Grow in steps of a quarter, so that calls of slowly rising size do not allocate each time. */
        size_t step = FA_CACHE_LINE;
        while (step < size / 8) step *= 2;
        return allocate(scratch, size, step) && taken(scratch);
    }
    *scratch = best->block;
    leave(best, EMPTY);
    return taken(scratch);
}

/* Into an empty place, else in place of the first block that it outgrows. */
static char *keep(const fa_scratch *scratch)
{
    if (scratch->size > FA_SCRATCH_KEPT_BYTES) return scratch->base;
    for (place *p = kept; p < kept + FA_SCRATCH_KEPT_BLOCKS; p++) {
        if (!seize(p, EMPTY)) continue;
        p->block = *scratch;
        leave(p, FULL);
        return NULL;
    }
    for (place *p = kept; p < kept + FA_SCRATCH_KEPT_BLOCKS; p++) {
        if (!seize(p, FULL)) continue;
        char *smaller = NULL;
        if (p->block.size < scratch->size) {
            smaller = p->block.base;
            p->block = *scratch;
        }
        leave(p, FULL);
        if (smaller) return smaller;
    }
    return scratch->base;
}

void fa_scratch_give(fa_scratch *scratch)
{
    fa_memory_free(keep(scratch));
    scratch->base = NULL;
}

/* ---- results ---- */

/* Blocks by the time they were given back, the oldest first. Whoever finds this busy goes without it: nobody waits. */
static struct {
    _Atomic int busy;
    int count;
    size_t bytes;
    fa_scratch block[FA_RESULTS_KEPT_BLOCKS];
} results;

static int enter_results(void) { return !atomic_exchange(&results.busy, 1); }
static void leave_results(void) { atomic_store(&results.busy, 0); }

static fa_scratch remove_result(int i)
{
    const fa_scratch block = results.block[i];
    results.bytes -= block.size;
    results.count--;
    memmove(results.block + i, results.block + i + 1, (size_t)(results.count - i) * sizeof *results.block);
    return block;
}

int fa_result_take(fa_scratch *result, size_t size)
{
    result->base = NULL;
    if (enter_results()) {
        int best = -1;
        for (int i = 0; i < results.count; i++) {
            const size_t held = results.block[i].size;
            /* A block may be larger by a quarter, no more: the rest of it serves nobody. */
            if (held >= size && held - size <= size / 4 && (best < 0 || held < results.block[best].size)) best = i;
        }
        if (best >= 0) *result = remove_result(best);
        leave_results();
    }
    return (result->base || allocate(result, size, HUGE_PAGE)) && taken(result);
}

void fa_result_give(fa_scratch *result)
{
    const size_t size = result->size;
    if (size <= FA_RESULTS_KEPT_BYTES && enter_results()) {
        while (results.count == FA_RESULTS_KEPT_BLOCKS || results.bytes + size > FA_RESULTS_KEPT_BYTES)
            fa_memory_free(remove_result(0).base);
        fa_memory_is_unused(result->base, size);
        results.block[results.count++] = *result;
        results.bytes += size;
        leave_results();
    } else {
        fa_memory_free(result->base);
    }
    result->base = NULL;
}

/* ---- giving back ---- */

void fa_scratch_trim(void)
{
    if (enter_results()) {
        while (results.count) fa_memory_free(remove_result(0).base);
        leave_results();
    }
    for (place *p = kept; p < kept + FA_SCRATCH_KEPT_BLOCKS; p++) {
        if (!seize(p, FULL)) continue;
        fa_memory_free(p->block.base);
        leave(p, EMPTY);
    }
    fa_memory_trim(); /* in a process that has freed large arrays before, free() keeps also large blocks */
}

/* A place that another thread held at that moment is nobody's in the child: its block is given up, or all results. */
static void after_fork_in_child(void)
{
    if (atomic_load(&results.busy)) {
        results.count = 0;
        results.bytes = 0;
        leave_results();
    }
    for (place *p = kept; p < kept + FA_SCRATCH_KEPT_BLOCKS; p++)
        if (atomic_load(&p->state) == BUSY) leave(p, EMPTY);
}

void fa_scratch_init(void) { fa_after_fork(after_fork_in_child); }
