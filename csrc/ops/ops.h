/* What the ops share. Each file of this folder but api.c is compiled twice, for float and for double: `real` is the type, OP(name) the
   name of the version. Ops decide blocking, threads, scratch and BLAS; the arithmetic is in kernels. */
#ifndef FA_OPS_H
#define FA_OPS_H

#include "../fastattn.h"

#if defined(FA_REAL_F32)
typedef float real;
#define OP(name) fa_##name##_f32
#define REAL_INFINITY __builtin_inff()
typedef fa_kernels_f32 fa_kernels;
#define current_kernels fa_kernels_of_f32
#define kernels_for fa_kernels_for_f32
#define blas_gemm fa_blas_gemm_f32
#else
typedef double real;
#define OP(name) fa_##name##_f64
#define REAL_INFINITY __builtin_inf()
typedef fa_kernels_f64 fa_kernels;
#define current_kernels fa_kernels_of_f64
#define kernels_for fa_kernels_for_f64
#define blas_gemm fa_blas_gemm_f64
#endif

#include "declare.h"

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
