/* Loads a chunk of weights of 2, 3 or 4 bits: the one place that knows how they lie. */
#ifndef LENSMITH_CHUNK_H
#define LENSMITH_CHUNK_H

#include "matmul_int.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

/* The values of a chunk, a byte each. Those behind the end of the row are any, and meet activations of zero. */
typedef struct Chunk {
    __m512i even, odd; /* inputs */
} Chunk;

INLINE __mmask64 bytes_within(size_t left) { return left >= 64 ? ~0ull : (1ull << left) - 1; }

/* Four bits of each input, two inputs in a byte. */
INLINE Chunk split_halves(__m512i packed) {
    const __m512i low = _mm512_set1_epi8(15);
    return (Chunk){_mm512_and_si512(packed, low), _mm512_and_si512(_mm512_srli_epi16(packed, 4), low)};
}

/* Two bits of each input, four inputs in a byte. */
INLINE Chunk split_quarters(__m256i packed) {
    const __m512i low = _mm512_set1_epi8(3), words = _mm512_cvtepu8_epi16(packed);
    const __m512i spread = _mm512_or_si512(words, _mm512_slli_epi16(words, 4)); /* inputs 0 and 1, then 2 and 3 */
    return (Chunk){_mm512_and_si512(spread, low), _mm512_and_si512(_mm512_srli_epi16(spread, 2), low)};
}

/* Adds the top bits of 3, those of eight inputs in a byte. */
INLINE Chunk add_tops(Chunk chunk, __m128i tops) {
    const __m512i from = _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a,
                                          0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404,
                                          0x03030303, 0x02020202, 0x01010101, 0x00000000);
    const __m512i eights = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(tops), from), top = _mm512_set1_epi8(4);
    const __mmask64 even = _mm512_test_epi8_mask(eights, _mm512_set1_epi32(0x40100401));
    const __mmask64 odd = _mm512_test_epi8_mask(eights, _mm512_set1_epi32((int)0x80200802));
    chunk.even = _mm512_mask_add_epi8(chunk.even, even, chunk.even, top);
    chunk.odd = _mm512_mask_add_epi8(chunk.odd, odd, chunk.odd, top);
    return chunk;
}

/* Only the `last` chunk of a row may be shorter. */
INLINE Chunk load_chunk(const Product *p, int bits, size_t row, size_t chunk, int last) {
    const uint8_t *start = p->weights + row * row_bytes(p, bits);
    const size_t inputs = p->blocks * p->block, left = last ? inputs - chunk * CHUNK : CHUNK;
    if (bits == 4) return split_halves(_mm512_maskz_loadu_epi8(bytes_within(left / 2), start + chunk * CHUNK / 2));
    const __mmask32 within = (__mmask32)bytes_within(left / 4);
    const Chunk low = split_quarters(_mm256_maskz_loadu_epi8(within, start + chunk * CHUNK / 4));
    if (bits == 2) return low;
    const uint8_t *tops = start + inputs / 4 + chunk * CHUNK / 8;
    return add_tops(low, _mm_maskz_loadu_epi8((__mmask16)bytes_within(left / 8), tops));
}

#endif
