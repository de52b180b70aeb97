/* Every 64-bit Arm processor, such as the Cortex-A72 of a Raspberry Pi 4. */
#include "cached_attention.h"
#include "matmul_int.h"
#include "neon.h"

/* Sums of products of bytes in 16 bits, of at most 15 * 127 each, those of the first and of the second eight bytes
 * apart: sixteen of them fit. */
typedef struct Partial {
    int16x8_t first, second;
} Partial;
INLINE Partial begin(Ints sum) {
    (void)sum;
    return (Partial){vdupq_n_s16(0), vdupq_n_s16(0)};
}
INLINE Partial dot(Partial sum, Bytes weights, Ints four) {
    const int8x16_t w = (int8x16_t)weights, x = (int8x16_t)four;
    sum.first = vmlal_s8(sum.first, vget_low_s8(w), vget_low_s8(x));
    sum.second = vmlal_high_s8(sum.second, w, x);
    return sum;
}
INLINE Partial dot_word(Partial sum, Bytes weights, Inputs inputs, size_t word) {
    const int32x2_t words = vreinterpret_s32_s8(inputs);
    return dot(sum, weights, (Ints)(word ? vdupq_lane_s32(words, 1) : vdupq_lane_s32(words, 0)));
}
INLINE Ints finish(Partial sum, Ints before) {
    return before + (Ints)vpaddq_s32(vpaddlq_s16(sum.first), vpaddlq_s16(sum.second));
}
enum { PARTIAL_WORDS = 16 };

#include "bfloat16.h"
#include "fma_pairs.h"
#include "tasks.h"

const InstructionSet neon = TASKS("neon", NEON);
