/* 64-bit Arm: what its sets share. */
#define VECTOR_BYTES 16
#include "vectors.h"

#include <arm_neon.h>

INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

/* Sums of a block, below 2^22, as floats: conversions take four times as long as additions. A sum and RAISED are the bits
 * of 3 * 2^22 and the sum. */
#define RAISED 0x4b400000
INLINE Floats to_floats(Ints raised) { return (Floats)raised - all_floats(12582912.0f); }

#define HIGH_HALVES(packed) (Bytes) vshrq_n_u8((uint8x16_t)(packed), 4)

/* Bytes as halves of words. */
INLINE Halves widen_bytes(const uint8_t *from) { return (Halves)vmovl_u8(vld1_u8(from)); }

/* Each byte four times. */
INLINE Bytes repeat_bytes(const uint8_t *from) {
    const uint8x16_t four = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return (Bytes)vqtbl1q_u8(vreinterpretq_u8_u32(vdupq_n_u32(word)), four);
}

INLINE void store_eight_halves(float *to, Eight halves) {
    const float16x8_t values = (float16x8_t)halves;
    vst1q_f32(to, vcvt_f32_f16(vget_low_f16(values)));
    vst1q_f32(to + 4, vcvt_high_f32_f16(values));
}

INLINE Floats load_halves(const uint16_t *from) { return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
INLINE void store_halves(uint16_t *to, Floats v) { vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v))); }

INLINE Floats load_int16(const int16_t *from) { return (Floats)vcvtq_f32_s32(vmovl_s16(vld1_s16(from))); }
INLINE Floats load_int8(const int8_t *from) {
    uint32_t four;
    memcpy(&four, from, sizeof four);
    return (Floats)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))))));
}

#define join_groups(first, second) (first)

INLINE Eight widen_eight(const int8_t *from) { return (Eight)vmovl_s8(vld1_s8(from)); }

#define QUAD_SUMS(a, b, c, d)                                                                                          \
    (Ints) vpaddq_s32(vpaddq_s32((int32x4_t)(a), (int32x4_t)(b)), vpaddq_s32((int32x4_t)(c), (int32x4_t)(d)))

/* The inputs of a row that are loaded at once, to be multiplied a word after the other. */
typedef int8x8_t Inputs;
enum { INPUT_WORDS = 2 };
INLINE Inputs load_inputs(const int8_t *from) { return vld1_s8(from); }

#define SIGNED_WEIGHTS 1
#define TILE_ROWS 4 /* times TILE_VECTORS are the sums in registers */
#define TILE_VECTORS 2
#define OWN_SUMS 1
#define ATTENTION_ROWS 4
#define ATTENTION_VECTORS 4
