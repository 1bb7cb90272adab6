/* AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles, 32 registers, one mask bit per lane. The operations are explained in simd.h. */
#ifndef FA_SIMD_AVX512_H
#define FA_SIMD_AVX512_H

#include <immintrin.h>
#include <string.h>

#define FA_HAS_FMA 1
#define FA_REGISTERS 32
#define FA_NV 4

/* What else the CPU has, as the flags of the set say, and the type can use. */
#if defined(__AVX512BF16__) && defined(FA_STORED_BF16)
#define FA_PAIRS 1
#else
#define FA_PAIRS 0
#endif
#if defined(__AVX512VNNI__) && FA_FLOAT_ARRAYS
#define FA_BYTE_DOTS 1
#else
#define FA_BYTE_DOTS 0
#endif
#if defined(__AMX_BF16__) && FA_PAIRS
#define FA_AMX 1
#else
#define FA_AMX 0
#endif
#if defined(__AMX_INT8__) && FA_BYTE_DOTS
#define FA_TRANSPOSED_LOADS 0
#define FA_BYTE_TILES 1
#else
#define FA_BYTE_TILES 0
#endif

FA_INLINE void v_end_stream(void) { _mm_sfence(); }

#if defined(FA_REAL_F32)
#define VL 16
typedef __m512 vreal;
typedef __mmask16 vmask;

FA_INLINE vmask v_first(fa_index n)
{
    n = n < 0 ? 0 : n > VL ? VL : n;
    return (vmask)((1u << n) - 1u);
}
FA_INLINE vreal v_load(const real *p) { return _mm512_loadu_ps(p); }
FA_INLINE void v_store(real *p, vreal a) { _mm512_storeu_ps(p, a); }
FA_INLINE void v_stream(real *p, vreal a) { _mm512_stream_ps(p, a); }
FA_INLINE vreal v_load_n(const real *p, fa_index n) { return _mm512_maskz_loadu_ps(v_first(n), p); }
FA_INLINE void v_store_n(real *p, vreal a, fa_index n) { _mm512_mask_storeu_ps(p, v_first(n), a); }
FA_INLINE vreal v_broadcast(const real *p) { return _mm512_set1_ps(*p); }
FA_INLINE vreal v_set1(real x) { return _mm512_set1_ps(x); }
FA_INLINE vreal v_zero(void) { return _mm512_setzero_ps(); }
FA_INLINE vreal v_add(vreal a, vreal b) { return _mm512_add_ps(a, b); }
FA_INLINE vreal v_sub(vreal a, vreal b) { return _mm512_sub_ps(a, b); }
FA_INLINE vreal v_mul(vreal a, vreal b) { return _mm512_mul_ps(a, b); }
FA_INLINE vreal v_div(vreal a, vreal b) { return _mm512_div_ps(a, b); }
FA_INLINE vreal v_sqrt(vreal a) { return _mm512_sqrt_ps(a); }
FA_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return _mm512_fmadd_ps(a, b, c); }
FA_INLINE vreal v_fnma(vreal a, vreal b, vreal c) { return _mm512_fnmadd_ps(a, b, c); }
FA_INLINE vreal v_product_error(vreal a, vreal b, vreal p) { return _mm512_fmsub_ps(a, b, p); }
FA_INLINE vreal v_max(vreal a, vreal b) { return _mm512_max_ps(a, b); }
FA_INLINE vreal v_min(vreal a, vreal b) { return _mm512_min_ps(a, b); }
FA_INLINE vreal v_abs(vreal a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
FA_INLINE vreal v_negate(vreal a) { return _mm512_xor_ps(_mm512_set1_ps(-0.0f), a); }
FA_INLINE vreal v_copysign(vreal a, vreal s)
{
    const __m512 sign = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, s));
}
FA_INLINE vreal v_round(vreal a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FA_INLINE vreal v_power_of_two(__m512i n)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
FA_INLINE vreal v_scale(vreal a, vreal n)
{
    /* Not VSCALEF: two products round as the other instruction sets do, and cost the same. */
    const __m512i i = _mm512_cvtps_epi32(n);
    const __m512i half = _mm512_srai_epi32(i, 1);
    return v_mul(v_mul(a, v_power_of_two(_mm512_sub_epi32(i, half))), v_power_of_two(half));
}
FA_INLINE vreal v_add_exponent(vreal a, vreal t)
{
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
FA_INLINE vmask v_lt(vreal a, vreal b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
FA_INLINE vmask v_le(vreal a, vreal b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
FA_INLINE vmask v_eq(vreal a, vreal b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
FA_INLINE vmask v_is_nan(vreal a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
FA_INLINE vreal v_select(vmask m, vreal a, vreal b) { return _mm512_mask_blend_ps(m, b, a); }
FA_INLINE vmask v_mask_bytes(const uint8_t *p)
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return _mm_test_epi8_mask(bytes, bytes);
}
FA_INLINE __m256 v_upper_half(vreal a) { return _mm512_extractf32x8_ps(a, 1); }
FA_INLINE real v_reduce_add(vreal a)
{
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), v_upper_half(a));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
FA_INLINE real v_reduce_max(vreal a)
{
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), v_upper_half(a));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
FA_INLINE vreal v_swap_pairs(vreal a) { return _mm512_permute_ps(a, 0xb1); }
FA_INLINE void v_transpose(vreal a[VL])
{
    vreal t[VL];
    /* 4 x 4 blocks inside the 128-bit lanes, then the lanes themselves */
    FA_UNROLL
    for (int i = 0; i < VL; i += 4) {
        const __m512 l0 = _mm512_unpacklo_ps(a[i], a[i + 1]), h0 = _mm512_unpackhi_ps(a[i], a[i + 1]);
        const __m512 l1 = _mm512_unpacklo_ps(a[i + 2], a[i + 3]), h1 = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
        t[i] = _mm512_shuffle_ps(l0, l1, 0x44), t[i + 1] = _mm512_shuffle_ps(l0, l1, 0xee);
        t[i + 2] = _mm512_shuffle_ps(h0, h1, 0x44), t[i + 3] = _mm512_shuffle_ps(h0, h1, 0xee);
    }
    FA_UNROLL
    for (int i = 0; i < 4; i++) {
        const __m512 l0 = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x44), h0 = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xee);
        const __m512 l1 = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x44), h1 = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xee);
        a[i] = _mm512_shuffle_f32x4(l0, l1, 0x88), a[i + 4] = _mm512_shuffle_f32x4(l0, l1, 0xdd);
        a[i + 8] = _mm512_shuffle_f32x4(h0, h1, 0x88), a[i + 12] = _mm512_shuffle_f32x4(h0, h1, 0xdd);
    }
}
FA_INLINE vreal v_widen_bf16(__m256i a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }
FA_INLINE __m256i v_narrow_bf16(vreal a)
{
    /* Not VCVTNEPS2BF16, which makes 0 of subnormals. */
    const __m512i x = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i top = _mm512_mask_or_epi32(rounded, v_is_nan(a), x, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(top, 16));
}
FA_INLINE __m256i v_narrow_f16(vreal a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FA_INLINE vreal v_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
typedef __m512i vint;
FA_INLINE vreal v_load_bytes(const int8_t *p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
FA_INLINE uint64_t v_first_bytes(fa_index n) { return n >= 4 * VL ? ~UINT64_C(0) : n <= 0 ? 0 : (UINT64_C(1) << n) - 1; }
FA_INLINE vreal v_load_bytes_of(const int8_t *p, uint64_t which)
{
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi8(which, p));
}
FA_INLINE vreal v_load_bytes_n(const int8_t *p, fa_index n) { return v_load_bytes_of(p, v_first_bytes(n)); }
FA_INLINE vreal v_load_i8_n(const int8_t *p, fa_index n)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(v_first(n), p)));
}
FA_INLINE vint v_unsigned_bytes(vreal a) { return _mm512_xor_si512(_mm512_castps_si512(a), _mm512_set1_epi8(-128)); }
FA_INLINE vint v_broadcast_int(const int32_t *p) { return _mm512_set1_epi32(*p); }
FA_INLINE vint v_dot_bytes(vint u, vint s, vint c)
{
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(c, u, s);
#else
    /* Even and odd bytes as 16-bit numbers: VPMADDUBSW would saturate. */
    const __m512i low = _mm512_set1_epi16(0xff);
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(u, low), _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
    return _mm512_add_epi32(c, _mm512_add_epi32(even, odd));
#endif
}
FA_INLINE vint v_load_int(const void *p) { return _mm512_loadu_si512(p); }
FA_INLINE vint v_zero_int(void) { return _mm512_setzero_si512(); }
#if FA_BYTE_DOTS
typedef __m512i vbytes;
FA_INLINE vbytes v_broadcast_bytes(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_xor_si512(_mm512_set1_epi32(four), _mm512_set1_epi8(-128));
}
FA_INLINE vint v_dot_signed(vbytes x, vint s, vint c) { return _mm512_dpbusd_epi32(c, x, s); }
#else
typedef struct {
    __m512i signs, magnitudes;
} vbytes;
FA_INLINE vbytes v_broadcast_bytes(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    const __m512i x = _mm512_set1_epi32(four);
    return (vbytes){_mm512_movm_epi8(_mm512_movepi8_mask(x)), _mm512_abs_epi8(x)};
}
FA_INLINE vint v_dot_signed(vbytes x, vint s, vint c)
{
    /* VPMADDUBSW does not saturate: 2 127 128 < 2^15. */
    const __m512i pairs = _mm512_maddubs_epi16(x.magnitudes, _mm512_xor_si512(s, x.signs));
    return _mm512_add_epi32(c, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif
FA_INLINE void v_store_i8(int8_t *p, vreal a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a))); }
FA_INLINE vreal v_swap_lanes(vreal a, const int distance)
{
    return distance == 1   ? _mm512_permute_ps(a, 0xb1)
           : distance == 2 ? _mm512_permute_ps(a, 0x4e)
           : distance == 4 ? _mm512_shuffle_f32x4(a, a, 0xb1)
                           : _mm512_shuffle_f32x4(a, a, 0x4e);
}
FA_INLINE vreal v_real_of(vint a) { return _mm512_cvtepi32_ps(a); }
#if FA_BYTE_DOTS
FA_INLINE vint v_int_bits(vreal a) { return _mm512_castps_si512(a); }
FA_INLINE void v_store_int(int32_t *p, vint a) { _mm512_storeu_si512(p, a); }
FA_INLINE void v_store_digits(uint8_t *p, fa_index ld, vreal a)
{
    const __m512i x = _mm512_cvtps_epi32(a);
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(x));
    _mm_storeu_si128((__m128i *)(p + ld), _mm512_cvtepi32_epi8(_mm512_srli_epi32(x, 8)));
    _mm_storeu_si128((__m128i *)(p + 2 * ld), _mm512_cvtepi32_epi8(_mm512_srli_epi32(x, 16)));
}
FA_INLINE void v_interleave_bytes(vint w[4], const vreal a[4])
{
    const __m512i x0 = _mm512_castps_si512(a[0]), x1 = _mm512_castps_si512(a[1]);
    const __m512i x2 = _mm512_castps_si512(a[2]), x3 = _mm512_castps_si512(a[3]);
    const __m512i l0 = _mm512_unpacklo_epi8(x0, x1), h0 = _mm512_unpackhi_epi8(x0, x1);
    const __m512i l1 = _mm512_unpacklo_epi8(x2, x3), h1 = _mm512_unpackhi_epi8(x2, x3);
    w[0] = _mm512_unpacklo_epi16(l0, l1), w[1] = _mm512_unpackhi_epi16(l0, l1);
    w[2] = _mm512_unpacklo_epi16(h0, h1), w[3] = _mm512_unpackhi_epi16(h0, h1);
}
FA_INLINE void v_unpermute_words(vreal x[4])
{
    const __m512 l0 = _mm512_shuffle_f32x4(x[0], x[1], 0x44), h0 = _mm512_shuffle_f32x4(x[0], x[1], 0xee);
    const __m512 l1 = _mm512_shuffle_f32x4(x[2], x[3], 0x44), h1 = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
    x[0] = _mm512_shuffle_f32x4(l0, l1, 0x88), x[1] = _mm512_shuffle_f32x4(l0, l1, 0xdd);
    x[2] = _mm512_shuffle_f32x4(h0, h1, 0x88), x[3] = _mm512_shuffle_f32x4(h0, h1, 0xdd);
}
#endif
#if FA_PAIRS || FA_BYTE_DOTS
/* The first four numbers of VL rows, one of each in a vector. */
FA_INLINE void v_load_columns(vreal column[4], const real *row, fa_index ld)
{
    __m512 t[4];
    FA_UNROLL
    for (int i = 0; i < 4; i++) {
        const real *p = row + i * ld;
        t[i] = _mm512_castps128_ps512(_mm_loadu_ps(p));
        t[i] = _mm512_insertf32x4(t[i], _mm_loadu_ps(p + 4 * ld), 1);
        t[i] = _mm512_insertf32x4(t[i], _mm_loadu_ps(p + 8 * ld), 2);
        t[i] = _mm512_insertf32x4(t[i], _mm_loadu_ps(p + 12 * ld), 3);
    }
    const __m512d l0 = _mm512_castps_pd(_mm512_unpacklo_ps(t[0], t[1])), h0 = _mm512_castps_pd(_mm512_unpackhi_ps(t[0], t[1]));
    const __m512d l1 = _mm512_castps_pd(_mm512_unpacklo_ps(t[2], t[3])), h1 = _mm512_castps_pd(_mm512_unpackhi_ps(t[2], t[3]));
    column[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(l0, l1)), column[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(l0, l1));
    column[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(h0, h1)), column[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(h0, h1));
}
#endif
FA_INLINE void v_unpack(vreal pairs, vreal *even, vreal *odd)
{
    const __m512i x = _mm512_castps_si512(pairs);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)));
}
FA_INLINE void v_load_bf16_pairs(const uint16_t *p, vreal *even, vreal *odd)
{
    v_unpack(_mm512_castsi512_ps(_mm512_loadu_si512(p)), even, odd);
}
FA_INLINE vreal v_load_bf16(const uint16_t *p) { return v_widen_bf16(_mm256_loadu_si256((const __m256i *)p)); }
FA_INLINE vreal v_load_bf16_n(const uint16_t *p, fa_index n) { return v_widen_bf16(_mm256_maskz_loadu_epi16(v_first(n), p)); }
FA_INLINE void v_store_bf16(uint16_t *p, vreal a) { _mm256_storeu_si256((__m256i *)p, v_narrow_bf16(a)); }
FA_INLINE void v_store_bf16_n(uint16_t *p, vreal a, fa_index n) { _mm256_mask_storeu_epi16(p, v_first(n), v_narrow_bf16(a)); }
FA_INLINE vreal v_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
FA_INLINE vreal v_load_f16_n(const uint16_t *p, fa_index n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_first(n), p)); }
FA_INLINE void v_store_f16(uint16_t *p, vreal a) { _mm256_storeu_si256((__m256i *)p, v_narrow_f16(a)); }
FA_INLINE void v_store_f16_n(uint16_t *p, vreal a, fa_index n) { _mm256_mask_storeu_epi16(p, v_first(n), v_narrow_f16(a)); }
#if FA_PAIRS
FA_INLINE vreal v_multiply_add(vreal a, vreal b, vreal c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
FA_INLINE vreal v_load_pairs(const uint16_t *p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
FA_INLINE vreal v_load_pairs_n(const uint16_t *p, fa_index n)
{
    const __mmask32 first = (__mmask32)((UINT64_C(1) << (n < 0 ? 0 : n > 2 * VL ? 2 * VL : n)) - 1);
    const __m512i x = _mm512_maskz_loadu_epi16(first, p), magnitude = _mm512_and_si512(x, _mm512_set1_epi16(0x7fff));
    const __mmask32 nan = _mm512_cmpgt_epi16_mask(magnitude, _mm512_set1_epi16(0x7f80));
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(nan, x, _mm512_set1_epi16(0x7fc0)));
}
FA_INLINE vreal v_interleave(vreal low, vreal high)
{
    const __m512i a = _mm512_srli_epi32(_mm512_castps_si512(low), 16), b = _mm512_castps_si512(high);
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaa, a, b));
}
FA_INLINE void v_load_interleaved(const uint16_t *p, const uint16_t *q, vreal *first, vreal *second)
{
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                         35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const __m512i x = _mm512_loadu_si512(p), y = _mm512_loadu_si512(q);
    *first = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, low, y));
    *second = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, high, y));
}
FA_INLINE void v_load_permuted(const uint16_t *p, const uint16_t *q, vreal *first, vreal *second)
{
    const __m512i x = _mm512_loadu_si512(p), y = _mm512_loadu_si512(q);
    *first = _mm512_castsi512_ps(_mm512_unpacklo_epi16(x, y));
    *second = _mm512_castsi512_ps(_mm512_unpackhi_epi16(x, y));
}
FA_INLINE void v_unpermute(vreal *first, vreal *second)
{
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const vreal x = *first, y = *second;
    *first = _mm512_permutex2var_ps(x, low, y);
    *second = _mm512_permutex2var_ps(x, _mm512_add_epi32(low, _mm512_set1_epi32(8)), y);
}
FA_INLINE vreal v_pack(vreal a, vreal b) { return (vreal)_mm512_cvtne2ps_pbh(b, a); }
FA_INLINE vreal v_pack_lanes(vreal a, vreal b)
{
    /* Lanes of a in the lower half, of b in the upper one; then word 2 i from word i, word 2 i + 1 from word 16 + i. */
    const __m512i interleave =
        _mm512_add_epi32(_mm512_set1_epi32(0x00100000),
                         _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001),
                                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(interleave, _mm512_castps_si512(v_pack(a, b))));
}
#endif

#else
#define VL 8
typedef __m512d vreal;
typedef __mmask8 vmask;

FA_INLINE vmask v_first(fa_index n)
{
    n = n < 0 ? 0 : n > VL ? VL : n;
    return (vmask)((1u << n) - 1u);
}
FA_INLINE vreal v_load(const real *p) { return _mm512_loadu_pd(p); }
FA_INLINE void v_store(real *p, vreal a) { _mm512_storeu_pd(p, a); }
FA_INLINE void v_stream(real *p, vreal a) { _mm512_stream_pd(p, a); }
FA_INLINE vreal v_load_n(const real *p, fa_index n) { return _mm512_maskz_loadu_pd(v_first(n), p); }
FA_INLINE void v_store_n(real *p, vreal a, fa_index n) { _mm512_mask_storeu_pd(p, v_first(n), a); }
FA_INLINE vreal v_broadcast(const real *p) { return _mm512_set1_pd(*p); }
FA_INLINE vreal v_set1(real x) { return _mm512_set1_pd(x); }
FA_INLINE vreal v_zero(void) { return _mm512_setzero_pd(); }
FA_INLINE vreal v_add(vreal a, vreal b) { return _mm512_add_pd(a, b); }
FA_INLINE vreal v_sub(vreal a, vreal b) { return _mm512_sub_pd(a, b); }
FA_INLINE vreal v_mul(vreal a, vreal b) { return _mm512_mul_pd(a, b); }
FA_INLINE vreal v_div(vreal a, vreal b) { return _mm512_div_pd(a, b); }
FA_INLINE vreal v_sqrt(vreal a) { return _mm512_sqrt_pd(a); }
FA_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return _mm512_fmadd_pd(a, b, c); }
FA_INLINE vreal v_fnma(vreal a, vreal b, vreal c) { return _mm512_fnmadd_pd(a, b, c); }
FA_INLINE vreal v_product_error(vreal a, vreal b, vreal p) { return _mm512_fmsub_pd(a, b, p); }
FA_INLINE vreal v_max(vreal a, vreal b) { return _mm512_max_pd(a, b); }
FA_INLINE vreal v_min(vreal a, vreal b) { return _mm512_min_pd(a, b); }
FA_INLINE vreal v_abs(vreal a) { return _mm512_andnot_pd(_mm512_set1_pd(-0.0), a); }
FA_INLINE vreal v_negate(vreal a) { return _mm512_xor_pd(_mm512_set1_pd(-0.0), a); }
FA_INLINE vreal v_copysign(vreal a, vreal s)
{
    const __m512d sign = _mm512_set1_pd(-0.0);
    return _mm512_or_pd(_mm512_andnot_pd(sign, a), _mm512_and_pd(sign, s));
}
FA_INLINE vreal v_round(vreal a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FA_INLINE vreal v_power_of_two(__m512i n)
{
    return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_add_epi64(n, _mm512_set1_epi64(1023)), 52));
}
FA_INLINE vreal v_scale(vreal a, vreal n)
{
    const __m512i i = _mm512_cvtpd_epi64(n);
    const __m512i half = _mm512_srai_epi64(i, 1);
    return v_mul(v_mul(a, v_power_of_two(_mm512_sub_epi64(i, half))), v_power_of_two(half));
}
FA_INLINE vreal v_add_exponent(vreal a, vreal t)
{
    return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(a), _mm512_slli_epi64(_mm512_castpd_si512(t), 52)));
}
FA_INLINE vmask v_lt(vreal a, vreal b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
FA_INLINE vmask v_le(vreal a, vreal b) { return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ); }
FA_INLINE vmask v_eq(vreal a, vreal b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
FA_INLINE vmask v_is_nan(vreal a) { return _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q); }
FA_INLINE vreal v_select(vmask m, vreal a, vreal b) { return _mm512_mask_blend_pd(m, b, a); }
FA_INLINE vmask v_mask_bytes(const uint8_t *p)
{
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)p);
    return (vmask)_mm_test_epi8_mask(bytes, bytes);
}
FA_INLINE __m256d v_upper_half(vreal a) { return _mm512_extractf64x4_pd(a, 1); }
FA_INLINE real v_reduce_add(vreal a)
{
    const __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(a), v_upper_half(a));
    const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
FA_INLINE real v_reduce_max(vreal a)
{
    const __m256d h = _mm256_max_pd(_mm512_castpd512_pd256(a), v_upper_half(a));
    const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
}
FA_INLINE vreal v_swap_pairs(vreal a) { return _mm512_permute_pd(a, 0x55); }
FA_INLINE void v_transpose(vreal a[VL])
{
    vreal t[VL];
    /* 2 x 2 blocks inside the 128-bit lanes, then the lanes themselves */
    FA_UNROLL
    for (int i = 0; i < VL; i += 2) t[i] = _mm512_unpacklo_pd(a[i], a[i + 1]), t[i + 1] = _mm512_unpackhi_pd(a[i], a[i + 1]);
    FA_UNROLL
    for (int i = 0; i < 2; i++) {
        const __m512d l0 = _mm512_shuffle_f64x2(t[i], t[i + 2], 0x44), h0 = _mm512_shuffle_f64x2(t[i], t[i + 2], 0xee);
        const __m512d l1 = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0x44), h1 = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0xee);
        a[i] = _mm512_shuffle_f64x2(l0, l1, 0x88), a[i + 2] = _mm512_shuffle_f64x2(l0, l1, 0xdd);
        a[i + 4] = _mm512_shuffle_f64x2(h0, h1, 0x88), a[i + 6] = _mm512_shuffle_f64x2(h0, h1, 0xdd);
    }
}
#endif

FA_INLINE vmask v_and(vmask a, vmask b) { return (vmask)(a & b); }
FA_INLINE vmask v_or(vmask a, vmask b) { return (vmask)(a | b); }
FA_INLINE vmask v_and_not(vmask a, vmask b) { return (vmask)(a & ~b); }
FA_INLINE int v_any(vmask a) { return a != 0; }

#if FA_AMX || FA_BYTE_TILES
#include "amx.h"
#endif

#endif
