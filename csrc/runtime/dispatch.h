/* The kernel tables in force. */
#ifndef FA_DISPATCH_H
#define FA_DISPATCH_H

#include "cpu.h"
#include "../kernels/kernels.h"

const fa_kernels_f32 *fa_kernels_of_f32(void);
const fa_kernels_f64 *fa_kernels_of_f64(void);
const fa_kernels_bf16 *fa_kernels_of_bf16(void);
const fa_kernels_f16 *fa_kernels_of_f16(void);

/* The table of one ISA that is available: packed operands keep to the ISA whose layout they have. */
const fa_kernels_f32 *fa_kernels_for_f32(fa_isa isa);
const fa_kernels_f64 *fa_kernels_for_f64(fa_isa isa);
const fa_kernels_bf16 *fa_kernels_for_bf16(fa_isa isa);
const fa_kernels_f16 *fa_kernels_for_f16(fa_isa isa);

/* The highest ISA that CPU and build offer. */
fa_isa fa_best_isa(void);
fa_isa fa_get_isa(void);
int fa_isa_usable(fa_isa isa);
/* 0 when that ISA is not available; nothing changes then. */
int fa_set_isa(fa_isa isa);

/* The name of kernel i, NULL beyond the last: for tests that walk the list. */
const char *fa_kernel_name(int i);

#endif
