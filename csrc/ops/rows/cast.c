/* Between 16-bit arrays and float: blocks of a constant size over the pool. */
#include "../ops.h"

#define BLOCK 65536
#define WORK_PER_ELEMENT 1.0

typedef struct {
    const fa_kernels *kernels;
    void *y;
    const void *x;
    fa_index n;
    int narrow;
} cast_call;

static void cast_block(void *context, fa_index i, int worker)
{
    const cast_call *c = context;
    const fa_index first = i * BLOCK, n = fa_min(BLOCK, c->n - first);
    (void)worker;
    if (c->narrow)
        c->kernels->narrow((stored *)c->y + first, (const real *)c->x + first, n);
    else
        c->kernels->widen((real *)c->y + first, (const stored *)c->x + first, n);
}

fa_status OP(cast)(void *y, const void *x, fa_index n, int narrow)
{
    cast_call call = {current_kernels(), y, x, n, narrow};
    fa_parallel_for(fa_ceil_div(n, BLOCK), fa_threads_for(WORK_PER_ELEMENT * (double)n), cast_block, &call);
    return FA_OK;
}
