/* AVX2 + FMA: 8 floats or 4 doubles, 16 registers. The operations are explained in simd.h. */
#ifndef FA_SIMD_AVX2_H
#define FA_SIMD_AVX2_H

#include <immintrin.h>
#include <string.h>

#define FA_HAS_FMA 1
#define FA_REGISTERS 16
#define FA_NV 2
#define FA_PAIRS 0
#define FA_AMX 0
#define FA_BYTE_DOTS 0
#define FA_TRANSPOSED_LOADS 1
#define FA_BYTE_TILES 0

static const int32_t v_lane_table[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0};

FA_INLINE void v_end_stream(void) { _mm_sfence(); }

#if defined(FA_REAL_F32)
#define VL 8
typedef __m256 vreal;
typedef __m256 vmask;

FA_INLINE vmask v_first(fa_index n)
{
    n = n < 0 ? 0 : n > VL ? VL : n;
    return _mm256_castsi256_ps(_mm256_loadu_si256((const __m256i *)(v_lane_table + 16 - n)));
}
FA_INLINE vreal v_load(const real *p) { return _mm256_loadu_ps(p); }
FA_INLINE void v_store(real *p, vreal a) { _mm256_storeu_ps(p, a); }
FA_INLINE void v_stream(real *p, vreal a) { _mm256_stream_ps(p, a); }
FA_INLINE vreal v_load_n(const real *p, fa_index n) { return _mm256_maskload_ps(p, _mm256_castps_si256(v_first(n))); }
FA_INLINE void v_store_n(real *p, vreal a, fa_index n) { _mm256_maskstore_ps(p, _mm256_castps_si256(v_first(n)), a); }
FA_INLINE vreal v_broadcast(const real *p) { return _mm256_broadcast_ss(p); }
FA_INLINE vreal v_set1(real x) { return _mm256_set1_ps(x); }
FA_INLINE vreal v_zero(void) { return _mm256_setzero_ps(); }
FA_INLINE vreal v_add(vreal a, vreal b) { return _mm256_add_ps(a, b); }
FA_INLINE vreal v_sub(vreal a, vreal b) { return _mm256_sub_ps(a, b); }
FA_INLINE vreal v_mul(vreal a, vreal b) { return _mm256_mul_ps(a, b); }
FA_INLINE vreal v_div(vreal a, vreal b) { return _mm256_div_ps(a, b); }
FA_INLINE vreal v_sqrt(vreal a) { return _mm256_sqrt_ps(a); }
FA_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return _mm256_fmadd_ps(a, b, c); }
FA_INLINE vreal v_fnma(vreal a, vreal b, vreal c) { return _mm256_fnmadd_ps(a, b, c); }
FA_INLINE vreal v_product_error(vreal a, vreal b, vreal p) { return _mm256_fmsub_ps(a, b, p); }
FA_INLINE vreal v_max(vreal a, vreal b) { return _mm256_max_ps(a, b); }
FA_INLINE vreal v_min(vreal a, vreal b) { return _mm256_min_ps(a, b); }
FA_INLINE vreal v_abs(vreal a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
FA_INLINE vreal v_negate(vreal a) { return _mm256_xor_ps(_mm256_set1_ps(-0.0f), a); }
FA_INLINE vreal v_copysign(vreal a, vreal s)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, s));
}
FA_INLINE vreal v_round(vreal a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FA_INLINE vreal v_power_of_two(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
FA_INLINE vreal v_scale(vreal a, vreal n)
{
    /* Two factors, each a normal power of two: only the second product can leave the normal range downwards. */
    const __m256i i = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(i, 1);
    return v_mul(v_mul(a, v_power_of_two(_mm256_sub_epi32(i, half))), v_power_of_two(half));
}
FA_INLINE vreal v_add_exponent(vreal a, vreal t)
{
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
FA_INLINE vmask v_lt(vreal a, vreal b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
FA_INLINE vmask v_le(vreal a, vreal b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
FA_INLINE vmask v_eq(vreal a, vreal b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
FA_INLINE vmask v_is_nan(vreal a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
FA_INLINE vreal v_select(vmask m, vreal a, vreal b) { return _mm256_blendv_ps(b, a, m); }
FA_INLINE vmask v_mask_bytes(const uint8_t *p)
{
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_setzero_si256()));
}
FA_INLINE vmask v_and(vmask a, vmask b) { return _mm256_and_ps(a, b); }
FA_INLINE vmask v_or(vmask a, vmask b) { return _mm256_or_ps(a, b); }
FA_INLINE vmask v_and_not(vmask a, vmask b) { return _mm256_andnot_ps(b, a); }
FA_INLINE int v_any(vmask a) { return _mm256_movemask_ps(a) != 0; }
FA_INLINE real v_reduce_add(vreal a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
FA_INLINE real v_reduce_max(vreal a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
FA_INLINE vreal v_swap_pairs(vreal a) { return _mm256_permute_ps(a, 0xb1); }
FA_INLINE void v_transpose(vreal a[VL])
{
    const __m256 t0 = _mm256_unpacklo_ps(a[0], a[1]), t1 = _mm256_unpackhi_ps(a[0], a[1]);
    const __m256 t2 = _mm256_unpacklo_ps(a[2], a[3]), t3 = _mm256_unpackhi_ps(a[2], a[3]);
    const __m256 t4 = _mm256_unpacklo_ps(a[4], a[5]), t5 = _mm256_unpackhi_ps(a[4], a[5]);
    const __m256 t6 = _mm256_unpacklo_ps(a[6], a[7]), t7 = _mm256_unpackhi_ps(a[6], a[7]);
    const __m256 u0 = _mm256_shuffle_ps(t0, t2, 0x44), u1 = _mm256_shuffle_ps(t0, t2, 0xee);
    const __m256 u2 = _mm256_shuffle_ps(t1, t3, 0x44), u3 = _mm256_shuffle_ps(t1, t3, 0xee);
    const __m256 u4 = _mm256_shuffle_ps(t4, t6, 0x44), u5 = _mm256_shuffle_ps(t4, t6, 0xee);
    const __m256 u6 = _mm256_shuffle_ps(t5, t7, 0x44), u7 = _mm256_shuffle_ps(t5, t7, 0xee);
    a[0] = _mm256_permute2f128_ps(u0, u4, 0x20), a[4] = _mm256_permute2f128_ps(u0, u4, 0x31);
    a[1] = _mm256_permute2f128_ps(u1, u5, 0x20), a[5] = _mm256_permute2f128_ps(u1, u5, 0x31);
    a[2] = _mm256_permute2f128_ps(u2, u6, 0x20), a[6] = _mm256_permute2f128_ps(u2, u6, 0x31);
    a[3] = _mm256_permute2f128_ps(u3, u7, 0x20), a[7] = _mm256_permute2f128_ps(u3, u7, 0x31);
}
/* A load that fills both halves with one row, and a blend with another row, cost no shuffle: half of those of v_transpose, and loads are
   two a cycle. */
FA_INLINE vreal v_both_halves(const real *p) { return _mm256_broadcast_ps((const __m128 *)(const void *)p); }
FA_INLINE void v_transpose_halves(vreal a[4], vreal r0, vreal r1, vreal r2, vreal r3)
{
    const __m256 l0 = _mm256_unpacklo_ps(r0, r1), h0 = _mm256_unpackhi_ps(r0, r1);
    const __m256 l1 = _mm256_unpacklo_ps(r2, r3), h1 = _mm256_unpackhi_ps(r2, r3);
    a[0] = _mm256_shuffle_ps(l0, l1, 0x44), a[1] = _mm256_shuffle_ps(l0, l1, 0xee);
    a[2] = _mm256_shuffle_ps(h0, h1, 0x44), a[3] = _mm256_shuffle_ps(h0, h1, 0xee);
}
FA_INLINE vreal v_low_halves(const real *p, const real *q) { return _mm256_blend_ps(v_both_halves(q), v_load(p), 0x0f); }
FA_INLINE vreal v_high_halves(const real *p, const real *q) { return _mm256_blend_ps(v_both_halves(p + 4), v_load(q), 0xf0); }
FA_INLINE void v_load_transposed(vreal a[VL], const real *p, fa_index ld)
{
    const real *p3 = p + 3 * ld;
    fa_index ld3 = 3 * ld;
    FA_OPAQUE(p3);
    FA_OPAQUE(ld3);
    v_transpose_halves(a, v_low_halves(p, p + 4 * ld), v_low_halves(p + ld, p3 + 2 * ld), v_low_halves(p + 2 * ld, p3 + ld3),
                       v_low_halves(p3, p3 + 4 * ld));
    v_transpose_halves(a + 4, v_high_halves(p, p + 4 * ld), v_high_halves(p + ld, p3 + 2 * ld),
                       v_high_halves(p + 2 * ld, p3 + ld3), v_high_halves(p3, p3 + 4 * ld));
}
/* Without masks for 16-bit elements a partial vector passes through memory. */
FA_INLINE __m128i v_load_16_n(const uint16_t *p, fa_index n)
{
    uint16_t whole[VL] = {0};
    for (int i = 0; i < VL; i++)
        if (i < n) whole[i] = p[i];
    return _mm_loadu_si128((const __m128i *)whole);
}
FA_INLINE void v_store_16_n(uint16_t *p, __m128i a, fa_index n)
{
    uint16_t whole[VL];
    _mm_storeu_si128((__m128i *)whole, a);
    for (int i = 0; i < VL; i++)
        if (i < n) p[i] = whole[i];
}
FA_INLINE vreal v_widen_bf16(__m128i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16)); }
FA_INLINE __m128i v_narrow_bf16(vreal a)
{
    const __m256i x = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_or_si256(x, _mm256_set1_epi32(0x400000));
    const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(v_is_nan(a))), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
}
FA_INLINE __m128i v_narrow_f16(vreal a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FA_INLINE vreal v_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
typedef __m256i vint;
FA_INLINE vreal v_load_bytes(const int8_t *p) { return _mm256_castsi256_ps(_mm256_loadu_si256((const __m256i *)p)); }
FA_INLINE vreal v_load_bytes_n(const int8_t *p, fa_index n)
{
    int8_t whole[4 * VL] = {0};
    for (int i = 0; i < 4 * VL; i++)
        if (i < n) whole[i] = p[i];
    return v_load_bytes(whole);
}
FA_INLINE vreal v_load_i8_n(const int8_t *p, fa_index n)
{
    int8_t whole[VL] = {0};
    for (int i = 0; i < VL; i++)
        if (i < n) whole[i] = p[i];
    return v_load_i8(whole);
}
FA_INLINE vint v_unsigned_bytes(vreal a) { return _mm256_xor_si256(_mm256_castps_si256(a), _mm256_set1_epi8(-128)); }
FA_INLINE vint v_broadcast_int(const int32_t *p) { return _mm256_set1_epi32(*p); }
FA_INLINE vint v_dot_bytes(vint u, vint s, vint c)
{
    /* Even and odd bytes as 16-bit numbers: VPMADDUBSW would saturate. */
    const __m256i low = _mm256_set1_epi16(0xff);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(c, _mm256_add_epi32(even, odd));
}
FA_INLINE vint v_load_int(const void *p) { return _mm256_loadu_si256(p); }
FA_INLINE vint v_zero_int(void) { return _mm256_setzero_si256(); }
typedef struct {
    __m256i signs, magnitudes;
} vbytes;
FA_INLINE vbytes v_broadcast_bytes(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    const __m256i x = _mm256_set1_epi32(four);
    return (vbytes){_mm256_cmpgt_epi8(_mm256_setzero_si256(), x), _mm256_abs_epi8(x)};
}
FA_INLINE vint v_dot_signed(vbytes x, vint s, vint c)
{
    /* VPMADDUBSW does not saturate: 2 127 128 < 2^15. VPSIGNB would do without a correction, but has fewer ports than VPXOR. */
    const __m256i pairs = _mm256_maddubs_epi16(x.magnitudes, _mm256_xor_si256(s, x.signs));
    return _mm256_add_epi32(c, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
FA_INLINE void v_store_i8(int8_t *p, vreal a)
{
    const __m256i x = _mm256_cvtps_epi32(a);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(halves, halves));
}
FA_INLINE vreal v_swap_lanes(vreal a, const int distance)
{
    return distance == 1   ? _mm256_permute_ps(a, 0xb1)
           : distance == 2 ? _mm256_permute_ps(a, 0x4e)
                           : _mm256_permute2f128_ps(a, a, 0x01);
}
FA_INLINE vreal v_real_of(vint a) { return _mm256_cvtepi32_ps(a); }
FA_INLINE void v_load_bf16_pairs(const uint16_t *p, vreal *even, vreal *odd)
{
    const __m256i x = _mm256_loadu_si256((const __m256i *)p);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000)));
}
FA_INLINE vreal v_load_bf16(const uint16_t *p) { return v_widen_bf16(_mm_loadu_si128((const __m128i *)p)); }
FA_INLINE vreal v_load_bf16_n(const uint16_t *p, fa_index n) { return v_widen_bf16(v_load_16_n(p, n)); }
FA_INLINE void v_store_bf16(uint16_t *p, vreal a) { _mm_storeu_si128((__m128i *)p, v_narrow_bf16(a)); }
FA_INLINE void v_store_bf16_n(uint16_t *p, vreal a, fa_index n) { v_store_16_n(p, v_narrow_bf16(a), n); }
FA_INLINE vreal v_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
FA_INLINE vreal v_load_f16_n(const uint16_t *p, fa_index n) { return _mm256_cvtph_ps(v_load_16_n(p, n)); }
FA_INLINE void v_store_f16(uint16_t *p, vreal a) { _mm_storeu_si128((__m128i *)p, v_narrow_f16(a)); }
FA_INLINE void v_store_f16_n(uint16_t *p, vreal a, fa_index n) { v_store_16_n(p, v_narrow_f16(a), n); }

#else
#define VL 4
typedef __m256d vreal;
typedef __m256d vmask;

FA_INLINE vmask v_first(fa_index n)
{
    n = n < 0 ? 0 : n > VL ? VL : n;
    return _mm256_castsi256_pd(_mm256_loadu_si256((const __m256i *)(v_lane_table + 16 - 2 * n)));
}
FA_INLINE vreal v_load(const real *p) { return _mm256_loadu_pd(p); }
FA_INLINE void v_store(real *p, vreal a) { _mm256_storeu_pd(p, a); }
FA_INLINE void v_stream(real *p, vreal a) { _mm256_stream_pd(p, a); }
FA_INLINE vreal v_load_n(const real *p, fa_index n) { return _mm256_maskload_pd(p, _mm256_castpd_si256(v_first(n))); }
FA_INLINE void v_store_n(real *p, vreal a, fa_index n) { _mm256_maskstore_pd(p, _mm256_castpd_si256(v_first(n)), a); }
FA_INLINE vreal v_broadcast(const real *p) { return _mm256_broadcast_sd(p); }
FA_INLINE vreal v_set1(real x) { return _mm256_set1_pd(x); }
FA_INLINE vreal v_zero(void) { return _mm256_setzero_pd(); }
FA_INLINE vreal v_add(vreal a, vreal b) { return _mm256_add_pd(a, b); }
FA_INLINE vreal v_sub(vreal a, vreal b) { return _mm256_sub_pd(a, b); }
FA_INLINE vreal v_mul(vreal a, vreal b) { return _mm256_mul_pd(a, b); }
FA_INLINE vreal v_div(vreal a, vreal b) { return _mm256_div_pd(a, b); }
FA_INLINE vreal v_sqrt(vreal a) { return _mm256_sqrt_pd(a); }
FA_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return _mm256_fmadd_pd(a, b, c); }
FA_INLINE vreal v_fnma(vreal a, vreal b, vreal c) { return _mm256_fnmadd_pd(a, b, c); }
FA_INLINE vreal v_product_error(vreal a, vreal b, vreal p) { return _mm256_fmsub_pd(a, b, p); }
FA_INLINE vreal v_max(vreal a, vreal b) { return _mm256_max_pd(a, b); }
FA_INLINE vreal v_min(vreal a, vreal b) { return _mm256_min_pd(a, b); }
FA_INLINE vreal v_abs(vreal a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
FA_INLINE vreal v_negate(vreal a) { return _mm256_xor_pd(_mm256_set1_pd(-0.0), a); }
FA_INLINE vreal v_copysign(vreal a, vreal s)
{
    const __m256d sign = _mm256_set1_pd(-0.0);
    return _mm256_or_pd(_mm256_andnot_pd(sign, a), _mm256_and_pd(sign, s));
}
FA_INLINE vreal v_round(vreal a) { return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FA_INLINE vreal v_power_of_two(__m128i n)
{
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_cvtepi32_epi64(_mm_add_epi32(n, _mm_set1_epi32(1023))), 52));
}
FA_INLINE vreal v_scale(vreal a, vreal n)
{
    const __m128i i = _mm256_cvtpd_epi32(n);
    const __m128i half = _mm_srai_epi32(i, 1);
    return v_mul(v_mul(a, v_power_of_two(_mm_sub_epi32(i, half))), v_power_of_two(half));
}
FA_INLINE vreal v_add_exponent(vreal a, vreal t)
{
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(a), _mm256_slli_epi64(_mm256_castpd_si256(t), 52)));
}
FA_INLINE vmask v_lt(vreal a, vreal b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
FA_INLINE vmask v_le(vreal a, vreal b) { return _mm256_cmp_pd(a, b, _CMP_LE_OQ); }
FA_INLINE vmask v_eq(vreal a, vreal b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
FA_INLINE vmask v_is_nan(vreal a) { return _mm256_cmp_pd(a, a, _CMP_UNORD_Q); }
FA_INLINE vreal v_select(vmask m, vreal a, vreal b) { return _mm256_blendv_pd(b, a, m); }
FA_INLINE vmask v_mask_bytes(const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    const __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
    return _mm256_castsi256_pd(_mm256_cmpgt_epi64(wide, _mm256_setzero_si256()));
}
FA_INLINE vmask v_and(vmask a, vmask b) { return _mm256_and_pd(a, b); }
FA_INLINE vmask v_or(vmask a, vmask b) { return _mm256_or_pd(a, b); }
FA_INLINE vmask v_and_not(vmask a, vmask b) { return _mm256_andnot_pd(b, a); }
FA_INLINE int v_any(vmask a) { return _mm256_movemask_pd(a) != 0; }
FA_INLINE real v_reduce_add(vreal a)
{
    const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
FA_INLINE real v_reduce_max(vreal a)
{
    const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
}
FA_INLINE vreal v_swap_pairs(vreal a) { return _mm256_permute_pd(a, 0x5); }
FA_INLINE void v_transpose(vreal a[VL])
{
    const __m256d t0 = _mm256_unpacklo_pd(a[0], a[1]), t1 = _mm256_unpackhi_pd(a[0], a[1]);
    const __m256d t2 = _mm256_unpacklo_pd(a[2], a[3]), t3 = _mm256_unpackhi_pd(a[2], a[3]);
    a[0] = _mm256_permute2f128_pd(t0, t2, 0x20), a[2] = _mm256_permute2f128_pd(t0, t2, 0x31);
    a[1] = _mm256_permute2f128_pd(t1, t3, 0x20), a[3] = _mm256_permute2f128_pd(t1, t3, 0x31);
}
FA_INLINE vreal v_both_halves(const real *p) { return _mm256_broadcast_pd((const __m128d *)(const void *)p); }
FA_INLINE vreal v_low_halves(const real *p, const real *q) { return _mm256_blend_pd(v_both_halves(q), v_load(p), 0x3); }
FA_INLINE vreal v_high_halves(const real *p, const real *q) { return _mm256_blend_pd(v_both_halves(p + 2), v_load(q), 0xc); }
/* As of floats. */
FA_INLINE void v_load_transposed(vreal a[VL], const real *p, fa_index ld)
{
    const real *p2 = p + 2 * ld;
    const __m256d l0 = v_low_halves(p, p2), l1 = v_low_halves(p + ld, p2 + ld);
    const __m256d h0 = v_high_halves(p, p2), h1 = v_high_halves(p + ld, p2 + ld);
    a[0] = _mm256_unpacklo_pd(l0, l1), a[1] = _mm256_unpackhi_pd(l0, l1);
    a[2] = _mm256_unpacklo_pd(h0, h1), a[3] = _mm256_unpackhi_pd(h0, h1);
}
#endif

#endif
