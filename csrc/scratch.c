#define _GNU_SOURCE
#include "scratch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

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

static int allocate(fa_scratch *scratch, size_t size)
{
    void *base = NULL;
    const size_t alignment = size >= HUGE_PAGE ? HUGE_PAGE : FA_CACHE_LINE;
    /* Grow in steps of a quarter, so that calls of slowly rising size do not allocate each time. */
    size_t step = FA_CACHE_LINE;
    while (step < size / 8) step *= 2;
    if (size > SIZE_MAX / 2) return 0;
    size = (size + step - 1) / step * step;
    if (posix_memalign(&base, alignment, size) != 0) return 0;
#if defined(__linux__)
    /* Packed operands are read in long streams: huge pages save the page walks, and most of the page faults. */
    if (size >= HUGE_PAGE) madvise(base, size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    scratch->base = base;
    scratch->size = size;
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
    if (!best) return allocate(scratch, size);
    *scratch = best->block;
    leave(best, EMPTY);
    return 1;
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
    free(keep(scratch));
    scratch->base = NULL;
}

void fa_scratch_trim(void)
{
    for (place *p = kept; p < kept + FA_SCRATCH_KEPT_BLOCKS; p++) {
        if (!seize(p, FULL)) continue;
        free(p->block.base);
        leave(p, EMPTY);
    }
#if defined(__GLIBC__)
    malloc_trim(0); /* in a process that has freed large arrays before, free() keeps also large blocks */
#endif
}

/* A place that another thread held at that moment is nobody's in the child: its block is given up. */
static void after_fork_in_child(void)
{
    for (place *p = kept; p < kept + FA_SCRATCH_KEPT_BLOCKS; p++)
        if (atomic_load(&p->state) == BUSY) leave(p, EMPTY);
}

void fa_scratch_init(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }
