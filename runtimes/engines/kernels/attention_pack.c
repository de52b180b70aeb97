/* Packs keys and values in bfloat16. */
#include "attention.h"

#include <immintrin.h>
#include <string.h>

/* Two vectors of 16 floats to 16 pairs (first, second). */
static inline __m512i pairs(__m512 first, __m512 second) {
    const __m512i low = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(first));
    const __m512i high = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(second));
    const __m512i odd = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(high)), 16);
    return _mm512_or_si512(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(low)), odd);
}

static inline __mmask16 within(size_t at, size_t count) {
    return at + WORDS <= count ? 0xffff : at >= count ? 0 : (__mmask16)((1u << (count - at)) - 1);
}

/* Values of two keys in turn; keys behind the last are zeros. */
static void pack_values(const Attention *a, const float *values, size_t count, uint32_t *out) {
    const size_t row = a->heads * a->width;
    for (size_t key = 0; key < TILE_KEYS; key += 2)
        for (size_t i = 0; i < a->vectors; i++, out += WORDS) {
            const __mmask16 mask = within(i * WORDS, a->width);
            const float *at = values + i * WORDS;
            const __m512 first = _mm512_maskz_loadu_ps(key < count ? mask : 0, at + (key < count ? key * row : 0));
            const int second = key + 1 < count;
            const __m512 next = _mm512_maskz_loadu_ps(second ? mask : 0, at + (second ? (key + 1) * row : 0));
            _mm512_storeu_si512(out, pairs(first, next));
        }
}

static void pack_keys(const Attention *a, const float *keys, size_t count, uint32_t *out) {
    uint32_t line[MAX_WIDTH / 2 + WORDS];
    if (count < TILE_KEYS) memset(out, 0, k_tile_words(a) * sizeof *out); // what no key fills
    for (size_t key = 0; key < count; key++, keys += a->heads * a->width) {
        for (size_t i = 0; i < a->width; i += WORDS) {
            const __m512 values = _mm512_maskz_loadu_ps(within(i, a->width), keys + i);
            _mm256_storeu_si256((__m256i *)(line + i / 2), (__m256i)_mm512_cvtneps_pbh(values));
        }
        for (size_t pair = 0; pair < a->width / 2; pair++)
            out[pair * TILE_KEYS + key] = line[pair];
    }
}

void pack_tile_task(void *attention, size_t index) {
    const Attention *a = attention;
    const size_t tile = index % a->tiles, head = index / a->tiles % a->heads, row = index / a->tiles / a->heads;
    const size_t first = tile * TILE_KEYS, left = a->keys - first, count = left < TILE_KEYS ? left : TILE_KEYS;
    const size_t start = ((row * a->keys + first) * a->heads + head) * a->width;
    pack_keys(a, a->k + start, count, a->packed_k + index * k_tile_words(a));
    pack_values(a, a->v + start, count, a->packed_v + index * v_tile_words(a));
}
