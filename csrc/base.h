/* What every C file shares: the types known to all layers, and compiler glue. Compiler extensions live here and in simd/ only. */
#ifndef FA_BASE_H
#define FA_BASE_H

#include "fastattn_types.h"

#include <stddef.h>

#if defined(__GNUC__) || defined(__clang__)
#define FA_INLINE static inline __attribute__((always_inline))
#define FA_NOINLINE static __attribute__((noinline))
#define FA_HIDDEN __attribute__((visibility("hidden")))
#define FA_EXPORT __attribute__((visibility("default")))
#define FA_ALIGN(n) __attribute__((aligned(n)))
#define FA_LIKELY(x) __builtin_expect(!!(x), 1)
#define FA_UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#error "fastattn needs GCC or Clang: the vector types of simd/ are their extensions"
#endif

/* Unrolls the loop that follows completely (its bounds are small constants): register tiles live in arrays, and only
   a full unroll lets the compiler keep each element in a register. Clang does so by itself and spells it otherwise. */
#if defined(__clang__)
#define FA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FA_UNROLL _Pragma("GCC unroll 16")
#endif

/* Hides from the compiler where the pointer x came from: in a loop that walks many rows side by side it would keep one address for
   each of them, in memory. */
#define FA_OPAQUE(x) __asm__("" : "+r"(x))

#define FA_CACHE_LINE 64 /* bytes */
/* Prefetches the cache line at p, which need not be mapped. */
#define FA_PREFETCH(p) __builtin_prefetch(p)
/* The same, not nearer than the second-level cache. */
#define FA_PREFETCH_FAR(p) __builtin_prefetch(p, 0, 2)

#define FA_CONCAT_(a, b) a##b
#define FA_CONCAT(a, b) FA_CONCAT_(a, b)

FA_INLINE fa_index fa_min(fa_index a, fa_index b) { return a < b ? a : b; }
FA_INLINE fa_index fa_max(fa_index a, fa_index b) { return a > b ? a : b; }
FA_INLINE fa_index fa_ceil_div(fa_index a, fa_index b) { return (a + b - 1) / b; }
FA_INLINE fa_index fa_round_up(fa_index a, fa_index b) { return fa_ceil_div(a, b) * b; }

#endif
