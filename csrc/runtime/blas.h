/* The BLAS seam: single-threaded products of tiles, by whatever provider the build chose.

     vendored   a private copy of OpenBLAS, loaded at the first product that uses it (fa_blas_path has its path)
     system     linked at build time (cblas)
     none       fa_blas_load fails, and strategy "blas" is not offered */
#ifndef FA_BLAS_H
#define FA_BLAS_H

#include "../base.h"

/* Where the vendored library lies. Called once at import; the text must stay. */
void fa_blas_path(const char *path);

/* 1 when products can be had. Loads the library if it is not loaded yet. Thread-safe. */
int fa_blas_load(void);

const char *fa_blas_provider(void); /* "vendored", "system" or "none" */
const char *fa_blas_core(void);     /* the kernel set that OpenBLAS chose, "" where unknown. Loads. */
const char *fa_blas_version(void);  /* likewise */

/* c = alpha a op(b) + beta c, row-major, c m x n, a m x k; op(b) = b' when transpose_b (b n x k), else b (k x n). After a successful
   fa_blas_load; sizes below 2^31. */
void fa_blas_gemm_f32(int transpose_b, fa_index m, fa_index n, fa_index k, float alpha, const float *a, fa_index lda,
                      const float *b, fa_index ldb, float beta, float *c, fa_index ldc);
void fa_blas_gemm_f64(int transpose_b, fa_index m, fa_index n, fa_index k, double alpha, const double *a, fa_index lda,
                      const double *b, fa_index ldb, double beta, double *c, fa_index ldc);

#endif
