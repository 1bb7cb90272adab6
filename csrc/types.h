/* The types of a compilation. The build defines FA_REAL_F32 or FA_REAL_F64, and for 16-bit arrays FA_STORED_BF16 or FA_STORED_F16 as
   well. `real` is the type of the arithmetic; `stored` what arrays of the caller hold: real, or the bits of a 16-bit number. */
#ifndef FA_TYPES_H
#define FA_TYPES_H

#include "base.h"

#if defined(FA_REAL_F32)
typedef float real;
typedef int32_t rint_t; /* the signed integer of the same width */
#define FA_REAL_TYPE f32
#define FA_OBJECT(name) name##_f32 /* of kernels/arguments.def */
#define REAL(x) x##f
#define REAL_MANTISSA_BITS 23
#define REAL_EXPONENT_BIAS 127
#define REAL_INFINITY __builtin_inff()
#define REAL_LARGEST __FLT_MAX__
#elif defined(FA_REAL_F64)
typedef double real;
typedef int64_t rint_t;
#define FA_REAL_TYPE f64
#define FA_OBJECT(name) name##_f64
#define REAL(x) x
#define REAL_MANTISSA_BITS 52
#define REAL_EXPONENT_BIAS 1023
#define REAL_INFINITY __builtin_inf()
#define REAL_LARGEST __DBL_MAX__
#else
#error "define FA_REAL_F32 or FA_REAL_F64"
#endif

#if defined(FA_STORED_BF16)
typedef uint16_t stored;
#define FA_STORED_TYPE bf16
#define STORED_MINUS_INFINITY 0xff80
#elif defined(FA_STORED_F16)
typedef uint16_t stored;
#define FA_STORED_TYPE f16
#define STORED_MINUS_INFINITY 0xfc00
#else
typedef real stored;
#define FA_STORED_TYPE FA_REAL_TYPE
#define STORED_MINUS_INFINITY (-REAL_INFINITY)
#endif

/* 1 where arrays are of another type than the arithmetic. */
#if defined(FA_STORED_BF16) || defined(FA_STORED_F16)
#define FA_CONVERTS 1
#else
#define FA_CONVERTS 0
#endif

/* 1 where arrays are float32: to these alone belong weights and caches of fewer bits. */
#if defined(FA_REAL_F32) && !FA_CONVERTS
#define FA_FLOAT_ARRAYS 1
#else
#define FA_FLOAT_ARRAYS 0
#endif

#endif
