/* Block sizes of the products; gemm.c applies them, table.c tells ops of them. */
#ifndef FA_GEMM_H
#define FA_GEMM_H

/* k per pass over a panel of nv vectors: 16 KB of panel, half of the smallest first-level cache (32 KB); 32 KB for AVX-512, whose
   tiles read a panel from the second level at half the rate that it sustains. */
#if FA_AMX
#define PANEL_BYTES 131072
#elif FA_REGISTERS == 32
#define PANEL_BYTES 32768
#else
#define PANEL_BYTES 16384
#endif
#define K_BLOCK(nv) (PANEL_BYTES / ((nv) * VL * (int)sizeof(real)) / 16 * 16)

/* Sequences in a recurrent step from which on w_ih takes longer to multiply than to read. */
#define STEP_ROWS (FA_AMX ? 192 : 24)

/* Most rows that are multiplied with weights that are not packed. Matrix tiles, whose sums are their own, have no such products. */
#define MOST_FEW_ROWS (FA_AMX ? 0 : 4)

/* Panels of nv vectors that a single row is multiplied with side by side, and the most there are. */
#define ROW_SIDES_OF(nv) ((nv) == 2 ? 4 : (nv) == 3 ? 2 : 1)
#define ROW_SIDES 4

#endif
