/* y = f(x), element by element, and silu(gate) up. */
#include "group.h"

typedef struct {
    stored *y;
    const stored *x, *up;
    vreal (*f)(vreal x);
} map_walk;

FA_INLINE void map_step(void *walk, fa_index i, const int vectors, fa_index left)
{
    const map_walk *w = walk;
    vreal a[GROUP];
    load_group(a, w->x + i, vectors, left);
    FA_UNROLL
    for (int k = 0; k < vectors; k++) a[k] = w->f(a[k]);
    store_group(w->y + i, a, vectors, left);
}

FA_INLINE void map(stored *y, const stored *x, fa_index n, vreal (*f)(vreal x))
{
    map_walk walk = {y, x, NULL, f};
    for_groups(n, map_step, &walk);
}

void KERNEL(map_exp)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_exp); }
void KERNEL(map_tanh)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_tanh); }
void KERNEL(map_sigmoid)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_sigmoid); }
void KERNEL(map_relu)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_relu); }
void KERNEL(map_gelu)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_gelu); }
void KERNEL(map_gelu_tanh)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_gelu_tanh); }
void KERNEL(map_silu)(stored *y, const stored *x, fa_index n) { map(y, x, n, v_silu); }

FA_INLINE void gated_step(void *walk, fa_index i, const int vectors, fa_index left)
{
    const map_walk *w = walk;
    vreal a[GROUP], b[GROUP];
    load_group(a, w->x + i, vectors, left);
    load_group(b, w->up + i, vectors, left);
    FA_UNROLL
    for (int k = 0; k < vectors; k++) a[k] = v_mul(v_silu(a[k]), b[k]);
    store_group(w->y + i, a, vectors, left);
}

void KERNEL(silu_gated)(stored *y, const stored *gate, const stored *up, fa_index n)
{
    map_walk walk = {.y = y, .x = gate, .up = up};
    for_groups(n, gated_step, &walk);
}
