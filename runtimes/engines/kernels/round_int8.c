/* Rounds activations to int8 in blocks, in the order in which weights are packed. */
#include "matmul_int.h"

#include <immintrin.h>
#include <string.h>

/* Blocks of nothing but values below this count as zeros: the inverse of their scale would overflow. */
static const float SMALLEST = 1e-30f;

static __mmask16 within(size_t count) { return count >= LANES ? 0xffff : (__mmask16)((1u << count) - 1); }

/* Compared as integers, which order magnitudes in the same way and put NaN above all of them: it must not get lost. */
static float largest_magnitude(const float *x, size_t count) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += LANES) {
        const __m512i bits = _mm512_maskz_loadu_epi32(within(count - i), x + i);
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, magnitude));
    }
    const int32_t found = _mm512_reduce_max_epi32(largest);
    float value;
    memcpy(&value, &found, sizeof value);
    return value;
}

/* One block of `count` inputs, fewer than `block` at the end of a row. Returns minus the sum of the rounded values. */
static int32_t round_block(const float *x, size_t count, size_t block, int8_t *out, float *scale) {
    float largest = largest_magnitude(x, count);
    __m512 inverse = _mm512_set1_ps(largest < SMALLEST ? 0.0f : 127.0f / largest);
    __m512i sum = _mm512_setzero_si512();
    *scale = largest < SMALLEST ? 0.0f : largest / 127.0f;
    for (size_t i = 0; i < block; i += LANES) {
        __m512 values = i < count ? _mm512_maskz_loadu_ps(within(count - i), x + i) : _mm512_setzero_ps();
        __m128i rounded = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse)));
        sum = _mm512_sub_epi32(sum, _mm512_cvtepi8_epi32(rounded)); /* as it is kept, also where it is no number */
        _mm_storeu_si128((__m128i *)(out + i), rounded);
    }
    return _mm512_reduce_add_epi32(sum);
}

/* [even, odd, even, ...] to 64 even and 64 odd values. */
static void split_chunk(int8_t *chunk) {
    __m512i first = _mm512_loadu_si512(chunk), second = _mm512_loadu_si512(chunk + 64);
    _mm256_storeu_si256((__m256i *)chunk, _mm512_cvtepi16_epi8(first));
    _mm256_storeu_si256((__m256i *)(chunk + 32), _mm512_cvtepi16_epi8(second));
    _mm256_storeu_si256((__m256i *)(chunk + 64), _mm512_cvtepi16_epi8(_mm512_srli_epi16(first, 8)));
    _mm256_storeu_si256((__m256i *)(chunk + 96), _mm512_cvtepi16_epi8(_mm512_srli_epi16(second, 8)));
}

void round_row(void *product, size_t row) {
    const Product *p = product;
    const size_t blocks = row_blocks(p);
    int8_t *out = p->rounded + row * p->chunks * CHUNK;
    for (size_t b = 0; b < blocks; b++) {
        const size_t start = b * p->block, count = start < p->k ? smaller(p->block, p->k - start) : 0;
        const float *x = p->x + row * p->k + (count ? start : 0);
        int32_t sum = round_block(x, count, p->block, out + start, &p->row_scales[row * blocks + b]);
        p->row_sums[row * blocks + b] = p->zeros ? sum : p->middle * sum;
    }
    for (size_t c = 0; c < p->chunks; c++)
        split_chunk(out + c * CHUNK);
}

void spread_row(void *product, size_t row) {
    const Product *p = product;
    const __m512i ones = _mm512_set1_epi8(1), zero = _mm512_setzero_si512();
    const size_t lanes = LANES / chunk_blocks(p);
    for (size_t c = 0; c < p->chunks; c++) {
        const size_t at = row * p->chunks + c;
        const int8_t *chunk = p->rounded + at * CHUNK;
        __m512i sum = _mm512_dpbusd_epi32(zero, ones, _mm512_loadu_si512(chunk));
        sum = _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(chunk + 64)));
        _mm512_storeu_si512(p->lane_sums + at * LANES, p->zeros ? sum : _mm512_mullo_epi32(sum, _mm512_set1_epi32(p->middle)));
        for (size_t lane = 0; lane < LANES; lane++)
            p->lane_scales[at * LANES + lane] = p->row_scales[at * chunk_blocks(p) + lane / lanes];
    }
}
