#define _GNU_SOURCE
#include "scratch.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static fa_scratch kept[FA_SCRATCH_KEPT_BLOCKS]; /* free blocks; base == NULL: empty place */

size_t fa_scratch_bytes(fa_index n, size_t item)
{
    size_t bytes;
    if (__builtin_mul_overflow((size_t)n, item, &bytes) || bytes > SIZE_MAX - FA_CACHE_LINE) return SIZE_MAX;
    return (bytes + FA_CACHE_LINE - 1) / FA_CACHE_LINE * FA_CACHE_LINE;
}

size_t fa_scratch_sum(size_t a, size_t b)
{
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

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
    int best = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < FA_SCRATCH_KEPT_BLOCKS; i++)
        if (kept[i].base && kept[i].size >= size && (best < 0 || kept[i].size < kept[best].size)) best = i;
    if (best >= 0) {
        *scratch = kept[best];
        kept[best].base = NULL;
    }
    pthread_mutex_unlock(&lock);
    return best >= 0 || allocate(scratch, size);
}

void fa_scratch_give(fa_scratch *scratch)
{
    char *drop = scratch->base;
    if (scratch->size <= FA_SCRATCH_KEPT_BYTES) {
        /* Into an empty place, else in place of the smallest block that it outgrows. */
        int place = -1;
        pthread_mutex_lock(&lock);
        for (int i = 0; i < FA_SCRATCH_KEPT_BLOCKS; i++) {
            if (!kept[i].base) {
                place = i;
                break;
            }
            if (kept[i].size < scratch->size && (place < 0 || kept[i].size < kept[place].size)) place = i;
        }
        if (place >= 0) {
            drop = kept[place].base;
            kept[place] = *scratch;
        }
        pthread_mutex_unlock(&lock);
    }
    free(drop);
    scratch->base = NULL;
}

void fa_scratch_trim(void)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < FA_SCRATCH_KEPT_BLOCKS; i++) {
        free(kept[i].base);
        kept[i].base = NULL;
    }
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    /* Another thread may have held the lock, half-way through: the blocks are not worth the doubt. */
    pthread_mutex_init(&lock, NULL);
    memset(kept, 0, sizeof kept);
}

void fa_scratch_init(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }
