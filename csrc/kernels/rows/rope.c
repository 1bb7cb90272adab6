/* Rotary positions: pairs of elements rotated by an angle each, c = cos, s = sin of the row's position (Su et al. 2021).

     halves        y_j = x_j c_j - x_(j + n/2) s_j          y_(j + n/2) = x_(j + n/2) c_j + x_j s_j        j < n / 2
     interleaved   y_2j = x_2j c_j - x_(2j + 1) s_j         y_(2j + 1) = x_(2j + 1) c_j + x_2j s_j

   One product is rounded, the other added to it in a multiply-add. */
#include "../common.h"

FA_INLINE void rotate_halves(stored *y, const stored *x, const real *c, const real *s, fa_index half)
{
    for (fa_index j = 0; j < half; j += VL) {
        const fa_index left = half - j;
        const vreal a = load_stored_some(x + j, left), b = load_stored_some(x + half + j, left);
        const vreal cosine = load_some(c + j, left), sine = load_some(s + j, left);
        store_stored_some(y + j, v_fma(a, cosine, v_negate(v_mul(b, sine))), left);
        store_stored_some(y + half + j, v_fma(b, cosine, v_mul(a, sine)), left);
    }
}

/* The table has each cosine twice, and each sine as -s, s. */
FA_INLINE void rotate_pairs(stored *y, const stored *x, const real *c, const real *s, fa_index n)
{
    for (fa_index j = 0; j < n; j += VL) {
        const fa_index left = n - j;
        const vreal a = load_stored_some(x + j, left);
        store_stored_some(y + j, v_fma(a, load_some(c + j, left), v_mul(v_swap_pairs(a), load_some(s + j, left))), left);
    }
}

void KERNEL(rope_rows)(stored *y, const stored *x, const real *cosine, const real *sine, const fa_index *position, fa_index rows,
                       fa_index n, int interleaved)
{
    const fa_index width = interleaved ? n : n / 2;
    for (fa_index i = 0; i < rows; i++, x += n, y += n) {
        const real *c = cosine + position[i] * width, *s = sine + position[i] * width;
        if (interleaved)
            rotate_pairs(y, x, c, s, n);
        else
            rotate_halves(y, x, c, s, width);
    }
}
