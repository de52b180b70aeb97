/* What this processor can do, by its own word: cpuid, or what the system says of an Arm processor. */
#ifndef LENSMITH_CPU_H
#define LENSMITH_CPU_H

enum Feature {
    AVX2_FMA_F16C = 1,
    AVX_VNNI = 2,
    AVX512_VNNI = 4, /* with F, BW, DQ and VL */
    AVX512_BF16 = 8,
    NEON = 16, /* every 64-bit Arm processor */
    NEON_DOTPROD = 32,
    NEON_I8MM_BF16 = 64,
};

unsigned cpu_features(void); /* a sum of the above; none on a processor of another kind */

#endif
