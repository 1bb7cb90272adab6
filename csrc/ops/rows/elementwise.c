/* y = f(x), its gradient, and the gated silu: blocks of a constant size over the pool. */
#include "../ops.h"

/* Elements per task: 64 KB in and out stay in the second-level cache, and a task outlasts its hand-over many times. */
#define BLOCK 16384
/* Multiply-adds that an element is worth (a transcendental is some 30 instructions on a vector). */
#define WORK_PER_ELEMENT 4.0

typedef void map_kernel(stored *, const stored *, fa_index);
typedef struct {
    map_kernel *f;
    stored *y;
    const stored *x;
    fa_index n;
} map_call;

static void map_block(void *context, fa_index i, int worker)
{
    const map_call *c = context;
    const fa_index first = i * BLOCK;
    (void)worker;
    c->f(c->y + first, c->x + first, fa_min(BLOCK, c->n - first));
}

fa_status OP(map)(fa_activation f, void *y, const void *x, fa_index n)
{
    const fa_kernels *k = current_kernels();
    map_kernel *const kernels[] = {[FA_TANH] = k->map_tanh, [FA_SIGMOID] = k->map_sigmoid,     [FA_RELU] = k->map_relu,
                                   [FA_GELU] = k->map_gelu, [FA_GELU_TANH] = k->map_gelu_tanh, [FA_SILU] = k->map_silu,
                                   [FA_EXP] = k->map_exp};
    map_call call = {kernels[f], y, x, n};
    fa_parallel_for(fa_ceil_div(n, BLOCK), fa_threads_for(WORK_PER_ELEMENT * (double)n), map_block, &call);
    return FA_OK;
}

typedef struct {
    const fa_kernels *kernels;
    stored *y, *second;
    const stored *dy, *x, *up;
    fa_index n;
    fa_activation f;
} block_call;

static void gated_block(void *context, fa_index i, int worker)
{
    const block_call *c = context;
    const fa_index first = i * BLOCK;
    (void)worker;
    c->kernels->silu_gated(c->y + first, c->x + first, c->up + first, fa_min(BLOCK, c->n - first));
}

fa_status OP(silu_gated_forward)(void *y, const void *gate, const void *up, fa_index n)
{
    block_call call = {.kernels = current_kernels(), .y = y, .x = gate, .up = up, .n = n};
    fa_parallel_for(fa_ceil_div(n, BLOCK), fa_threads_for(WORK_PER_ELEMENT * (double)n), gated_block, &call);
    return FA_OK;
}

/* 16-bit numbers pass through buffers of reals, which are of the first-level cache, and results are rounded once. */
#define BUFFER 512

static void backward_block(void *context, fa_index i, int worker)
{
    const block_call *c = context;
    const fa_index first = i * BLOCK, end = fa_min(c->n, first + BLOCK);
    (void)worker;
#if FA_CONVERTS
    for (fa_index at = first; at < end; at += BUFFER) {
        const fa_index n = fa_min(BUFFER, end - at);
        real dy[BUFFER], x[BUFFER];
        c->kernels->widen(dy, c->dy + at, n);
        c->kernels->widen(x, c->x + at, n);
        c->kernels->map_backward(dy, dy, x, n, (int)c->f);
        c->kernels->narrow(c->y + at, dy, n);
    }
#else
    c->kernels->map_backward(c->y + first, c->dy + first, c->x + first, end - first, (int)c->f);
#endif
}

fa_status OP(map_backward)(fa_activation f, void *dx, const void *dy, const void *x, fa_index n)
{
    block_call call = {.kernels = current_kernels(), .y = dx, .dy = dy, .x = x, .n = n, .f = f};
    fa_parallel_for(fa_ceil_div(n, BLOCK), fa_threads_for(WORK_PER_ELEMENT * (double)n), backward_block, &call);
    return FA_OK;
}

static void gated_backward_block(void *context, fa_index i, int worker)
{
    const block_call *c = context;
    const fa_index first = i * BLOCK, end = fa_min(c->n, first + BLOCK);
    (void)worker;
#if FA_CONVERTS
    for (fa_index at = first; at < end; at += BUFFER) {
        const fa_index n = fa_min(BUFFER, end - at);
        real dy[BUFFER], gate[BUFFER], up[BUFFER], dgate[BUFFER], dup[BUFFER];
        c->kernels->widen(dy, c->dy + at, n);
        c->kernels->widen(gate, c->x + at, n);
        c->kernels->widen(up, c->up + at, n);
        c->kernels->silu_gated_backward(dgate, dup, dy, gate, up, n);
        c->kernels->narrow(c->y + at, dgate, n);
        c->kernels->narrow(c->second + at, dup, n);
    }
#else
    c->kernels->silu_gated_backward(c->y + first, c->second + first, c->dy + first, c->x + first, c->up + first, end - first);
#endif
}

fa_status OP(silu_gated_backward)(void *dgate, void *dup, const void *dy, const void *gate, const void *up, fa_index n)
{
    block_call call = {.kernels = current_kernels(), .y = dgate, .second = dup, .dy = dy, .x = gate, .up = up, .n = n};
    fa_parallel_for(fa_ceil_div(n, BLOCK), fa_threads_for(2 * WORK_PER_ELEMENT * (double)n), gated_backward_block, &call);
    return FA_OK;
}
