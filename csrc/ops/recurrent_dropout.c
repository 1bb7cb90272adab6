/* Dropout between the layers of a recurrent network; kernels/dropout.c has the generator. */
#include "recurrent_lane.h"

typedef struct {
    real *y;
    const real *x;
    const fa_index *y_stride, *x_stride;
    fa_index B, P, layer, directions;
    dropout_rule rule;
} dropout_call;

static void drop_row(void *context, fa_index i, int worker)
{
    const dropout_call *c = context;
    const fa_index t = i / c->B, b = i % c->B;
    (void)worker;
    for (fa_index d = 0; d < c->directions; d++)
        current_kernels()->dropout_row(c->y + t * c->y_stride[0] + b * c->y_stride[1] + d * c->P,
                                       c->x + t * c->x_stride[0] + b * c->x_stride[1] + d * c->P, 0, c->P, c->rule.seed,
                                       c->rule.threshold, c->rule.scale, t, b, c->layer * c->directions + d);
}

fa_status OP(recurrent_dropout)(void *y, const fa_index y_stride[2], const void *x, const fa_index x_stride[2], fa_index T,
                                fa_index B, fa_index P, fa_index layer, fa_index directions, double dropout, uint64_t seed)
{
    /* A word costs as much as some 10 multiply-adds. */
    const double work = 10 * (double)T * (double)B * (double)(directions * P);
    dropout_call c = {y, x, y_stride, x_stride, B, P, layer, directions, rule_of_dropout(dropout, seed)};
    fa_parallel_for(T * B, fa_members_for(work), drop_row, &c);
    return FA_OK;
}
