/* What the files of this folder share: the vocabulary, and the name of a kernel in this compilation. */
#ifndef FA_KERNELS_COMMON_H
#define FA_KERNELS_COMMON_H

#include "../simd/simd.h"
#include "arguments.h"
#include "attention.h"
#include "decode.h"
#include "vmath.h"

/* FA_SUFFIX, type and ISA such as f32_avx2, comes from the build. */
#define KERNEL_(name, suffix) fa_##name##_##suffix
#define KERNEL__(name, suffix) KERNEL_(name, suffix)
#define KERNEL(name) KERNEL__(name, FA_SUFFIX)

#define OBJECT(name) name /* as arguments.h has it */
#define FA_KERNEL(class, name, arguments) FA_HIDDEN void KERNEL(name) arguments;
#include "kernels.def"
#undef FA_KERNEL
#undef OBJECT

#endif
