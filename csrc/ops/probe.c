/* Probes of the machine, for benchmarks. */
#include "ops.h"

typedef struct {
    const fa_kernels *kernels;
    fa_index rounds;
    int threads;
} probe_call;

static void probe_thread(void *context, int thread, int threads)
{
    probe_call *c = context;
    real values[4] = {(real)0.5, (real)1.0}; /* x = x / 2 + 1 stays near 2 */
    c->kernels->probe_multiply_add(values, c->rounds);
    if (thread == 0) c->threads = threads;
}

double OP(probe_multiply_add)(fa_index rounds, int threads)
{
    probe_call call = {current_kernels(), rounds, 0};
    fa_team_run(threads, probe_thread, &call);
    return (double)call.threads * (double)rounds * (double)call.kernels->sizes.probe_chains * (double)call.kernels->sizes.lanes *
           (double)call.kernels->sizes.packed;
}

void OP(probe_read)(const void *x, fa_index n)
{
    real sum;
    current_kernels()->probe_read(&sum, x, n);
}
