/* Gradients of the dropout between the layers of a recurrent network; kernels/recurrent/dropout.c has the generator. */
#include "pseudo_layer.h"

typedef struct {
    const fa_kernels *kernels;
    real *dx;
    const fa_index *stride;
    fa_index B, P, layer, directions;
    dropout_rule rule;
} dropout_call;

static void drop_row(void *context, fa_index i, int worker)
{
    const dropout_call *c = context;
    const fa_index t = i / c->B, b = i % c->B;
    (void)worker;
    for (fa_index d = 0; d < c->directions; d++) {
        real *row = c->dx + t * c->stride[0] + b * c->stride[1] + d * c->P;
        c->kernels->dropout_row(row, row, 0, c->P, c->rule.seed, c->rule.threshold, c->rule.scale, t, b,
                                c->layer * c->directions + d);
    }
}

void OP(recurrent_dropout)(void *dx, const fa_index stride[2], fa_index T, fa_index B, fa_index P, fa_index layer,
                           fa_index directions, double dropout, uint64_t seed)
{
    /* A word costs as much as some 10 multiply-adds. */
    const double work = 10 * (double)T * (double)B * (double)(directions * P);
    dropout_call c = {current_kernels(), dx, stride, B, P, layer, directions, rule_of_dropout(dropout, seed)};
    fa_parallel_for(T * B, fa_threads_for(work), drop_row, &c);
}
