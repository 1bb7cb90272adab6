/* Matrix products of the backward passes: lists of them, run together over the pool.

     PRODUCT_ROWS   c[m] (+)= a[m] b          m < M rows, of a from `column` on; b[K, N] in panels: dx
     PRODUCT_SUM    c (+)= a' b               c[M, N]; a' the columns [column, column + M) of K rows a[k], b of K rows in panels: dw,
                    sum += the sums of a'     one for each row of c, unless NULL: the gradient of a bias

   Sums over K are split at multiples of k_block, whatever the sizes and threads. */
#ifndef FA_OPS_PRODUCT_H
#define FA_OPS_PRODUCT_H

#include "../ops.h"

typedef enum { PRODUCT_ROWS, PRODUCT_SUM } product_kind;
typedef struct {
    product_kind kind;
    fa_index M, N, K;
    const real *const *a;
    fa_index column, lda; /* lda: distance of two rows of a; PRODUCT_SUM only */
    const real *panels;   /* b, from OP(products_pack) */
    real *const *rows;    /* c of PRODUCT_ROWS */
    real *c, *sum;        /* of PRODUCT_SUM */
    fa_index ldc;         /* distance of two rows of c; 0: N */
    int add;
} product;

/* b to be packed: K rows of N elements into panels of OP(product_panels) elements. */
typedef struct {
    real *panels;
    const real *const *rows;
    fa_index N, K;
} product_operand;

fa_index OP(product_panels)(const fa_kernels *k, fa_index N, fa_index K);
void OP(products_pack)(const fa_kernels *k, const product_operand *operands, int count, int threads);
/* Scratch of `threads` for products with up to K. */
fa_index OP(products_scratch)(const fa_kernels *k, fa_index K, int threads);
void OP(products_run)(const fa_kernels *k, const product *products, int count, int threads, real *scratch, fa_index most_K);

#endif
