#include "blas.h"
#include "platform/platform.h"

enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 }; /* values fixed by the CBLAS standard */

typedef void sgemm_function(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float *a,
                            int lda, const float *b, int ldb, float beta, float *c, int ldc);
typedef void dgemm_function(int order, int transpose_a, int transpose_b, int m, int n, int k, double alpha, const double *a,
                            int lda, const double *b, int ldb, double beta, double *c, int ldc);
typedef char *text_function(void);

static struct {
    sgemm_function *sgemm;
    dgemm_function *dgemm;
    text_function *core, *version;
} blas;
static fa_once once = FA_ONCE_INIT;
static const char *library_path;

void fa_blas_path(const char *path) { library_path = path; }

#if defined(FA_BLAS_VENDORED)
#include <stdlib.h>
#include <string.h>

#define THREADS_VARIABLE "OPENBLAS_NUM_THREADS"

static void load(void)
{
    /* OpenBLAS starts helper threads when it is loaded, unless this variable says 1 at that moment; ours are the only threads
       that shall work, and nothing of this is left behind. */
    const char *set = getenv(THREADS_VARIABLE);
    char *before = set ? malloc(strlen(set) + 1) : NULL;
    if (set && !before) return;
    if (before) strcpy(before, set);
    fa_environment_set(THREADS_VARIABLE, "1");
    void *library = library_path ? fa_library_open(library_path) : NULL;
    fa_environment_set(THREADS_VARIABLE, before);
    free(before);
    if (!library) return;
    void (*set_threads)(int) = (void (*)(int))fa_library_symbol(library, "scipy_openblas_set_num_threads");
    if (set_threads) set_threads(1);
    blas.core = (text_function *)fa_library_symbol(library, "scipy_openblas_get_corename");
    blas.version = (text_function *)fa_library_symbol(library, "scipy_openblas_get_config");
    blas.dgemm = (dgemm_function *)fa_library_symbol(library, "scipy_cblas_dgemm");
    blas.sgemm = (sgemm_function *)fa_library_symbol(library, "scipy_cblas_sgemm");
}

const char *fa_blas_provider(void) { return "vendored"; }

#elif defined(FA_BLAS_SYSTEM)
extern sgemm_function cblas_sgemm;
extern dgemm_function cblas_dgemm;
/* OpenBLAS has these; other libraries leave them undefined, which a weak symbol allows. */
extern char *openblas_get_corename(void) __attribute__((weak));
extern char *openblas_get_config(void) __attribute__((weak));
extern int openblas_set_num_threads_local(int) __attribute__((weak));

static void load(void)
{
    blas.sgemm = cblas_sgemm;
    blas.dgemm = cblas_dgemm;
    blas.core = openblas_get_corename;
    blas.version = openblas_get_config;
    if (openblas_set_num_threads_local) openblas_set_num_threads_local(1);
}

const char *fa_blas_provider(void) { return "system"; }

#else
static void load(void) { (void)library_path; }

const char *fa_blas_provider(void) { return "none"; }
#endif

int fa_blas_load(void)
{
    fa_call_once(&once, load);
    return blas.sgemm && blas.dgemm;
}

const char *fa_blas_core(void) { return fa_blas_load() && blas.core ? blas.core() : ""; }
const char *fa_blas_version(void) { return fa_blas_load() && blas.version ? blas.version() : ""; }

void fa_blas_gemm_f32(int transpose_b, fa_index m, fa_index n, fa_index k, float alpha, const float *a, fa_index lda,
                      const float *b, fa_index ldb, float beta, float *c, fa_index ldc)
{
    blas.sgemm(ROW_MAJOR, NO_TRANSPOSE, transpose_b ? TRANSPOSE : NO_TRANSPOSE, (int)m, (int)n, (int)k, alpha, a, (int)lda, b,
               (int)ldb, beta, c, (int)ldc);
}

void fa_blas_gemm_f64(int transpose_b, fa_index m, fa_index n, fa_index k, double alpha, const double *a, fa_index lda,
                      const double *b, fa_index ldb, double beta, double *c, fa_index ldc)
{
    blas.dgemm(ROW_MAJOR, NO_TRANSPOSE, transpose_b ? TRANSPOSE : NO_TRANSPOSE, (int)m, (int)n, (int)k, alpha, a, (int)lda, b,
               (int)ldb, beta, c, (int)ldc);
}
