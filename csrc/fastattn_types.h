/* The types of the C API that all layers share: sizes, and what is known by number. C and C++. */
#ifndef FASTATTN_TYPES_H
#define FASTATTN_TYPES_H

#include <stdint.h>

typedef int64_t fa_index; /* every size, stride and subscript: signed, so that differences are safe */

typedef enum {
    FA_OK = 0,
    FA_NOMEM,  /* scratch memory could not be had; outputs are not written */
    FA_NOBLAS, /* strategy "blas" requested, but no BLAS provider is there */
} fa_status;

/* Types of arrays. The last two are storage: arithmetic is in float. */
typedef enum { FA_F32 = 0, FA_F64, FA_BF16, FA_F16 } fa_dtype;

/* Functions that are known by number: the element-wise ops, and the activations inside linear and the cells. */
typedef enum {
    FA_IDENTITY = 0,
    FA_TANH,
    FA_SIGMOID,
    FA_RELU,
    FA_GELU,
    FA_GELU_TANH,
    FA_SILU,
    FA_EXP,
} fa_activation;

/* Instruction sets in rising order: a later one is preferred, and the environment can only lower the choice. */
typedef enum {
    FA_ISA_BASELINE = 0,
    FA_ISA_LEVEL_AVX2,
    FA_ISA_LEVEL_AVX512,
    FA_ISA_LEVEL_AVX512BF16,
    FA_ISA_LEVEL_AMXBF16,
    FA_ISA_COUNT
} fa_isa;

#endif
