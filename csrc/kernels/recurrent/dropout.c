/* Dropout with a counter-based generator: y[j] = x[j] scale where random(j) >= threshold, else 0.

   random(j) is word j % 4 of Philox 4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") at the
   counter (j / 4, time, sequence, lane) with the seed as its key: it depends on nothing else, so whoever computes an element, in
   whatever order, the same ones are dropped. Of sizes beyond 2^32 the low half counts. */
#include "../common.h"

#define BLOCKS 8 /* side by side: the two products of a round wait for those before */
#define WORDS 4
#define ROUNDS 10
#define MULTIPLIER_0 0xD2511F53u
#define MULTIPLIER_1 0xCD9E8D57u
#define WEYL_0 0x9E3779B9u
#define WEYL_1 0xBB67AE85u

/* The words of BLOCKS counters from `block` on. */
static void philox(uint32_t words[WORDS][BLOCKS], fa_index block, uint64_t seed, fa_index time, fa_index sequence, fa_index lane)
{
    uint32_t key_0 = (uint32_t)seed, key_1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < BLOCKS; i++) {
        words[0][i] = (uint32_t)(block + i);
        words[1][i] = (uint32_t)time;
        words[2][i] = (uint32_t)sequence;
        words[3][i] = (uint32_t)lane;
    }
    for (int round = 0; round < ROUNDS; round++, key_0 += WEYL_0, key_1 += WEYL_1)
        for (int i = 0; i < BLOCKS; i++) {
            const uint64_t first = (uint64_t)words[0][i] * MULTIPLIER_0, second = (uint64_t)words[2][i] * MULTIPLIER_1;
            words[0][i] = (uint32_t)(second >> 32) ^ words[1][i] ^ key_0;
            words[1][i] = (uint32_t)second;
            words[2][i] = (uint32_t)(first >> 32) ^ words[3][i] ^ key_1;
            words[3][i] = (uint32_t)first;
        }
}

void KERNEL(dropout_row)(real *y, const real *x, fa_index first, fa_index n, uint64_t seed, uint64_t threshold, real scale,
                         fa_index time, fa_index sequence, fa_index lane)
{
    uint32_t words[WORDS][BLOCKS];
    const fa_index size = WORDS * BLOCKS;
    for (fa_index j = first; j < first + n;) {
        const fa_index begin = j / size * size, end = fa_min(begin + size, first + n);
        philox(words, begin / WORDS, seed, time, sequence, lane);
        for (; j < end; j++) {
            const fa_index at = j - begin;
            y[j] = words[at % WORDS][at / WORDS] >= threshold ? x[j] * scale : 0;
        }
    }
}
