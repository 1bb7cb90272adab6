/* The vector operations: the only place where intrinsics are, and the only operations that kernels use on vectors.

   A kernel file is compiled once per ISA and type of array: float32, float64, and bfloat16 and float16, which are storage only:
   arithmetic is in float. The build defines FA_SIMD, the header of the ISA (portable, avx2, avx512), and the types (types.h). For that
   pair the header of the ISA states what it has, so that no kernel names an ISA:

     VL                lanes of a vreal
     FA_REGISTERS      vector registers
     FA_NV             vectors across a register tile of attention (kernels/gemm/tile.h has the rows)
     FA_HAS_FMA        1 when v_fma rounds once
     FA_PAIRS          1 when packed operands of products hold pairs of bfloat16 (AVX-512 BF16 and FA_STORED_BF16), else 0
     FA_AMX            1 when products of pairs go through the matrix tiles of amx.h (AMX, with FA_PAIRS), else 0
     FA_BYTE_DOTS      1 when v_dot_bytes is one instruction (AVX-512 VNNI), for float without a type of storage, else 0
     FA_BYTE_TILES     1 when products of bytes can go through the matrix tiles as well (AMX), with FA_BYTE_DOTS, else 0

   and it defines these types and operations:

     vreal, vmask      VL reals; VL truth values
     FA_PACKED         elements of k in a packed element, which is as large as a real: 2 with FA_PAIRS, else 1

   memory      v_load(p) v_store(p, a)           any alignment
               v_load_n(p, n) v_store_n(p, a, n) first n lanes, 0 <= n <= VL; touches no byte beyond them; the rest reads as 0
               v_broadcast(p) v_set1(x) v_zero()
               v_stream(p, a) v_end_stream()     past the caches where there is such a store, for p aligned to a vector; before
                                                 another thread reads, the end
   storage     v_load_stored v_store_stored v_load_stored_n v_store_stored_n: the same for arrays of `stored`;
               real_of(x) stored_of(x) for one number. Also by type, for float only: v_load_bf16, v_store_f16_n, ...
               v_load_i8(p): VL signed bytes; v_load_bf16_pairs(p, &even, &odd): 2 VL numbers, lane i from p[2 i], p[2 i + 1].
               v_load_i8_n(p, n): the first n, the rest 0.
               Widening is exact. Narrowing rounds to nearest even, to subnormals and infinity too; NaN stays NaN
   bytes       float only; vint: VL 32-bit integers
               v_load_bytes(p) v_load_bytes_n(p, n)  4 VL bytes, as the bits of VL reals; the rest reads as 0
               v_unsigned_bytes(a)               128 added to each signed byte
               v_dot_bytes(u, s, c)              c + the four products of unsigned bytes of u and signed ones of s, exact
               v_broadcast_int(p) v_real_of(a) v_load_int(p) v_zero_int()
               vbytes                            four signed bytes for v_dot_signed, -127..127: v_broadcast_bytes(p)
               v_dot_signed(x, s, c)             c + the four products of x and signed bytes of s, -127..127, exact, and what callers
                                                 take off once: with FA_BYTE_DOTS + 128 times the sum of s, else the sum of the
                                                 numbers of x below 0
               v_store_i8(p, a)                  VL whole numbers, rounded, as signed bytes
               v_swap_lanes(a, d)                lane i is a[i ^ d], d a power of two below VL
               with FA_BYTE_DOTS only:
               v_store_int(p, a) v_int_bits(a): of reals that hold integers
               v_load_bytes_of(p, which)         v_load_bytes of those that the bits of `which` name; v_first_bytes(n): the first n
               v_store_digits(p, ld, a)          whole numbers in [0, 2^24), rounded: their lowest bytes at p, the next at p + ld, ...
               v_interleave_bytes(w, a)               4 vectors of bytes interleaved to words of 4: those of a column, permuted;
                                                 v_unpermute_words(x) restores the order of the 4 vectors of words
   products    v_multiply_add(a, b, c)           of packed operands: v_fma(a, b, c), or with FA_PAIRS c + a0 b0 + a1 b1
               with FA_PAIRS only, pairs as the bits of VL reals:
               v_load_pairs(p)                   2 VL bfloat16
               v_load_pairs_n(p, n)              the first n of 2 VL bfloat16; NaN becomes the default NaN
               v_load_interleaved(p, q, &first, &second) v_interleave of the first VL, and the next VL, bfloat16 at p, q
               v_load_permuted(p, q, &first, &second) v_load_interleaved with the pairs permuted, half the
                                                 shuffles; v_unpermute(&first, &second) restores the order of their sums
               v_interleave(low, high)           lane by lane, of reals that are bfloat16
               v_pack(a, b)                      a, then b, rounded to nearest even; subnormals become 0
               v_pack_lanes(a, b)                likewise, lane by lane: the pairs a[i], b[i]
               v_unpack(a, &even, &odd)          the first and the second numbers of pairs, exactly
   tiles       t_configure t_product_1 t_product_2 t_product_rows t_product_kept t_keep t_sums_... t_release t_round_like_tiles t_round_as_before t_probe: amx.h
   arithmetic  v_add v_sub v_mul v_div v_sqrt    IEEE, round to nearest even
               v_fma(a, b, c)  = a b + c         one rounding where FA_HAS_FMA, else two
               v_fnma(a, b, c) = c - a b
               v_product_error(a, b, p)          a b - p exactly, for p = v_mul(a, b), barring under- and overflow
               v_max(a, b) = a > b ? a : b       so b where either is NaN; v_min(a, b) = a < b ? a : b
               v_abs v_negate v_copysign(magnitude, sign)
               v_round(a)                        to the nearest integer, ties to even
   exponent    v_scale(a, n)                     a 2^n for integral n in [-250, 250] (f32), [-2040, 2040] (f64): rounds once,
                                                 also when the result is subnormal
               v_add_exponent(a, t)              adds the low bits of t to the exponent field of a. For t = n + V_MAGIC this is
                                                 a 2^n, if a and the result are normal numbers; exactly +0 for a = 1 and
                                                 n = V_EXPONENT_FLOOR. V_MAGIC = 1.5 2^(mantissa bits): adding it rounds a
                                                 number below 2^(mantissa bits - 2) to an integer in the low bits
   comparison  v_lt(a, b) v_le(a, b) v_eq(a, b) v_is_nan(a); false on NaN, but for v_is_nan
               v_select(m, a, b)                 a where m, else b
               v_first(n)                        lanes below n, any n
               v_mask_bytes(p)                   lanes whose byte p[lane] is not 0; reads VL bytes
               v_and v_or v_and_not(m, n) = m and not n;  v_any(m)
   reduction   v_reduce_add v_reduce_max         in a fixed tree: halves, quarters, ...
   transpose   v_transpose(a)                    a[VL], in place
               v_load_transposed(a, p, ld)       a[i] = the elements i of VL rows at p, ld apart
               v_load_columns(column, row, ld)   with FA_PAIRS or FA_BYTE_DOTS: 4 vectors, of VL rows the first 4 numbers
               v_swap_pairs(a)                   a1 a0 a3 a2 ...

   Adding an op: first portable.h, then every other header, then this list. */
#ifndef FA_SIMD_H
#define FA_SIMD_H

#include "../runtime/cpu.h"
#include "../types.h"

#if defined(FA_REAL_F32)
#define V_MAGIC 0x1.8p23f
#define V_EXPONENT_FLOOR (-127.0f)
#else
#define V_MAGIC 0x1.8p52
#define V_EXPONENT_FLOOR (-1023.0)
#endif

#define FA_HEADER_(name) #name
#define FA_HEADER(name) FA_HEADER_(name)
#include FA_HEADER(FA_SIMD.h)

#define FA_PACKED (1 + FA_PAIRS)
/* Whether products of packed operands are not those of another type: the 16-bit ones, packed as reals, take float's. */
#define FA_OWN_PRODUCTS (!FA_CONVERTS || FA_PAIRS)

#if defined(FA_STORED_BF16)
#define FA_STORED_WORD(word, suffix) word##_bf16##suffix
#elif defined(FA_STORED_F16)
#define FA_STORED_WORD(word, suffix) word##_f16##suffix
#else
#define FA_STORED_WORD(word, suffix) word##suffix
#endif
FA_INLINE vreal v_load_stored(const stored *p) { return FA_STORED_WORD(v_load, )(p); }
FA_INLINE vreal v_load_stored_n(const stored *p, fa_index n) { return FA_STORED_WORD(v_load, _n)(p, n); }
FA_INLINE void v_store_stored(stored *p, vreal a) { FA_STORED_WORD(v_store, )(p, a); }
FA_INLINE void v_store_stored_n(stored *p, vreal a, fa_index n) { FA_STORED_WORD(v_store, _n)(p, a, n); }
FA_INLINE real real_of(stored x)
{
    real y;
    v_store_n(&y, v_load_stored_n(&x, 1), 1);
    return y;
}
FA_INLINE stored stored_of(real x)
{
    stored y;
    v_store_stored_n(&y, v_set1(x), 1);
    return y;
}

#if !FA_TRANSPOSED_LOADS
FA_INLINE void v_load_transposed(vreal a[VL], const real *p, fa_index ld)
{
    FA_UNROLL
    for (int i = 0; i < VL; i++) a[i] = v_load(p + i * ld);
    v_transpose(a);
}
#endif

#if !FA_PAIRS
FA_INLINE vreal v_multiply_add(vreal a, vreal b, vreal c) { return v_fma(a, b, c); }
#endif

#endif
