#include "dispatch.h"
#include "settings.h"

/* The build says which ISA-specific tables it has compiled (FA_HAVE_AVX2, FA_HAVE_AVX512, FA_HAVE_AVX512BF16, FA_HAVE_AMXBF16). */
#define DECLARE(isa)                                            \
    FA_HIDDEN extern const fa_kernels_f32 fa_table_f32_##isa;   \
    FA_HIDDEN extern const fa_kernels_f64 fa_table_f64_##isa;   \
    FA_HIDDEN extern const fa_kernels_bf16 fa_table_bf16_##isa; \
    FA_HIDDEN extern const fa_kernels_f16 fa_table_f16_##isa;
#define TABLES(isa) {&fa_table_f32_##isa, &fa_table_f64_##isa, &fa_table_bf16_##isa, &fa_table_f16_##isa}
DECLARE(baseline)
#if FA_HAVE_AVX2
DECLARE(avx2)
#endif
#if FA_HAVE_AVX512
DECLARE(avx512)
#endif
#if FA_HAVE_AVX512BF16
FA_HIDDEN extern const fa_kernels_f32 fa_table_f32_avx512bf16;
FA_HIDDEN extern const fa_kernels_bf16 fa_table_bf16_avx512bf16;
#endif
#if FA_HAVE_AMXBF16
FA_HIDDEN extern const fa_kernels_f32 fa_table_f32_amxbf16;
FA_HIDDEN extern const fa_kernels_bf16 fa_table_bf16_amxbf16;
#endif

static const struct {
    const fa_kernels_f32 *f32;
    const fa_kernels_f64 *f64;
    const fa_kernels_bf16 *bf16;
    const fa_kernels_f16 *f16;
} tables[FA_ISA_COUNT] = {
    [FA_ISA_BASELINE] = TABLES(baseline),
#if FA_HAVE_AVX2
    [FA_ISA_LEVEL_AVX2] = TABLES(avx2),
#endif
#if FA_HAVE_AVX512
    [FA_ISA_LEVEL_AVX512] = TABLES(avx512),
#endif
#if FA_HAVE_AVX512BF16
    [FA_ISA_LEVEL_AVX512BF16] = {&fa_table_f32_avx512bf16, &fa_table_f64_avx512, &fa_table_bf16_avx512bf16, &fa_table_f16_avx512},
#endif
#if FA_HAVE_AMXBF16
    [FA_ISA_LEVEL_AMXBF16] = {&fa_table_f32_amxbf16, &fa_table_f64_avx512, &fa_table_bf16_amxbf16, &fa_table_f16_avx512},
#endif
};

int fa_isa_usable(fa_isa isa) { return tables[isa].f32 && fa_cpu_allows(isa); }

fa_isa fa_best_isa(void)
{
    int isa = FA_ISA_COUNT - 1;
    while (!fa_isa_usable((fa_isa)isa) || !fa_cpu_prefers((fa_isa)isa)) isa--;
    return (fa_isa)isa;
}

fa_isa fa_get_isa(void) { return (fa_isa)fa_setting_get(FA_SETTING_ISA); }

int fa_set_isa(fa_isa isa)
{
    if (!fa_isa_usable(isa)) return 0;
    fa_setting_set(FA_SETTING_ISA, (int)isa);
    return 1;
}

const fa_kernels_f32 *fa_kernels_for_f32(fa_isa isa) { return tables[isa].f32; }
const fa_kernels_f64 *fa_kernels_for_f64(fa_isa isa) { return tables[isa].f64; }
const fa_kernels_bf16 *fa_kernels_for_bf16(fa_isa isa) { return tables[isa].bf16; }
const fa_kernels_f16 *fa_kernels_for_f16(fa_isa isa) { return tables[isa].f16; }
const fa_kernels_f32 *fa_kernels_of_f32(void) { return tables[fa_get_isa()].f32; }
const fa_kernels_f64 *fa_kernels_of_f64(void) { return tables[fa_get_isa()].f64; }
const fa_kernels_bf16 *fa_kernels_of_bf16(void) { return tables[fa_get_isa()].bf16; }
const fa_kernels_f16 *fa_kernels_of_f16(void) { return tables[fa_get_isa()].f16; }

const char *fa_kernel_name(int i)
{
    static const char *const names[] = {
#define FA_KERNEL(class, name, arguments) #name,
#include "../kernels/kernels.def"
#undef FA_KERNEL
        NULL};
    return names[i];
}
