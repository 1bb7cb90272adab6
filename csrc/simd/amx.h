/* Matrix tiles (AMX): products of pairs of bfloat16, 16 x 16 sums of 32 terms in one instruction, or of four bytes, whose sums of 64
   terms are 32-bit integers, in the same places. Included by avx512.h where FA_AMX or FA_BYTE_TILES is 1.

   The eight tiles have fixed parts: four of sums, two of rows of a, two of vectors of b. A block is 2 x 2 of sums (more than T_ROWS rows of
   a by two vectors of b) or 1 x 4: sums that do not wait for each other hide the latency of the instruction. */
#ifndef FA_SIMD_AMX_H
#define FA_SIMD_AMX_H

#define T_ROWS 16 /* of a, in a tile */
#define T_K 16    /* pairs of k in a step */

/* What p points to, and all else in memory, is as the program has it: of GCC's intrinsics only the store says that it touches memory,
   and the one that configures claims to read 8 bytes of 64. */
#define T_MEMORY(p) __asm__ volatile("" : : "r"(p) : "memory")

/* What packed elements are: pairs; or bytes, those of the right operand signed, those of the left one signed or not. */
typedef enum { T_PAIRS, T_SIGNED, T_UNSIGNED } t_type;
#define T_DOT(type, c, a, b)         \
    do {                             \
        if ((type) == T_PAIRS)       \
            _tile_dpbf16ps(c, a, b); \
        else if ((type) == T_SIGNED) \
            _tile_dpbssd(c, a, b);   \
        else                         \
            _tile_dpbusd(c, a, b);   \
    } while (0)

/* For blocks of `rows` rows, 1 to 2 T_ROWS. For this thread alone, until the loop ends of which the product is a part, or t_release. */
FA_INLINE void t_configure(fa_index rows)
{
    if (fa_rows_of_tiles == rows) return;
    fa_rows_of_tiles = rows;
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } FA_ALIGN(64) tiles = {.palette = 1};
    const uint8_t first = (uint8_t)fa_min(rows, T_ROWS), second = (uint8_t)(rows > T_ROWS ? rows - T_ROWS : first);
    const uint8_t of_tile[8] = {first, first, second, second, first, second, T_K, T_K};
    for (int i = 0; i < 8; i++) {
        tiles.row_bytes[i] = 64;
        tiles.rows[i] = of_tile[i];
    }
    T_MEMORY(&tiles);
    _tile_loadconfig(&tiles);
}
FA_INLINE void t_release(void) { fa_release_tiles(); }

/* c = a b over k_size pairs of k, a multiple of T_K, in slices: pair k of row r of a at a[k / slice_k * slice + r * lda + k % slice_k],
   vector v of b at b[k * ldb + v * VL]; slice_k is a multiple of T_K. Each sum is c + (even + odd) for T_K pairs after another, even
   and odd the chains of multiply-adds over the first and the second of the pairs; subnormal operands and results are 0. */
FA_INLINE void t_product_2(real *c, fa_index ldc, const int two, const real *a, fa_index lda, fa_index slice, fa_index slice_k,
                           const real *b, fa_index ldb, fa_index k_size)
{
    T_MEMORY(a);
    _tile_zero(0);
    _tile_zero(2);
    if (two) {
        _tile_zero(1);
        _tile_zero(3);
    }
    for (; k_size > 0; k_size -= slice_k, a += slice) {
        for (const real *ak = a, *end = a + fa_min(k_size, slice_k); ak != end; ak += T_K, b += T_K * ldb) {
            _tile_loadd(6, b, ldb * (fa_index)sizeof(real));
            _tile_loadd(4, ak, lda * (fa_index)sizeof(real));
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, ak + T_ROWS * lda, lda * (fa_index)sizeof(real));
            _tile_dpbf16ps(2, 5, 6);
            if (two) {
                _tile_loadd(7, b + VL, ldb * (fa_index)sizeof(real));
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, c, ldc * (fa_index)sizeof(real));
    _tile_stored(2, c + T_ROWS * ldc, ldc * (fa_index)sizeof(real));
    if (two) {
        _tile_stored(1, c + VL, ldc * (fa_index)sizeof(real));
        _tile_stored(3, c + T_ROWS * ldc + VL, ldc * (fa_index)sizeof(real));
    }
}

/* Sums that stay in tiles over many steps of k: at most T_ROWS rows by nv vectors of b, 1 to 4. */
FA_INLINE void t_sums_zero(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
FA_INLINE void t_sums_add(const t_type type, const int nv, const real *a, fa_index lda, const real *b, fa_index ldb)
{
    T_MEMORY(b);
    _tile_loadd(4, a, lda * (fa_index)sizeof(real));
    _tile_loadd(6, b, ldb * (fa_index)sizeof(real));
    T_DOT(type, 0, 4, 6);
    if (nv > 1) {
        _tile_loadd(7, b + VL, ldb * (fa_index)sizeof(real));
        T_DOT(type, 1, 4, 7);
    }
    if (nv > 2) {
        _tile_loadd(6, b + 2 * VL, ldb * (fa_index)sizeof(real));
        T_DOT(type, 2, 4, 6);
    }
    if (nv > 3) {
        _tile_loadd(7, b + 3 * VL, ldb * (fa_index)sizeof(real));
        T_DOT(type, 3, 4, 7);
    }
}
FA_INLINE void t_sums_store(const int nv, real *c, fa_index ldc)
{
    _tile_stored(0, c, ldc * (fa_index)sizeof(real));
    if (nv > 1) _tile_stored(1, c + VL, ldc * (fa_index)sizeof(real));
    if (nv > 2) _tile_stored(2, c + 2 * VL, ldc * (fa_index)sizeof(real));
    if (nv > 3) _tile_stored(3, c + 3 * VL, ldc * (fa_index)sizeof(real));
}

/* t_product_2 with at most T_ROWS rows and nv vectors, 1 to 4. */
FA_INLINE void t_product_1(real *c, fa_index ldc, const int nv, const real *a, fa_index lda, fa_index slice, fa_index slice_k,
                           const real *b, fa_index ldb, fa_index k_size)
{
    t_sums_zero();
    for (; k_size > 0; k_size -= slice_k, a += slice)
        for (const real *ak = a, *end = a + fa_min(k_size, slice_k); ak != end; ak += T_K, b += T_K * ldb)
            t_sums_add(T_PAIRS, nv, ak, lda, b, ldb);
    t_sums_store(nv, c, ldc);
}

/* c = a b, or with `more` c += a b, for `rows` rows, T_ROWS or twice as many, and two vectors of b; sums of pairs as in t_product_2,
   which begin with c. */
FA_INLINE void t_product_onto(real *c, fa_index ldc, int more, fa_index rows, const real *a, fa_index lda, const real *b,
                              fa_index ldb, fa_index k_size)
{
    const int two = rows > T_ROWS;
    T_MEMORY(a);
    if (!more) {
        t_sums_zero();
    } else {
        _tile_loadd(0, c, ldc * (fa_index)sizeof(real));
        _tile_loadd(1, c + VL, ldc * (fa_index)sizeof(real));
        if (two) {
            _tile_loadd(2, c + T_ROWS * ldc, ldc * (fa_index)sizeof(real));
            _tile_loadd(3, c + T_ROWS * ldc + VL, ldc * (fa_index)sizeof(real));
        }
    }
    for (; k_size > 0; k_size -= T_K, a += T_K, b += T_K * ldb) {
        _tile_loadd(6, b, ldb * (fa_index)sizeof(real));
        _tile_loadd(4, a, lda * (fa_index)sizeof(real));
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + VL, ldb * (fa_index)sizeof(real));
        _tile_dpbf16ps(1, 4, 7);
        if (two) {
            _tile_loadd(5, a + T_ROWS * lda, lda * (fa_index)sizeof(real));
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, ldc * (fa_index)sizeof(real));
    _tile_stored(1, c + VL, ldc * (fa_index)sizeof(real));
    if (two) {
        _tile_stored(2, c + T_ROWS * ldc, ldc * (fa_index)sizeof(real));
        _tile_stored(3, c + T_ROWS * ldc + VL, ldc * (fa_index)sizeof(real));
    }
}

/* c[i][j] = a b, or with `more` c + a b, for T_ROWS rows of a, which lie row_bytes apart in memory, and VL columns of b, [k_size][VL];
   sums of pairs as in t_product_2. */
FA_INLINE void t_product_rows(const t_type type, real *c, const int more, const void *a, fa_index row_bytes, const real *b,
                              fa_index k_size)
{
    const char *row = a;
    T_MEMORY(b);
    if (more)
        _tile_loadd(0, c, VL * (fa_index)sizeof(real));
    else
        _tile_zero(0);
    for (fa_index k = 0; k < k_size; k += T_K, row += T_K * sizeof(real)) {
        _tile_loadd(6, b + k * VL, VL * (fa_index)sizeof(real));
        _tile_loadd(4, row, row_bytes);
        T_DOT(type, 0, 4, 6);
    }
    _tile_stored(0, c, VL * (fa_index)sizeof(real));
}

/* The right operand of up to T_KEPT steps stays in tiles while T_ROWS rows after another are multiplied: c = a b in one tile. */
#define T_KEPT 4
FA_INLINE void t_keep(const real *b, fa_index steps)
{
    T_MEMORY(b);
    _tile_loadd(4, b, VL * (fa_index)sizeof(real));
    if (steps > 1) _tile_loadd(5, b + T_K * VL, VL * (fa_index)sizeof(real));
    if (steps > 2) _tile_loadd(6, b + 2 * T_K * VL, VL * (fa_index)sizeof(real));
    if (steps > 3) _tile_loadd(7, b + 3 * T_K * VL, VL * (fa_index)sizeof(real));
}
FA_INLINE void t_product_kept(const t_type type, real *c, const void *a, fa_index row_bytes, fa_index steps)
{
    const char *row = a;
    T_MEMORY(a);
    _tile_zero(0);
    _tile_loadd(2, row, row_bytes);
    T_DOT(type, 0, 2, 4);
    if (steps > 1) {
        _tile_loadd(3, row + T_K * sizeof(real), row_bytes);
        T_DOT(type, 0, 3, 5);
    }
    if (steps > 2) {
        _tile_loadd(2, row + 2 * T_K * sizeof(real), row_bytes);
        T_DOT(type, 0, 2, 6);
    }
    if (steps > 3) {
        _tile_loadd(3, row + 3 * T_K * sizeof(real), row_bytes);
        T_DOT(type, 0, 3, 7);
    }
    _tile_stored(0, c, VL * (fa_index)sizeof(real));
}

/* Vectors round as tiles do, to nearest even and with 0 for subnormal operands and results, until they get back what this returns.
   Functions that compute in between must not be inlined: a compiler knows of no connection between arithmetic and its mode. */
FA_INLINE unsigned t_round_like_tiles(void)
{
    const unsigned before = _mm_getcsr();
    _mm_setcsr(_MM_MASK_MASK | _MM_FLUSH_ZERO_ON | 0x0040 /* operands too */);
    return before;
}
FA_INLINE void t_round_as_before(unsigned before) { _mm_setcsr(before); }

/* The pairs of four sums that depend on nothing but themselves, `rounds` times: what probes time. */
FA_INLINE void t_probe(fa_index rounds)
{
    for (fa_index i = 0; i < rounds; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

#endif
