/* Arm with products of four bytes (FEAT_DotProd): Cortex-A76 of a Raspberry Pi 5, Neoverse, Apple's, most since 2018. */
#include "cached_attention.h"
#include "matmul_int.h"
#include "neon.h"
#include "whole_sums.h"

INLINE Partial dot(Partial sum, Bytes weights, Ints four) {
    return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, (int8x16_t)four);
}
INLINE Partial dot_word(Partial sum, Bytes weights, Inputs inputs, size_t word) {
    const int32x4_t before = (int32x4_t)sum;
    const int8x16_t w = (int8x16_t)weights;
    return (Ints)(word ? vdotq_lane_s32(before, w, inputs, 1) : vdotq_lane_s32(before, w, inputs, 0));
}

#include "bfloat16.h"
#include "fma_pairs.h"
#include "tasks.h"

const InstructionSet dotprod = TASKS("dotprod", NEON | NEON_DOTPROD);
