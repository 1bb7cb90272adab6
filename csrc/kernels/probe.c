/* What this core can do at best with this ISA and type, for benchmarks to divide by: multiply-adds that depend on nothing but
   themselves, and reads in a stream. */
#include "common.h"
#include "probe.h"

/* PROBE_CHAINS vectors x = x f + d, or of pairs x = x + f d, `rounds` times. The result is stored so that it is computed. */
void KERNEL(probe_multiply_add)(real *result, fa_index rounds)
{
#if FA_AMX
    enum { PAIRS_OF_ROUND = PROBE_CHAINS * VL, PAIRS_OF_TILES = 4 * T_ROWS * T_K * VL };
    t_configure(2 * T_ROWS);
    t_probe(fa_ceil_div(rounds * PAIRS_OF_ROUND, PAIRS_OF_TILES));
    t_release();
    result[2] = 0;
#else
    vreal x[PROBE_CHAINS];
    const vreal f = v_broadcast(result), d = v_broadcast(result + 1);
    FA_UNROLL
    for (int c = 0; c < PROBE_CHAINS; c++) x[c] = v_set1((real)c);
    for (fa_index i = 0; i < rounds; i++) {
        FA_UNROLL
        for (int c = 0; c < PROBE_CHAINS; c++) x[c] = FA_PAIRS ? v_multiply_add(f, d, x[c]) : v_fma(x[c], f, d);
    }
    vreal sum = x[0];
    FA_UNROLL
    for (int c = 1; c < PROBE_CHAINS; c++) sum = v_add(sum, x[c]);
    result[2] = v_reduce_add(sum);
#endif
}

/* The sum of n elements, four vectors at a time. */
void KERNEL(probe_read)(real *result, const real *x, fa_index n)
{
    vreal sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    for (fa_index i = 0; i + 4 * VL <= n; i += 4 * VL) {
        FA_UNROLL
        for (int v = 0; v < 4; v++) sum[v] = v_add(sum[v], v_load(x + i + v * VL));
    }
    *result = v_reduce_add(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
}
