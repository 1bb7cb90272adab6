/* The floating-point state of a thread: how it rounds, whether subnormal numbers count as 0, which exceptions trap, and the flags of
   those that have happened. Every thread computes under the default state: to nearest, subnormals kept, nothing traps. Workers of the
   pool set it once; a thread that calls has its own put back, flags included, by fa_float_leave. */
#ifndef FA_FLOAT_STATE_H
#define FA_FLOAT_STATE_H

#include "../base.h"

#if defined(__x86_64__)

/* MXCSR. What else there is, the words of the x87, is of those who compute in long double: see below. */
typedef struct {
    uint32_t mxcsr;
} fa_float_state;

#define FA_MXCSR_DEFAULT 0x1f80u
#define FA_MXCSR_FLAGS 0x3fu

FA_INLINE void fa_set_mxcsr(uint32_t word) { __asm__ volatile("ldmxcsr %0" ::"m"(word) : "memory"); }

FA_INLINE fa_float_state fa_float_enter(void)
{
    fa_float_state before;
    __asm__ volatile("stmxcsr %0" : "=m"(before.mxcsr)::"memory");
    if (FA_UNLIKELY((before.mxcsr & ~FA_MXCSR_FLAGS) != FA_MXCSR_DEFAULT)) fa_set_mxcsr(FA_MXCSR_DEFAULT);
    return before;
}

/* Without a look at what there is now: to read takes as long as to write, after arithmetic. */
FA_INLINE void fa_float_leave(const fa_float_state *before) { fa_set_mxcsr(before->mxcsr); }

/* The x87: its control and status words. */
typedef struct {
    uint16_t control, status;
} fa_long_double_state;

#define FA_X87_DEFAULT 0x37fu
#define FA_X87_FLAGS 0xffu /* with the summary and stack-fault bits */

FA_INLINE void fa_set_x87_control(uint16_t word) { __asm__ volatile("fldcw %0" ::"m"(word) : "memory"); }
FA_INLINE uint16_t fa_x87_status(void)
{
    uint16_t word;
    __asm__ volatile("fnstsw %0" : "=a"(word)::"memory");
    return word;
}

FA_INLINE fa_long_double_state fa_long_double_enter(void)
{
    fa_long_double_state before = {.status = fa_x87_status()};
    __asm__ volatile("fnstcw %0" : "=m"(before.control)::"memory");
    if (FA_UNLIKELY(before.control != FA_X87_DEFAULT)) fa_set_x87_control(FA_X87_DEFAULT);
    return before;
}

/* Flags can be written with the whole environment only. */
FA_INLINE void fa_long_double_leave(const fa_long_double_state *before)
{
    struct {
        uint16_t control, reserved0, status, reserved1, rest[10];
    } environment;
    if ((fa_x87_status() ^ before->status) & FA_X87_FLAGS) {
        __asm__ volatile("fnstenv %0" : "=m"(environment)::"memory");
        environment.status = (uint16_t)((environment.status & ~FA_X87_FLAGS) | (before->status & FA_X87_FLAGS));
        __asm__ volatile("fldenv %0" ::"m"(environment) : "memory");
    }
    if (FA_UNLIKELY(before->control != FA_X87_DEFAULT)) fa_set_x87_control(before->control);
}

#elif defined(__aarch64__)

typedef struct {
    uint64_t control, status; /* FPCR, FPSR */
} fa_float_state;

FA_INLINE fa_float_state fa_float_enter(void)
{
    fa_float_state before;
    __asm__ volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(before.control), "=r"(before.status)::"memory");
    if (FA_UNLIKELY(before.control != 0)) __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0) : "memory");
    return before;
}

FA_INLINE void fa_float_leave(const fa_float_state *before)
{
    if (FA_UNLIKELY(before->control != 0)) __asm__ volatile("msr fpcr, %0" ::"r"(before->control) : "memory");
    __asm__ volatile("msr fpsr, %0" ::"r"(before->status) : "memory");
}

#else

#include <fenv.h>

typedef fenv_t fa_float_state;

FA_INLINE fa_float_state fa_float_enter(void)
{
    fa_float_state before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    return before;
}

FA_INLINE void fa_float_leave(const fa_float_state *before) { fesetenv(before); }

#endif

#if !defined(__x86_64__)
/* long double has no state of its own. */
typedef struct {
    char none;
} fa_long_double_state;
FA_INLINE fa_long_double_state fa_long_double_enter(void) { return (fa_long_double_state){0}; }
FA_INLINE void fa_long_double_leave(const fa_long_double_state *before) { (void)before; }
#endif

#endif
