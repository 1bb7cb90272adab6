/* What the files of this folder share: the operations on vectors, the name of a kernel in this compilation, and partial vectors. */
#ifndef FA_KERNELS_COMMON_H
#define FA_KERNELS_COMMON_H

#include "../simd/simd.h"
#include "arguments.h"
#include "attention/attention.h"
#include "decode/decode.h"
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

/* The first `count` lanes; a constant VL makes it a plain load or store. */
FA_INLINE vreal load_some(const real *p, fa_index count) { return count >= VL ? v_load(p) : v_load_n(p, count); }
FA_INLINE void store_some(real *p, vreal a, fa_index count)
{
    if (count >= VL)
        v_store(p, a);
    else
        v_store_n(p, a, count);
}

/* The same of what arrays hold. */
FA_INLINE vreal load_stored_some(const stored *p, fa_index count)
{
    return count >= VL ? v_load_stored(p) : v_load_stored_n(p, count);
}
FA_INLINE void store_stored_some(stored *p, vreal a, fa_index count)
{
    if (count >= VL)
        v_store_stored(p, a);
    else
        v_store_stored_n(p, a, count);
}

#endif
