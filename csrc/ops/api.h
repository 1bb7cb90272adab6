/* Of the C API what the Python extension alone uses. */
#ifndef FA_API_H
#define FA_API_H

#include "../fastattn.h"

/* Once, at import: CPU detection, fork handlers, the best ISA. */
void fa_init(void);

/* The table that other extensions get. */
extern const fa_api fa_c_api;

/* The sum of n reals divided by `count` (0: NaN), a real; on one thread. */
double fa_mean(fa_dtype dtype, const void *x, fa_index n, fa_index count);

/* ---- probes: what each of `threads` cores does at best, all at once ----
   Runs `rounds` rounds of independent multiply-adds on every thread and returns their number (of scalars, on all threads); reads n elements
   of x on one thread. The caller takes the time. */
double fa_probe_multiply_add(fa_dtype dtype, fa_index rounds, int threads);
void fa_probe_read(fa_dtype dtype, const void *x, fa_index n);

#endif
