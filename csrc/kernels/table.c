/* The table of this ISA and type. */
#include "common.h"

#include "attention_tile.h"
#include "gemm.h"
#include "kernels.h"
#include "probe.h"
#include "tile.h"

#define TABLE_(type, suffix) const fa_kernels_##type fa_table_##suffix
#define TABLE(type, suffix) TABLE_(type, suffix)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

/* A 16-bit type takes from float what has to do with arithmetic alone, and float itself in a set that has but products of bytes of its
   own takes all the rest from the set below: FA_REAL_SUFFIX, such as f32_avx2, comes from the build. */
#if !defined(FA_REAL_SUFFIX)
#define REAL_KERNEL KERNEL
#define STORED_KERNEL KERNEL
#define PACKED_KERNEL KERNEL
#define BYTE_KERNEL KERNEL
#else
#define REAL_KERNEL(name) KERNEL__(name, FA_REAL_SUFFIX)
#define FA_KERNEL(name, arguments) FA_HIDDEN void REAL_KERNEL(name) arguments;
#if FA_CONVERTS
#define STORED_KERNEL KERNEL
#define BYTE_KERNEL REAL_KERNEL
#define FA_STORED_KERNEL(name, arguments)
#define FA_BYTE_KERNEL FA_KERNEL
#if FA_OWN_PRODUCTS
#define PACKED_KERNEL KERNEL
#else
#define PACKED_KERNEL REAL_KERNEL
#define FA_PACKED_KERNEL FA_KERNEL
#endif
#else
#define STORED_KERNEL REAL_KERNEL
#define PACKED_KERNEL REAL_KERNEL
#define BYTE_KERNEL KERNEL
#define FA_BYTE_KERNEL(name, arguments)
#endif
#include "kernels.def"
#endif

#if defined(FA_STORED_BF16)
#define TYPE bf16
#elif defined(FA_STORED_F16)
#define TYPE f16
#elif defined(FA_REAL_F32)
#define TYPE f32
#else
#define TYPE f64
#endif

FA_HIDDEN extern TABLE(TYPE, FA_SUFFIX);
TABLE(TYPE, FA_SUFFIX) = {
    .sizes = {.suffix = TEXT(FA_SUFFIX),
              .lanes = VL,
              .panel_vectors = FA_NV,
              .tile_rows = {0, 0, TILE_ROWS(2), TILE_ROWS(3), TILE_ROWS(4)},
              .packed = FA_PACKED,
              .tile_k = TILE_K,
              .k_block = {0, 0, K_BLOCK(2), K_BLOCK(3), K_BLOCK(4)},
              .step_rows = STEP_ROWS,
              .attention_rows = ATTENTION_ROWS,
              .late_scale = FA_AMX,
              .turned_gradients = FA_AMX,
              .attention_stride = ATTENTION_STRIDE,
              .attention_keys = ATTENTION_KEYS,
              .query_slice = QUERY_SLICE,
              .query_stride = QUERY_STRIDE,
              .probe_chains = PROBE_CHAINS},
#define FA_KERNEL(name, arguments) .name = REAL_KERNEL(name),
#define FA_STORED_KERNEL(name, arguments) .name = STORED_KERNEL(name),
#define FA_PACKED_KERNEL(name, arguments) .name = PACKED_KERNEL(name),
#if defined(FA_REAL_F32)
#define FA_BYTE_KERNEL(name, arguments) .name = BYTE_KERNEL(name),
#else
#define FA_FLOAT_KERNEL(name, arguments)
#endif
#include "kernels.def"
};
