/* The table of this ISA and type. */
#include "common.h"

#include "attention/attention_tile.h"
#include "gemm/gemm.h"
#include "probe.h"
#include "gemm/tile.h"

#define TABLE_(type, suffix) const fa_kernels_##type fa_table_##suffix
#define TABLE(type, suffix) TABLE_(type, suffix)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

/* The kernel of a class: this compilation's, or another's, as the build says (FA_FROM_REAL and so on, such as f32_avx2). */
#define FROM(class, name) KERNEL__(name, FA_FROM_##class)
#define OBJECT(name) name
#define FA_KERNEL(class, name, arguments) FA_HIDDEN void FROM(class, name) arguments;
#include "kernels.def"
#undef FA_KERNEL

FA_HIDDEN extern TABLE(FA_STORED_TYPE, FA_SUFFIX);
TABLE(FA_STORED_TYPE, FA_SUFFIX) = {
    .sizes = {.suffix = TEXT(FA_SUFFIX),
              .lanes = VL,
              .panel_vectors = FA_NV,
              .tile_rows = {0, 0, TILE_ROWS(2), TILE_ROWS(3), TILE_ROWS(4)},
              .packed = FA_PACKED,
              .tile_k = TILE_K,
              .k_block = {0, 0, K_BLOCK(2), K_BLOCK(3), K_BLOCK(4)},
              .few_rows = MOST_FEW_ROWS,
              .step_rows = STEP_ROWS,
              .attention_rows = ATTENTION_ROWS,
              .scale_in_softmax = FA_AMX,
              .transposed_gradients = FA_AMX,
              .attention_stride = ATTENTION_STRIDE,
              .attention_keys = ATTENTION_KEYS,
              .query_slice = QUERY_SLICE,
              .query_stride = QUERY_STRIDE,
              .probe_chains = PROBE_CHAINS},
#define FA_KERNEL(class, name, arguments) FA_MEMBER_##class(.name = FROM(class, name), )
#if defined(FA_REAL_F64)
#undef FA_MEMBER_FLOAT
#undef FA_MEMBER_BYTES
#define FA_MEMBER_FLOAT(...)
#define FA_MEMBER_BYTES(...)
#endif
#include "kernels.def"
};
