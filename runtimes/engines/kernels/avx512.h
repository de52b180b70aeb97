/* AVX-512 with VNNI: what both sets of it share. */
#define VECTOR_BYTES 64
#include "vectors.h"
#include "x86.h"
#include "whole_sums.h"

/* The instruction as it stands: the compiler would move loads ahead until sums
 * no longer fit into registers. */
INLINE Partial dot(Partial sum, Bytes weights, Ints four) {
    __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(four));
    return sum;
}

INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

INLINE Floats load_halves(const uint16_t *from) { return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }
INLINE void store_halves(uint16_t *to, Floats v) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}

INLINE Floats load_int16(const int16_t *from) {
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)from)));
}
INLINE Floats load_int8(const int8_t *from) {
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
}

/* Bytes as halves of words. */
INLINE Halves widen_bytes(const uint8_t *from) { return (Halves)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from)); }

/* Each byte four times. */
INLINE Bytes repeat_bytes(const uint8_t *from) {
    const __m512i four = _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a,
                                          0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404,
                                          0x03030303, 0x02020202, 0x01010101, 0x00000000);
    return (Bytes)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)from)), four);
}

/* The sum of each 16 bytes of four vectors, side by side. All 16 products of a weight and an input fit into 16 bits. */
INLINE Ints pair_sums(Ints a, Ints b) {
    return (Ints)_mm512_madd_epi16(_mm512_packs_epi32((__m512i)a, (__m512i)b), _mm512_set1_epi16(1));
}
#define QUAD_SUMS(a, b, c, d) pair_sums(pair_sums(a, b), pair_sums(c, d))

INLINE Bytes keep(Bytes v) {
    __asm__("" : "+v"(v));
    return v;
}
#define KEEP keep

#define TILE_ROWS 6 /* times TILE_VECTORS are the sums in registers */
#define TILE_VECTORS 4
#define ATTENTION_ROWS 6
#define ATTENTION_VECTORS 4
