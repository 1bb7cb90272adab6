/* Products of bytes: what kernels and ops know of their operands. gemm_bytes.c has the equations.

   K is split into groups of BYTE_GROUP elements; the last one has 64 or 128, zeros beyond K. */
#ifndef FA_BYTES_H
#define FA_BYTES_H

#include "../../base.h"

#define BYTE_GROUP 128
#define BYTE_HALF_GROUP (BYTE_GROUP / 2)

FA_INLINE fa_index byte_groups(fa_index K) { return fa_ceil_div(K, BYTE_GROUP); }
FA_INLINE fa_index byte_padded(fa_index K) { return fa_round_up(K, BYTE_HALF_GROUP); }

#define BYTE_VECTORS 4 /* in a panel: what v_dot_signed makes of two rows pays for itself with four */

/* A panel of BYTE_VECTORS vectors, `width` columns: bytes[k / 4][width][4]; of each column its exponent, in each group its scale, and -128 times the sum
   of its bytes there, as 32-bit integers. */
FA_INLINE fa_index byte_panel_size(fa_index width, fa_index K) { return width * (byte_padded(K) + 4 + 8 * byte_groups(K)); }

#endif
