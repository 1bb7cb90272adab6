/* CPUID and XGETBV by hand: __builtin_cpu_supports answers 0 to everything in binaries of some tool-chains (zig cc 0.17), and
   a CPU feature that the operating system does not save (XCR0) is a crash in waiting. */
#define _DEFAULT_SOURCE /* syscall */
#include "cpu.h"
#include "platform/platform.h"

#include <string.h>

enum {
    HAS_FMA = 1,
    HAS_F16C = 2,
    HAS_AVX2 = 4,
    HAS_AVX512 = 8, /* F, BW, DQ and VL together: the level every CPU since Skylake-SP offers */
    HAS_AVX512BF16 = 16,
    HAS_AVX512VNNI = 32,
    HAS_AMXBF16 = 64, /* with int8: no CPU has the one without the other */
    IS_INTEL = 128,
};

_Thread_local fa_index fa_rows_of_tiles;

void fa_release_tiles(void)
{
#if defined(__x86_64__)
    if (fa_rows_of_tiles) __asm__ volatile(".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0"); /* tilerelease: not every assembler knows it */
#endif
    fa_rows_of_tiles = 0;
}

static fa_once detected = FA_ONCE_INIT;
static unsigned features;
static char feature_text[80];
static char brand[49];

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static uint64_t enabled_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

/* Linux lets a process use the matrix tiles only on request, since it then has to save their 8 KB with each thread that uses them. */
static int tiles_granted(void)
{
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return 0;
#endif
}

static void detect_x86(void)
{
    enum { XMM_YMM = 0x6, OPMASK_ZMM = 0xe0, TILES = 0x60000 };
    uint32_t a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d)) return;
    if (b == signature_INTEL_ebx && c == signature_INTEL_ecx && d == signature_INTEL_edx) features |= IS_INTEL;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const int osxsave = (c >> 27) & 1, fma = (c >> 12) & 1, f16c = (c >> 29) & 1;
    const uint64_t state = osxsave ? enabled_state() : 0;
    if ((state & XMM_YMM) == XMM_YMM) {
        if (fma) features |= HAS_FMA;
        if (f16c) features |= HAS_F16C;
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
            if ((b >> 5) & 1) features |= HAS_AVX2;
            const uint32_t f_dq_bw_vl = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
            if ((state & OPMASK_ZMM) == OPMASK_ZMM && (b & f_dq_bw_vl) == f_dq_bw_vl) {
                features |= HAS_AVX512;
                if ((c >> 11) & 1) features |= HAS_AVX512VNNI;
                const uint32_t subleaves = a, tile_bf16_int8 = (1u << 24) | (1u << 22) | (1u << 25);
                if ((state & TILES) == TILES && (d & tile_bf16_int8) == tile_bf16_int8 && tiles_granted())
                    features |= HAS_AMXBF16;
                if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && ((a >> 5) & 1)) features |= HAS_AVX512BF16;
            }
        }
    }
    if (__get_cpuid(0x80000000u, &a, &b, &c, &d) && a >= 0x80000004u) {
        uint32_t words[12];
        for (uint32_t i = 0; i < 3; i++)
            __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
        memcpy(brand, words, sizeof words);
    }
}
#endif

static void detect(void)
{
    static const struct {
        unsigned bit;
        const char *name;
    } names[] = {{HAS_FMA, "fma"},
                 {HAS_F16C, "f16c"},
                 {HAS_AVX2, "avx2"},
                 {HAS_AVX512, "avx512"},
                 {HAS_AVX512BF16, "avx512bf16"},
                 {HAS_AVX512VNNI, "avx512vnni"},
                 {HAS_AMXBF16, "amxbf16"}};
#if defined(__x86_64__)
    detect_x86();
#endif
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!(features & names[i].bit)) continue;
        if (feature_text[0]) strcat(feature_text, " ");
        strcat(feature_text, names[i].name);
    }
}

const char *fa_isa_name(fa_isa isa)
{
    static const char *const names[FA_ISA_COUNT] = {"baseline", "avx2", "avx512", "avx512bf16", "amxbf16"};
    return names[isa];
}

int fa_cpu_allows(fa_isa isa)
{
    const unsigned avx2 = HAS_AVX2 | HAS_FMA | HAS_F16C, avx512 = avx2 | HAS_AVX512;
    const unsigned avx512bf16 = avx512 | HAS_AVX512BF16 | HAS_AVX512VNNI; /* no CPU has the one without the other */
    fa_call_once(&detected, detect);
    switch (isa) {
    case FA_ISA_BASELINE: return 1;
    case FA_ISA_LEVEL_AVX2: return (features & avx2) == avx2;
    case FA_ISA_LEVEL_AVX512: return (features & avx512) == avx512;
    case FA_ISA_LEVEL_AVX512BF16: return (features & avx512bf16) == avx512bf16;
    case FA_ISA_LEVEL_AMXBF16: return (features & (avx512bf16 | HAS_AMXBF16)) == (avx512bf16 | HAS_AMXBF16);
    default: return 0;
    }
}

int fa_cpu_prefers(fa_isa isa)
{
    fa_call_once(&detected, detect);
    /* Measured on an Emerald Rapids: VDPBF16PS every second cycle, half the rate of float's multiply-adds; attention of bfloat16
       took 155 ms, and 83 with AVX-512 alone. Those CPUs have AMX, unless a hypervisor or an old kernel hides it. */
    return !(isa == FA_ISA_LEVEL_AVX512BF16 && (features & IS_INTEL));
}

const char *fa_cpu_features(void)
{
    fa_call_once(&detected, detect);
    return feature_text;
}

const char *fa_cpu_brand(void)
{
    fa_call_once(&detected, detect);
    return brand;
}
