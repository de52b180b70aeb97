/* AVX2 with FMA and F16C: what its sets share. */
#define VECTOR_BYTES 32
#include "vectors.h"
#include "x86.h"

INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

INLINE Floats load_halves(const uint16_t *from) { return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)); }
INLINE void store_halves(uint16_t *to, Floats v) { _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT)); }

INLINE Floats load_int16(const int16_t *from) {
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)from)));
}
INLINE Floats load_int8(const int8_t *from) {
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}

/* Bytes as halves of words. */
INLINE Halves widen_bytes(const uint8_t *from) { return (Halves)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)from)); }

/* Each byte four times. */
INLINE Bytes repeat_bytes(const uint8_t *from) {
    const __m256i four = _mm256_set_epi32(0x07070707, 0x06060606, 0x05050505, 0x04040404, 0x03030303, 0x02020202,
                                          0x01010101, 0x00000000);
    return (Bytes)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadl_epi64((const __m128i *)from)), four);
}

/* The sum of each 16 bytes of four vectors, side by side. All 16 products of a weight and an input fit into 16 bits. */
INLINE Ints pair_sums(Ints a, Ints b) {
    return (Ints)_mm256_madd_epi16(_mm256_packs_epi32((__m256i)a, (__m256i)b), _mm256_set1_epi16(1));
}
#define QUAD_SUMS(a, b, c, d) pair_sums(pair_sums(a, b), pair_sums(c, d))

#define TILE_ROWS 6 /* times TILE_VECTORS are the sums in registers */
#define TILE_VECTORS 2
#define ATTENTION_ROWS 4
#define ATTENTION_VECTORS 2
