/* Arm with products of four bytes (FEAT_DotProd): Cortex-A76 of a Raspberry Pi 5, Neoverse, Apple's, most since 2018. */
#include "attention.h"
#include "matmul_int.h"
#include "neon.h"

typedef Ints Partial;
INLINE Partial begin(Ints sum) { return sum; }
INLINE Partial dot(Partial sum, Bytes weights, Ints four) {
    return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, (int8x16_t)four);
}
INLINE Partial dot_word(Partial sum, Bytes weights, Inputs inputs, size_t word) {
    const int32x4_t before = (int32x4_t)sum;
    const int8x16_t w = (int8x16_t)weights;
    return (Ints)(word ? vdotq_lane_s32(before, w, inputs, 1) : vdotq_lane_s32(before, w, inputs, 0));
}
INLINE Ints finish(Partial sum, Ints before) {
    (void)before; /* it began with them */
    return sum;
}
enum { PARTIAL_WORDS = CHUNK / 4 };

#include "bfloat16.h"
#include "fma_pairs.h"
#include "tasks.h"

const InstructionSet dotprod = TASKS("dotprod", NEON | NEON_DOTPROD);
