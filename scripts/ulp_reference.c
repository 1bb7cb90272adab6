/* Reference values for ulp_sweep.py, which compiles this file once per type:

     -DREAL=float  -DWIDE=double        -DMANTISSA=24
     -DREAL=double -DWIDE="long double" -DMANTISSA=53

   An error in units in the last place (ULP) is |y - f(x)| over the distance of neighbouring REALs at f(x), f computed in WIDE; a
   result beyond the largest REAL counts as the next power of two. Arguments of exp and erfc that carry a rounding error of their
   own would turn it into a hundredfold relative error of the result, so they are kept as sums of two WIDEs. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <tgmath.h>

enum { EXP, TANH, SIGMOID, SILU, GELU, GELU_TANH, RELU };

#if MANTISSA == 24
#define LOWEST_EXPONENT (-126)
#define BEYOND 128
#else
#define LOWEST_EXPONENT (-1022)
#define BEYOND 1024
#endif
#define TWO_OVER_SQRT_PI ((WIDE)0x1.20dd750429b6d11ap+0L)

/* A constant as WIDE, and what is left of it. */
#define HIGH(name) ((WIDE)name##_1)
#define LOW(name) ((WIDE)(name##_1 - (long double)HIGH(name) + name##_2))
#define SQRT_HALF_1 0x1.6a09e667f3bcc908p-1L /* 1 / sqrt(2) */
#define SQRT_HALF_2 0x1.65f626cdd52afa7cp-66L
#define LINEAR_1 0x1.9884533d436508d0p+0L /* 2 sqrt(2 / pi) */
#define LINEAR_2 0x1.f9678a017571c5fep-65L
#define CUBIC_1 0x1.2444f2a4d8b4af4ap-4L /* 0.044715 times that */
#define CUBIC_2 -0x1.087453a38e0f2cd2p-70L

/* a b - p for p = a b rounded. x87 has no fused multiply-add and the library's is slow, so the factors are split in halves there. */
static WIDE product_error(WIDE a, WIDE b, WIDE p)
{
#if MANTISSA == 53 && LDBL_MANT_DIG == 64
    const WIDE splitter = 0x1p32L + 1, scaled_a = a * splitter, scaled_b = b * splitter;
    const WIDE a_high = scaled_a - (scaled_a - a), a_low = a - a_high, b_high = scaled_b - (scaled_b - b), b_low = b - b_high;
    return ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low;
#else
    return fma(a, b, -p);
#endif
}

static WIDE gelu(WIDE x)
{
    const WIDE z = -x * HIGH(SQRT_HALF), z_low = product_error(-x, HIGH(SQRT_HALF), z) - x * LOW(SQRT_HALF);
    return x / 2 * (erfc(z) - z_low * TWO_OVER_SQRT_PI * exp(-z * z));
}

static WIDE gelu_tanh(WIDE x)
{
    if (fabs(x) > 50) return x < 0 ? (WIDE)-0.0 : x;
    const WIDE square = x * x, square_low = product_error(x, x, square);
    const WIDE cubic = HIGH(CUBIC) * square;
    const WIDE cubic_low = product_error(HIGH(CUBIC), square, cubic) + HIGH(CUBIC) * square_low + LOW(CUBIC) * square;
    const WIDE sum = HIGH(LINEAR) + cubic, part = sum - HIGH(LINEAR);
    const WIDE sum_low = (HIGH(LINEAR) - (sum - part)) + (cubic - part) + cubic_low + LOW(LINEAR);
    const WIDE u = x * sum, u_low = product_error(x, sum, u) + x * sum_low;
    return x / (1 + exp(-u) * (1 - u_low));
}

static WIDE reference(int function, REAL argument)
{
    const WIDE x = argument;
    switch (function) {
    case EXP: return exp(x);
    case TANH: return tanh(x);
    case SIGMOID: return 1 / (1 + exp(-x));
    case SILU: return x / (1 + exp(-x));
    case GELU: return gelu(x);
    case GELU_TANH: return gelu_tanh(x);
    default: return x > 0 ? x : 0;
    }
}

static WIDE clip(WIDE a, WIDE limit) { return a > limit ? limit : a < -limit ? -limit : a; }

/* The e of 2^e <= |a| < 2^(e + 1), below LOWEST_EXPONENT for subnormal REALs and 0. */
static int exponent_of(WIDE a)
{
#if MANTISSA == 24
    uint64_t bits;
    memcpy(&bits, &a, sizeof bits);
    return (int)(bits >> 52 & 0x7ff) - 1023;
#else
    return a == 0 ? LOWEST_EXPONENT - MANTISSA : ilogb(a);
#endif
}

typedef struct {
    double worst, worst_subnormal; /* largest error of all; of subnormal results */
    double at;                     /* where the first was found */
    int64_t compared, beyond_half, beyond_one, wrong_nan;
} statistics;

/* Adds the errors of n results of each of `versions` implementations to theirs. Infinite inputs are left to the caller. */
void compare(int function, int64_t n, const REAL *x, int versions, const REAL *const *y, statistics *all)
{
    const WIDE limit = ldexp((WIDE)1, BEYOND);
    WIDE units[BEYOND - LOWEST_EXPONENT + 1]; /* ULPs in 1, by exponent of the exact value */
    for (int e = LOWEST_EXPONENT; e <= BEYOND; e++) units[e - LOWEST_EXPONENT] = ldexp((WIDE)1, MANTISSA - 1 - e);
    for (int64_t i = 0; i < n; i++) {
        if (isinf(x[i])) continue;
        const WIDE exact = isnan(x[i]) ? (WIDE)0 : clip(reference(function, x[i]), limit);
        const int exponent = exponent_of(exact), subnormal = exponent < LOWEST_EXPONENT;
        const WIDE ulps = units[subnormal ? 0 : exponent - LOWEST_EXPONENT];
        for (int v = 0; v < versions; v++) {
            statistics *s = &all[v];
            const REAL result = y[v][i];
            s->compared++;
            if (isnan(x[i]) || isnan(result)) {
                s->wrong_nan += !isnan(x[i]) || !isnan(result);
                continue;
            }
            const double error = (double)(fabs(clip(result, limit) - exact) * ulps);
            s->beyond_half += error > 0.5;
            s->beyond_one += error > 1;
            if (error > s->worst) {
                s->worst = error;
                s->at = x[i];
            }
            if (subnormal && error > s->worst_subnormal) s->worst_subnormal = error;
        }
    }
}

/* f(x) = (high + low) 2^exponent, for the check of the reference itself. */
void parts(int function, int64_t n, const REAL *x, double *high, double *low, int32_t *exponent)
{
    for (int64_t i = 0; i < n; i++) {
        int e;
        const WIDE m = frexp(reference(function, x[i]), &e);
        high[i] = (double)m;
        low[i] = (double)(m - (WIDE)high[i]);
        exponent[i] = e;
    }
}
