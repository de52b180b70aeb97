/* Decoding: one or two rows, as fast as memory gives the weights. */
#include "chunk.h"

enum { ROWS_AHEAD = 4 }; /* of prefetching; one weight row after the other is how memory gives them fastest */

INLINE __m512i lane_blocks(size_t count) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_srlv_epi32(lanes, _mm512_set1_epi32(count == 8 ? 1 : count == 4 ? 2 : count == 2 ? 3 : 4));
}

/* The float16 scales of a chunk, each in the lanes of its block; of the last chunk, only those that are there. */
INLINE __m512 weight_scales(const Product *p, size_t column, size_t block, size_t count, size_t present) {
    const uint16_t *scales = p->scales + column * p->blocks + block;
    if (count == 1) return _mm512_cvtph_ps(_mm256_set1_epi16((short)*scales));
    const __m128i narrow = _mm_maskz_loadu_epi16((__mmask8)((1u << present) - 1), scales);
    return _mm512_permutexvar_ps(lane_blocks(count), _mm512_castps256_ps512(_mm256_cvtph_ps(narrow)));
}

INLINE __m512i zero_points(const Product *p, size_t row, size_t block, size_t count) {
    int32_t local[8] = {0};
    for (size_t i = 0; i < count && block + i < p->blocks; i++)
        local[i] = zero_point(p, row, block + i);
    return _mm512_permutexvar_epi32(lane_blocks(count), _mm512_castsi256_si512(_mm256_loadu_si256((__m256i *)local)));
}

INLINE __m512i dot(__m512i start, Chunk weights, const int8_t *chunk) {
    start = _mm512_dpbusd_epi32(start, weights.even, _mm512_loadu_si512(chunk));
    return _mm512_dpbusd_epi32(start, weights.odd, _mm512_loadu_si512(chunk + 64));
}

/* Adds a chunk of one weight row to the sums of `rows` rows. */
INLINE void add_chunk(const Product *p, int bits, size_t rows, size_t count, size_t column, size_t c, int last,
                      __m512 *sums) {
    const size_t block = c * count;
    const Chunk weights = load_chunk(p, bits, column, c, last);
    const uint8_t *ahead = p->weights + (column + ROWS_AHEAD) * row_bytes(p, bits);
    _mm_prefetch((const char *)ahead + c * CHUNK * (size_t)bits / 8, _MM_HINT_T0);
    const __m512 scales = weight_scales(p, column, block, count, last ? smaller(count, p->blocks - block) : count);
    for (size_t r = 0; r < rows; r++) {
        const size_t at = r * p->chunks + c;
        __m512i start = _mm512_loadu_si512(p->lane_sums + at * LANES);
        if (p->zeros) start = _mm512_mullo_epi32(start, zero_points(p, column, block, count));
        __m512 whole = _mm512_cvtepi32_ps(dot(start, weights, p->rounded + at * CHUNK));
        __m512 both = _mm512_mul_ps(scales, _mm512_loadu_ps(p->lane_scales + at * LANES));
        sums[r] = _mm512_fmadd_ps(whole, both, sums[r]);
    }
}

INLINE void all_columns(const Product *p, int bits, size_t rows, size_t count, size_t first, size_t last) {
    for (; first < last; first++) {
        __m512 sums[FEW_ROWS] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (size_t c = 0; c + 1 < p->chunks; c++)
            add_chunk(p, bits, rows, count, first, c, 0, sums);
        add_chunk(p, bits, rows, count, first, p->chunks - 1, 1, sums);
        for (size_t r = 0; r < rows; r++)
            p->y[r * p->n + first] = _mm512_reduce_add_ps(sums[r]) + (p->bias ? p->bias[first] : 0.0f);
    }
}

/* A copy of the loops for each number of rows and of blocks in a chunk: sums stay in registers. */
INLINE void columns_of(const Product *p, int bits, size_t first, size_t last) {
    switch (chunk_blocks(p) * FEW_ROWS + p->m - 1) {
    case 2: all_columns(p, bits, 1, 1, first, last); break;
    case 3: all_columns(p, bits, 2, 1, first, last); break;
    case 4: all_columns(p, bits, 1, 2, first, last); break;
    case 5: all_columns(p, bits, 2, 2, first, last); break;
    case 8: all_columns(p, bits, 1, 4, first, last); break;
    case 9: all_columns(p, bits, 2, 4, first, last); break;
    case 16: all_columns(p, bits, 1, 8, first, last); break;
    default: all_columns(p, bits, 2, 8, first, last);
    }
}

void few_rows_task(void *product, size_t index) {
    const Product local = *(const Product *)product; /* which no store can change */
    const size_t first = index * FEW_ROWS_COLUMNS, last = smaller(local.n, first + FEW_ROWS_COLUMNS);
    switch (local.bits) {
    case 2: columns_of(&local, 2, first, last); break;
    case 3: columns_of(&local, 3, first, last); break;
    default: columns_of(&local, 4, first, last);
    }
}
