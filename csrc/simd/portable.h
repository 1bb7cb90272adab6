/* Any CPU: 128-bit vectors of the compiler (SSE2 on x86-64, NEON on AArch64), or what it makes of them elsewhere. The operations are
   explained in simd.h. This is also the plainest definition of each of them. */
#ifndef FA_SIMD_PORTABLE_H
#define FA_SIMD_PORTABLE_H

#include <string.h>

#define FA_HAS_FMA 0
#define FA_REGISTERS 16 /* of SSE2; NEON has 32 */
#define FA_NV 2
#define FA_PAIRS 0
#define FA_AMX 0
#define FA_BYTE_DOTS 0
#define FA_TRANSPOSED_LOADS 0
#define FA_BYTE_TILES 0

#if defined(FA_REAL_F32)
#define VL 4
#define REAL_SPLITTER 0x1.001p12f /* 2^12 + 1: halves of 12 bits */
#else
#define VL 2
#define REAL_SPLITTER 0x1.0000002p27 /* 2^27 + 1: halves of 26 bits */
#endif

typedef real vreal __attribute__((vector_size(16)));
typedef rint_t vmask __attribute__((vector_size(16)));
#if defined(FA_REAL_F32)
typedef uint32_t vwhole __attribute__((vector_size(16))); /* for sums of bits, which may wrap around */
#else
typedef uint64_t vwhole __attribute__((vector_size(16)));
#endif

FA_INLINE vmask v_bits(vreal a)
{
    vmask m;
    memcpy(&m, &a, sizeof m);
    return m;
}
FA_INLINE vreal v_from_bits(vmask m)
{
    vreal a;
    memcpy(&a, &m, sizeof a);
    return a;
}
FA_INLINE vreal v_set1(real x)
{
    vreal a;
    for (int i = 0; i < VL; i++) a[i] = x;
    return a;
}
FA_INLINE vmask v_set1_bits(rint_t x)
{
    vmask a;
    for (int i = 0; i < VL; i++) a[i] = x;
    return a;
}
FA_INLINE vreal v_zero(void) { return v_set1(0); }
FA_INLINE vmask v_sign_bit(void) { return v_bits(v_set1(-REAL(0.0))); }
FA_INLINE vreal v_load(const real *p)
{
    vreal a;
    memcpy(&a, p, sizeof a);
    return a;
}
FA_INLINE void v_store(real *p, vreal a) { memcpy(p, &a, sizeof a); }
FA_INLINE void v_stream(real *p, vreal a) { v_store(p, a); }
FA_INLINE void v_end_stream(void) {}
FA_INLINE vreal v_load_n(const real *p, fa_index n)
{
    vreal a = v_zero();
    for (int i = 0; i < VL; i++)
        if (i < n) a[i] = p[i];
    return a;
}
FA_INLINE void v_store_n(real *p, vreal a, fa_index n)
{
    for (int i = 0; i < VL; i++)
        if (i < n) p[i] = a[i];
}
FA_INLINE vreal v_broadcast(const real *p) { return v_set1(*p); }
FA_INLINE vreal v_add(vreal a, vreal b) { return a + b; }
FA_INLINE vreal v_sub(vreal a, vreal b) { return a - b; }
FA_INLINE vreal v_mul(vreal a, vreal b) { return a * b; }
FA_INLINE vreal v_div(vreal a, vreal b) { return a / b; }
FA_INLINE vreal v_sqrt(vreal a)
{
    for (int i = 0; i < VL; i++) a[i] = sizeof(real) == 4 ? (real)__builtin_sqrtf((float)a[i]) : (real)__builtin_sqrt(a[i]);
    return a;
}
FA_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return a * b + c; }
FA_INLINE vreal v_fnma(vreal a, vreal b, vreal c) { return c - a * b; }
FA_INLINE vreal v_abs(vreal a) { return v_from_bits(v_bits(a) & ~v_sign_bit()); }
FA_INLINE vreal v_negate(vreal a) { return v_from_bits(v_bits(a) ^ v_sign_bit()); }
FA_INLINE vreal v_product_error(vreal a, vreal b, vreal p)
{
    /* Dekker: halves short enough for exact products. */
    const vreal splitter = v_set1(REAL_SPLITTER);
    const vreal ta = a * splitter, tb = b * splitter;
    const vreal ah = ta - (ta - a), bh = tb - (tb - b);
    const vreal al = a - ah, bl = b - bh;
    return ((ah * bh - p) + ah * bl + al * bh) + al * bl;
}
FA_INLINE vmask v_lt(vreal a, vreal b) { return a < b; }
FA_INLINE vmask v_le(vreal a, vreal b) { return a <= b; }
FA_INLINE vmask v_eq(vreal a, vreal b) { return a == b; }
FA_INLINE vmask v_is_nan(vreal a) { return a != a; }
FA_INLINE vreal v_select(vmask m, vreal a, vreal b) { return v_from_bits((v_bits(a) & m) | (v_bits(b) & ~m)); }
FA_INLINE vreal v_max(vreal a, vreal b) { return v_select(a > b, a, b); }
FA_INLINE vreal v_min(vreal a, vreal b) { return v_select(a < b, a, b); }
FA_INLINE vreal v_copysign(vreal a, vreal s) { return v_from_bits((v_bits(a) & ~v_sign_bit()) | (v_bits(s) & v_sign_bit())); }
FA_INLINE vreal v_round(vreal a)
{
    /* Adding 2^(mantissa bits) leaves no place for a fraction; larger numbers are integers already. */
    const vreal big = v_copysign(v_set1(V_MAGIC * (real)2 / 3), a);
    return v_select(v_lt(v_abs(a), v_abs(big)), v_copysign((a + big) - big, a), a);
}
FA_INLINE vreal v_power_of_two(vmask n) { return v_from_bits((vmask)(((vwhole)n + REAL_EXPONENT_BIAS) << REAL_MANTISSA_BITS)); }
FA_INLINE vreal v_scale(vreal a, vreal n)
{
    /* Two factors, each a normal power of two: only the second product can leave the normal range downwards. */
    const vmask i = v_bits(n + v_set1(V_MAGIC)) - v_bits(v_set1(V_MAGIC));
    const vmask half = i >> 1;
    return a * v_power_of_two(i - half) * v_power_of_two(half);
}
FA_INLINE vreal v_add_exponent(vreal a, vreal t)
{
    return v_from_bits((vmask)((vwhole)v_bits(a) + ((vwhole)v_bits(t) << REAL_MANTISSA_BITS)));
}
FA_INLINE vmask v_first(fa_index n)
{
    vmask m;
    for (int i = 0; i < VL; i++) m[i] = -(rint_t)(i < n);
    return m;
}
FA_INLINE vmask v_mask_bytes(const uint8_t *p)
{
    vmask m;
    for (int i = 0; i < VL; i++) m[i] = -(rint_t)(p[i] != 0);
    return m;
}
FA_INLINE vmask v_and(vmask a, vmask b) { return a & b; }
FA_INLINE vmask v_or(vmask a, vmask b) { return a | b; }
FA_INLINE vmask v_and_not(vmask a, vmask b) { return a & ~b; }
FA_INLINE int v_any(vmask a)
{
    rint_t any = 0;
    for (int i = 0; i < VL; i++) any |= a[i];
    return any != 0;
}
#if defined(FA_REAL_F32)
FA_INLINE real v_reduce_add(vreal a) { return (a[0] + a[2]) + (a[1] + a[3]); }
#else
FA_INLINE real v_reduce_add(vreal a) { return a[0] + a[1]; }
#endif
FA_INLINE real v_reduce_max(vreal a)
{
    real m = a[0];
    for (int i = 1; i < VL; i++) m = m > a[i] ? m : a[i];
    return m;
}
FA_INLINE vreal v_swap_pairs(vreal a)
{
    vreal b;
    for (int i = 0; i < VL; i++) b[i] = a[i ^ 1];
    return b;
}
FA_INLINE void v_transpose(vreal a[VL])
{
    for (int i = 0; i < VL; i++)
        for (int j = i + 1; j < VL; j++) {
            const real t = a[i][j];
            a[i][j] = a[j][i];
            a[j][i] = t;
        }
}

#if defined(FA_REAL_F32)
typedef uint32_t v_uint __attribute__((vector_size(16)));

FA_INLINE v_uint v_unsigned(vreal a) { return (v_uint)v_bits(a); }
FA_INLINE vreal v_from_unsigned(v_uint a) { return v_from_bits((vmask)a); }
FA_INLINE v_uint v_choose(vmask m, v_uint a, v_uint b) { return (a & (v_uint)m) | (b & ~(v_uint)m); }
FA_INLINE v_uint v_load_16(const uint16_t *p, fa_index n)
{
    v_uint a = {0};
    for (int i = 0; i < VL; i++)
        if (i < n) a[i] = p[i];
    return a;
}
FA_INLINE void v_store_16(uint16_t *p, v_uint a, fa_index n)
{
    for (int i = 0; i < VL; i++)
        if (i < n) p[i] = (uint16_t)a[i];
}
FA_INLINE v_uint v_narrow_bf16(vreal a)
{
    const v_uint x = v_unsigned(a), rounded = x + 0x7fff + ((x >> 16) & 1);
    return v_choose(v_is_nan(a), x | 0x400000, rounded) >> 16;
}
FA_INLINE vreal v_widen_f16(v_uint h)
{
    /* The exponent is rebased by 112; 2^-14 takes off the hidden bit that a subnormal number has not. */
    const vreal smallest = v_set1(0x1p-14f);
    const v_uint exponent = h & 0x7c00, x = ((h & 0x7fff) << 13) + (112u << 23);
    const v_uint special = (x + (112u << 23)) | ((v_uint)((h & 0x7fff) > 0x7c00) & 0x400000);
    const v_uint subnormal = v_unsigned(v_from_unsigned(x + (1u << 23)) - smallest);
    const v_uint finite = v_choose((vmask)(exponent == 0), subnormal, x);
    const v_uint magnitude = v_choose((vmask)(exponent == 0x7c00), special, finite);
    return v_from_unsigned(magnitude | (h & 0x8000) << 16);
}
FA_INLINE v_uint v_narrow_f16(vreal a)
{
    const v_uint bits = v_unsigned(a), x = bits & 0x7fffffff;
    /* 2^-1 has the last place of the subnormal numbers: the addition rounds. */
    const v_uint half = v_unsigned(v_set1(0.5f));
    const v_uint subnormal = v_unsigned(v_from_unsigned(x) + v_set1(0.5f)) - half;
    const v_uint normal = (x - (112u << 23) + 0xfff + ((x >> 13) & 1)) >> 13;
    const v_uint special = 0x7c00 | ((v_uint)(x > 0x7f800000) & (0x200 | ((x >> 13) & 0x3ff)));
    const v_uint magnitude = v_choose((vmask)(x >= 0x477ff000), special, v_choose((vmask)(x < (113u << 23)), subnormal, normal));
    return magnitude | ((bits >> 16) & 0x8000);
}
FA_INLINE void v_load_bf16_pairs(const uint16_t *p, vreal *even, vreal *odd)
{
    v_uint low = {0}, high = {0};
    for (int i = 0; i < VL; i++) {
        low[i] = p[2 * i];
        high[i] = p[2 * i + 1];
    }
    *even = v_from_unsigned(low << 16);
    *odd = v_from_unsigned(high << 16);
}
FA_INLINE vreal v_load_bf16_n(const uint16_t *p, fa_index n) { return v_from_unsigned(v_load_16(p, n) << 16); }
FA_INLINE vreal v_load_i8(const int8_t *p)
{
    vreal a;
    for (int i = 0; i < VL; i++) a[i] = (real)p[i];
    return a;
}
typedef int32_t vint __attribute__((vector_size(16)));
FA_INLINE vreal v_load_bytes_n(const int8_t *p, fa_index n)
{
    vreal a = v_zero();
    memcpy(&a, p, n <= 0 ? 0 : n >= 4 * VL ? sizeof a : (size_t)n);
    return a;
}
FA_INLINE vreal v_load_bytes(const int8_t *p) { return v_load_bytes_n(p, 4 * VL); }
FA_INLINE vreal v_load_i8_n(const int8_t *p, fa_index n)
{
    vreal a = v_zero();
    for (int i = 0; i < VL; i++)
        if (i < n) a[i] = (real)p[i];
    return a;
}
FA_INLINE vint v_unsigned_bytes(vreal a) { return v_bits(a) ^ v_set1_bits((int32_t)0x80808080); }
FA_INLINE vint v_broadcast_int(const int32_t *p) { return v_set1_bits(*p); }
FA_INLINE vint v_dot_bytes(vint u, vint s, vint c)
{
    for (int i = 0; i < 4; i++) c += ((u >> 8 * i) & 0xff) * ((vint)((v_uint)s << (24 - 8 * i)) >> 24);
    return c;
}
FA_INLINE vint v_load_int(const void *p)
{
    vint a;
    memcpy(&a, p, sizeof a);
    return a;
}
FA_INLINE vint v_zero_int(void) { return v_set1_bits(0); }
typedef struct {
    vreal of[4];
    vint below; /* the sum of those below 0 */
} vbytes;
FA_INLINE vreal v_byte(vint a, const int i) { return __builtin_convertvector((vint)((v_uint)a << (24 - 8 * i)) >> 24, vreal); }
FA_INLINE vbytes v_broadcast_bytes(const int8_t *p)
{
    vbytes x = {.below = v_set1_bits(0)};
    for (int i = 0; i < 4; i++) {
        x.of[i] = v_set1((real)p[i]);
        x.below += v_set1_bits(p[i] < 0 ? p[i] : 0);
    }
    return x;
}
FA_INLINE vint v_dot_signed(vbytes x, vint s, vint c)
{
    /* Exact in float, which SSE2 multiplies, as it does no 32-bit integers. */
    vreal sum = x.of[0] * v_byte(s, 0);
    for (int i = 1; i < 4; i++) sum += x.of[i] * v_byte(s, i);
    return c + x.below + __builtin_convertvector(sum, vint);
}
FA_INLINE void v_store_i8(int8_t *p, vreal a)
{
    a = v_round(a);
    for (int i = 0; i < VL; i++) p[i] = (int8_t)a[i];
}
FA_INLINE vreal v_swap_lanes(vreal a, const int distance)
{
    vreal b;
    for (int i = 0; i < VL; i++) b[i] = a[i ^ distance];
    return b;
}
FA_INLINE vreal v_real_of(vint a)
{
    vreal y;
    for (int i = 0; i < VL; i++) y[i] = (real)a[i];
    return y;
}
FA_INLINE vreal v_load_bf16(const uint16_t *p) { return v_load_bf16_n(p, VL); }
FA_INLINE void v_store_bf16_n(uint16_t *p, vreal a, fa_index n) { v_store_16(p, v_narrow_bf16(a), n); }
FA_INLINE void v_store_bf16(uint16_t *p, vreal a) { v_store_bf16_n(p, a, VL); }
FA_INLINE vreal v_load_f16_n(const uint16_t *p, fa_index n) { return v_widen_f16(v_load_16(p, n)); }
FA_INLINE vreal v_load_f16(const uint16_t *p) { return v_load_f16_n(p, VL); }
FA_INLINE void v_store_f16_n(uint16_t *p, vreal a, fa_index n) { v_store_16(p, v_narrow_f16(a), n); }
FA_INLINE void v_store_f16(uint16_t *p, vreal a) { v_store_f16_n(p, a, VL); }
#endif

#endif
