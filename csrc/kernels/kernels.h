/* From kernels.def: the prototypes of this compilation's kernels (their names carry type and ISA), and the tables that
   ops/ calls through. */
#ifndef FA_KERNELS_H
#define FA_KERNELS_H

#include "../base.h"
#include "attention/attention.h"
#include "decode/decode.h"

/* Sizes that a kernel fixes for its ISA and type, and that ops need for buffers. */
typedef struct {
    const char *suffix;      /* type and ISA, "f32_avx2" */
    fa_index lanes;          /* VL */
    fa_index panel_vectors;  /* FA_NV: vectors in a panel of linear and attention */
    fa_index tile_rows[5];   /* [nv], rows that share a packed tile of a */
    fa_index packed;         /* FA_PACKED: elements of k in a packed element, 2 for pairs */
    fa_index tile_k;         /* TILE_K: multiples that k is padded to */
    fa_index k_block[5];     /* [nv], k per pass over a panel: sums are split here, whatever the sizes */
    fa_index few_rows;       /* most rows that the kernel of that name takes; 0: none */
    fa_index step_rows;      /* fewer sequences in a recurrent step take their products with w_ih in chunks of steps */
    fa_index attention_rows; /* rows of a tile of queries */
    fa_index
        scale_in_softmax; /* 1: attention_product_nt is cheaper without a scale, and attention_softmax with one costs as little */
    fa_index transposed_gradients; /* 1: attention_product_tn has a row for each column,
                                  as attention_scale_gradients takes them */
    fa_index attention_stride;     /* row stride of a block of scores */
    fa_index attention_keys;       /* most keys in a block */
    fa_index query_slice;          /* dimensions in a slice of scaled queries */
    fa_index query_stride;         /* row stride of a slice */
    fa_index probe_chains;         /* vectors in a round of probe_multiply_add */
} fa_kernel_sizes;

/* What the kernels of a real type take: OBJECT(name) is <name>_<type>. */
#define real float
#define OBJECT(name) name##_f32
#include "arguments.def"
#undef real
#undef OBJECT
#define real double
#define OBJECT(name) name##_f64
#include "arguments.def"

/* The tables; that of double lacks what only float has. */
#define FA_KERNEL(class, name, arguments) FA_MEMBER_##class(void(*name) arguments;)
#define FA_MEMBER_REAL(...) __VA_ARGS__
#define FA_MEMBER_STORED(...) __VA_ARGS__
#define FA_MEMBER_PACKED(...) __VA_ARGS__

#define FA_MEMBER_FLOAT(...)
#define FA_MEMBER_BYTES(...)
#define stored double
typedef struct {
    fa_kernel_sizes sizes;
#include "kernels.def"
} fa_kernels_f64;
#undef real
#undef stored
#undef OBJECT
#undef FA_MEMBER_FLOAT
#undef FA_MEMBER_BYTES

#define FA_MEMBER_FLOAT(...) __VA_ARGS__
#define FA_MEMBER_BYTES(...) __VA_ARGS__
#define real float
#define stored float
#define OBJECT(name) name##_f32
typedef struct {
    fa_kernel_sizes sizes;
#include "kernels.def"
} fa_kernels_f32;
#undef stored
#define stored uint16_t
typedef struct {
    fa_kernel_sizes sizes;
#include "kernels.def"
} fa_kernels_bf16;
typedef fa_kernels_bf16 fa_kernels_f16;
#undef real
#undef stored
#undef OBJECT
#undef FA_KERNEL

#endif
