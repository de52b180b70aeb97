/* Arm with products of small matrices of bytes (FEAT_I8MM) and bfloat16 (FEAT_BF16): Neoverse V1 and N2, Cortex-A710 and
 * X2, Apple's since the M2. */
#include "cached_attention.h"
#include "matmul_int.h"
#include "neon.h"
#include "whole_sums.h"
#include "byte_dots.h"
#include "byte_matrices.h"
#include "bfloat16.h"

typedef uint16_t Narrow;

INLINE void store_narrow(Narrow *to, Floats v) { vst1_u16(to, (uint16x4_t)vcvt_bf16_f32((float32x4_t)v)); }

/* One rounding for each product and sum together, as everywhere. What multiplies pairs of bfloat16 at once (BFDOT,
 * BFMMLA) rounds in a way of its own, and not the same on every processor. */
INLINE Floats dot_pair(Floats sum, const Narrow *pair, Words packed) {
    VECTOR(uint32_t, 8) both = {0};
    memcpy(&both, pair, 2 * sizeof *pair);
    const bfloat16x8_t w = (bfloat16x8_t)packed;
    const bfloat16x4_t x = (bfloat16x4_t)both;
    return (Floats)vbfmlalbq_lane_f32(vbfmlaltq_lane_f32((float32x4_t)sum, w, x, 1), w, x, 0);
}

#include "tasks.h"

const InstructionSet i8mm = TASKS("i8mm", NEON | NEON_DOTPROD | NEON_I8MM_BF16);
