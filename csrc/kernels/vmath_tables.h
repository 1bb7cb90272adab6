/* Coefficients of vmath.h, printed by scripts/coefficients.py with the error of each table as it stands. */
#ifndef FA_VMATH_TABLES_H
#define FA_VMATH_TABLES_H

#include "../simd/simd.h"

#if defined(FA_REAL_F32)

/* (2^x - 1) / x on [-1/2, 1/2]; off by 1.82 2^-24 */
static const real exp2_coefficient[] = {0x1.62e42ap-1f, 0x1.ebf9bcp-3f, 0x1.c6b752p-5f, 0x1.3cea88p-7f, 0x1.5bba22p-10f};

/* (2^x - 1) / x on [-1/2, 1/2], for bfloat16; off by 1.7e+3 2^-24 */
static const real exp2_coefficient_bf16[] = {0x1.62f5fap-1f, 0x1.f00c5p-3f, 0x1.c2a25cp-5f};

/* (e^x - 1 - x) / x^2 on [-ln 2 / 2, ln 2 / 2]; off by 0.063 2^-24 */
static const real exp_coefficient[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558fp-5f, 0x1.1239d4p-7f, 0x1.6a246ep-10f};

#define LN2_HIGH 0x1.62e8p-1f
#define LN2_LOW -0x1.e8082ep-16f

/* (tanh(x) / x - 1) / x^2 in w = x^2 on [0, 0.625^2]; off by 0.0439 2^-24 */
static const real tanh_coefficient[] = {
    -0x1.555554p-2f, 0x1.111066p-3f, -0x1.b9ee8ep-5f, 0x1.638b44p-6f, -0x1.0bf4a2p-7f, 0x1.18e0b4p-9f};

/* (Phi(x) - 1/2) / x in w = x^2 on [0, 1/4]; off by 0.291 2^-24 */
static const real cdf_coefficient[] = {0x1.988454p-2f, -0x1.105836p-4f, 0x1.46cebap-7f, -0x1.36d348p-10f, 0x1.c948e8p-14f};
static const real cdf_coefficient_low[] = {-0x1.8964c4p-27f};

/* Phi(-a) exp(a^2/2) (a + 2) in t = (a - 2) / (a + 2) on a in [1/2, 15]; off by 0.939 2^-24 */
static const real mills_coefficient[] = {
    0x1.5845dcp-1f, -0x1.535bbp-2f, 0x1.d7d0d2p-6f, 0x1.2ccbep-5f, -0x1.ebf0fap-12f, -0x1.b8ac52p-8f, -0x1.006adep-9f,
    0x1.996b7ep-11f, 0x1.c06244p-11f, 0x1.c2c98ep-13f, -0x1.8be4a4p-13f, -0x1.09badcp-13f, 0x1.2b22ap-15f};
static const real mills_coefficient_low[] = {0x1.5b9d7p-26f, 0x1.a576f2p-28f, 0x1.e37d7ep-31f, -0x1.80b3fp-31f};

#else

/* (2^x - 1) / x on [-1/2, 1/2]; off by 0.247 2^-53 */
static const real exp2_coefficient[] = {
    0x1.62e42fefa39efp-1, 0x1.ebfbdff82c5a4p-3, 0x1.c6b08d7049fe8p-5, 0x1.3b2ab6fba011bp-7, 0x1.5d87fe78cd6e3p-10,
    0x1.4309130ed87bap-13, 0x1.ffcbfba9754a6p-17, 0x1.62bfc79e17b7cp-20, 0x1.b5267d00b4953p-24, 0x1.e61b4e46692b2p-28,
    0x1.e79b7c86e92dep-32};

/* (e^x - 1 - x) / x^2 on [-ln 2 / 2, ln 2 / 2]; off by 0.00643 2^-53 */
static const real exp_coefficient[] = {
    0x1p-1, 0x1.555555555555bp-3, 0x1.5555555555503p-5, 0x1.111111110ec67p-7, 0x1.6c16c16c30457p-10,
    0x1.a01a01b37a803p-13, 0x1.a01a01369361fp-16, 0x1.71ddf02a2da07p-19, 0x1.27e5b45348f9p-22, 0x1.af6bd76fd7413p-26,
    0x1.1e3cfd7923c47p-29};

#define LN2_HIGH 0x1.62e42fefa4p-1
#define LN2_LOW -0x1.8432a1b0e2634p-43

/* (tanh(x) / x - 1) / x^2 in w = x^2 on [0, 0.625^2]; off by 0.0735 2^-53 */
static const real tanh_coefficient[] = {
    -0x1.5555555555555p-2, 0x1.111111111110ep-3, -0x1.ba1ba1ba1b62ep-5, 0x1.664f4882acbc7p-6, -0x1.226e355a84864p-7,
    0x1.d6d3cfe8339bcp-9, -0x1.7da34f15492b2p-10, 0x1.3556dcdcb33a4p-11, -0x1.f56109672aa01p-13, 0x1.95991a8cb4f73p-14,
    -0x1.44482665bcc2ap-15, 0x1.eaef98310a77fp-17, -0x1.34d362e7b43f9p-18, 0x1.ca9155251aea4p-21};

/* (Phi(x) - 1/2) / x in w = x^2 on [0, 1/4]; off by 0.382 2^-53 */
static const real cdf_coefficient[] = {
    0x1.9884533d43651p-2, -0x1.1058377e2ceep-4, 0x1.46d04297691dap-7, -0x1.37403f6ba10fep-10, 0x1.e42b0d5216be1p-14,
    -0x1.3ce8fac13efc8p-17, 0x1.658a21639f903p-21, -0x1.622261cc1f08cp-25, 0x1.38765e74b0f0cp-29, -0x1.f0360e01e7406p-34,
    0x1.52c3c25f6446ap-38};
static const real cdf_coefficient_low[] = {-0x1.cbc0d3765119dp-56};

/* Phi(-a) exp(a^2/2) (a + 4) in t = (a - 4) / (a + 4) on a in [1/2, 40]; off by 0.843 2^-53 */
static const real mills_coefficient[] = {
    0x1.82b4bb8c94dcep-1, -0x1.373e3a893c28ap-1, 0x1.8c6dbf2cfc2aep-2, -0x1.7dff2bff6835ep-3, 0x1.eec4cc3e4deebp-5,
    -0x1.ee2761049122p-8, -0x1.c81719d67e8bfp-9, 0x1.ab825fc5c34ccp-10, 0x1.17a4af2dfee73p-13, -0x1.e4a426c820529p-13,
    -0x1.002043517149dp-19, 0x1.26d0b568c6b67p-15, 0x1.80d93900c184ep-21, -0x1.8d4db0c46fa38p-18, -0x1.5269fd49ea6e4p-21,
    0x1.1244b09a6c1ccp-20, 0x1.259da3fb69baap-22, -0x1.4ca9d18074011p-23, -0x1.7aaa5c48b1d7fp-24, 0x1.ad20ef8f11595p-27,
    0x1.8367539c2930fp-26, 0x1.d587e9f965a85p-29, -0x1.2927c31303622p-28, -0x1.1c19606c48779p-29, 0x1.123ddbdf3f0eap-31,
    0x1.3444c6b6d6f02p-31, -0x1.ba36b3a16b2b3p-38, -0x1.4516e55bae8dp-34, -0x1.0d8638973a76bp-38};
static const real mills_coefficient_low[] = {
    -0x1.990e30c5fa734p-56, -0x1.caabf9d47d0e9p-56, -0x1.ca319533f5ca5p-59, 0x1.f37433009751p-58};

#endif

#endif
