/* The state of a pseudo-layer (recurrent.c): its part of the scratch, what it is before the first step, and what is left of it
   after the last one. */
#include "pseudo_layer.h"

#include <string.h>

void OP(pseudo_layer_plan)(pseudo_layer *c, arena *plan)
{
    const fa_recurrent_arguments *a = c->a;
    const fa_index state = a->B * c->g.ld, output = a->B * c->g.ld_h;
    const int before = c->g.cell == FA_GRU_RESET_BEFORE, second = before || c->g.projected;
    /* Packing takes as long as two steps of few rows. */
    const int plain = a->T == 1 && a->B <= c->g.kernels->sizes.few_rows;
    if (!a->packed) c->w = OP(recurrent_plan)(&c->g, plan, &a->weights, FA_WEIGHT_REAL, plain);
    c->h[0] = arena_take(plan, output, sizeof(real));
    c->h[1] = arena_take(plan, output, sizeof(real));
    for (int i = 0; i < 2; i++)
        c->rounded[i] = FA_CONVERTS ? arena_take(plan, output, sizeof(stored)) : (stored *)(void *)c->h[i];
    c->c = c->g.shape->state_cell ? arena_take(plan, state, sizeof(real)) : NULL;
    c->inner = second ? arena_take(plan, state, sizeof(real)) : NULL;
    c->rounded_inner = FA_CONVERTS && second ? arena_take(plan, state, sizeof(stored)) : (stored *)(void *)c->inner;
    c->update = before ? arena_take(plan, state, sizeof(real)) : NULL;
}

fa_status OP(pseudo_layer_start)(pseudo_layer *c)
{
    const fa_recurrent_arguments *a = c->a;
    const fa_index H = c->g.H, P = c->g.P, ld = c->g.ld, ld_h = c->g.ld_h;
    for (fa_index i = 0; i < a->B; i++) {
        const fa_index b = c->slots[i].sequence;
        memset(c->h[0] + i * ld_h, 0, (size_t)ld_h * sizeof(real));
        memset(c->h[1] + i * ld_h, 0, (size_t)ld_h * sizeof(real));
#if FA_CONVERTS
        for (int n = 0; n < 2; n++) memset(c->rounded[n] + i * ld_h, 0, (size_t)ld_h * sizeof(stored));
        if (a->h0) memcpy(c->rounded[0] + i * ld_h, (const stored *)a->h0 + b * P, (size_t)P * sizeof(stored));
#endif
        if (a->h0) c->g.kernels->widen(c->h[0] + i * ld_h, (const stored *)a->h0 + b * P, P);
        if (!c->g.shape->state_cell) continue;
        memset(c->c + i * ld, 0, (size_t)ld * sizeof(real));
        if (a->c0 && a->c0_wide) memcpy(c->c + i * ld, (const real *)a->c0 + b * H, (size_t)H * sizeof(real));
        if (a->c0 && !a->c0_wide) c->g.kernels->widen(c->c + i * ld, (const stored *)a->c0 + b * H, H);
    }
    return a->packed ? FA_OK : OP(recurrent_fill)(&c->g, &c->w, &a->weights);
}

void OP(pseudo_layer_finish)(const pseudo_layer *c, fa_index i)
{
    const slot *s = &c->slots[i];
    const fa_index H = c->g.H, P = c->g.P;
    const size_t row = (size_t)P * sizeof(stored);
    memcpy((stored *)c->a->h_out + s->sequence * P, c->rounded[s->length % 2] + i * c->g.ld_h, row);
    if (c->g.shape->state_cell) {
        const real *last = c->c + i * c->g.ld;
        if (c->a->c_out_wide)
            memcpy((real *)c->a->c_out + s->sequence * H, last, (size_t)H * sizeof(real));
        else
            c->g.kernels->narrow((stored *)c->a->c_out + s->sequence * H, last, H);
    }
    for (fa_index t = s->length; t < c->a->T; t++) {
        stored *y = (stored *)c->a->y + t * c->a->y_stride[0] + s->sequence * c->a->y_stride[1];
        memset(y, 0, row);
        if (c->a->dropped) memset((stored *)c->a->dropped + (y - (const stored *)c->a->y), 0, row);
    }
}
