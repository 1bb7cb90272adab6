/* What the ops share. Each file of this folder but api.c is compiled once per type of array, float32 and float64, and those that
   variants.py lists for bfloat16 and float16 too: `stored` is what the arrays hold, `real` the type of the arithmetic, OP(name) the
   name of the version. Ops decide blocking, threads, scratch and BLAS; the arithmetic is in kernels. */
#ifndef FA_OPS_H
#define FA_OPS_H

#include "../fastattn.h"
#include "../kernels/arguments.h"
#include "../runtime/blas.h"
#include "../runtime/dispatch.h"
#include "../runtime/scratch.h"
#include "../runtime/threads.h"

#include <string.h>

#define FA_VERSION_(name, type) fa_##name##_##type
#define FA_VERSION(name, type) FA_VERSION_(name, type)
#define OP(name) FA_VERSION(name, FA_STORED_TYPE)
typedef FA_VERSION(kernels, FA_STORED_TYPE) fa_kernels;
#define current_kernels FA_VERSION(kernels_of, FA_STORED_TYPE)
#define kernels_for FA_VERSION(kernels_for, FA_STORED_TYPE)
#define blas_gemm FA_VERSION(blas_gemm, FA_REAL_TYPE)

#include "declare.h"

/* Columns in a panel of linear and of the products of backward passes. */
FA_INLINE fa_index panel_width(const fa_kernels *k) { return k->sizes.panel_vectors * k->sizes.lanes; }

/* Whether weights of so many elements of `size` bytes, read call after call or step after step, come from a cache and not from memory. */
#define CACHED_BYTES ((fa_index)8 << 20)
FA_INLINE int are_cached(fa_index elements, size_t size) { return elements <= CACHED_BYTES / (fa_index)size; }
/* Most rows for which panels that are cached are not prefetched. */
#define CACHED_ROWS 8

/* Zeros; n may be 0 or less, which writes nothing. */
FA_INLINE void clear(real *x, fa_index n)
{
    if (n > 0) memset(x, 0, (size_t)n * sizeof(real));
}

/* What dropout_row takes. */
typedef struct {
    uint64_t seed, threshold;
    real scale;
} dropout_rule;
FA_INLINE dropout_rule rule_of_dropout(double dropout, uint64_t seed)
{
    /* Of the 2^32 values of a word. */
    return (dropout_rule){seed, (uint64_t)(dropout * 0x1p32 + 0.5), dropout < 1 ? (real)(1 / (1 - dropout)) : 0};
}

/* Hands out pieces of a scratch block. Run once over a NULL base to learn the size, then over the block itself, by the same
   function: the two cannot disagree. */
typedef struct {
    char *base;
    size_t used;
} arena;

FA_INLINE void *arena_take(arena *a, fa_index n, size_t item)
{
    char *p = a->base ? a->base + a->used : NULL;
    a->used = fa_scratch_sum(a->used, fa_scratch_bytes(n, item));
    return p;
}

#endif
