/* Attention of a block of queries over all keys, one tile of keys at a time, with a running softmax. */
#include "attention.h"

#include <float.h>
#include <immintrin.h>
#include <math.h>

#define INLINE static inline __attribute__((always_inline))
enum { TILE_ROWS = 6 };

/* The queries of a block and what is known of their answers so far. */
typedef struct Block {
    uint16_t q[QUERY_BLOCK][MAX_WIDTH] __attribute__((aligned(64))); /* bfloat16, scaled for powers of two */
    float out[QUERY_BLOCK][MAX_WIDTH] __attribute__((aligned(64)));  /* not yet divided by the sum */
    float sum[QUERY_BLOCK][WORDS] __attribute__((aligned(64)));      /* of probabilities, in parts */
    float largest[QUERY_BLOCK];
} Block;

/* 2^x within 5e-6, far below the rounding of probabilities: a polynomial of the fraction and an exact power. */
INLINE __m512 power_of_two(__m512 x) {
    const __m512 fraction = _mm512_reduce_ps(x, 0); /* from the nearest integer: -0.5 to 0.5 */
    __m512 y = _mm512_set1_ps(0.0096788f);
    y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.0558263f));
    y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.2402246f));
    y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.6931304f));
    y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, _mm512_sub_ps(x, fraction));
}

INLINE __m512bh two(const void *pair) { return (__m512bh)_mm512_set1_epi32(*(const int32_t *)pair); }

/* The instruction as it stands: the compiler would move loads ahead until sums no longer fit into registers. */
INLINE __m512 dot(__m512 sum, __m512bh left, __m512bh right) {
    __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(left), "v"(right));
    return sum;
}

/* acc[r][v] += the products of pairs of `rows` rows of x with packed pairs of `vectors` vectors. */
INLINE void multiply(__m512 acc[TILE_ROWS][TILE_VECTORS], int rows, int vectors, const uint16_t *x, size_t stride,
                     const uint32_t *packed, size_t packed_stride, size_t count) {
    for (size_t i = 0; i < count; i++) {
        __m512bh w[TILE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            w[v] = (__m512bh)_mm512_loadu_si512(packed + i * packed_stride + (size_t)v * WORDS);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const __m512bh pair = two(x + (size_t)r * stride + 2 * i);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                acc[r][v] = dot(acc[r][v], pair, w[v]);
        }
    }
}

/* Probabilities of one row from its scores; returns the factor for what was summed before. */
INLINE __m512 soften(Block *block, size_t row, const __m512 scores[TILE_VECTORS], uint16_t *out) {
    const __m512 pair = _mm512_max_ps(_mm512_max_ps(scores[0], scores[1]), _mm512_max_ps(scores[2], scores[3]));
    const float before = block->largest[row], now = fmaxf(before, _mm512_reduce_max_ps(pair));
    const __m512 largest = _mm512_set1_ps(now), factor = power_of_two(_mm512_set1_ps(before - now));
    __m512 p[TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++)
        p[v] = power_of_two(_mm512_sub_ps(scores[v], largest));
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3]));
    _mm512_store_ps(block->sum[row], _mm512_fmadd_ps(_mm512_load_ps(block->sum[row]), factor, sum));
    _mm512_store_si512(out, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
    _mm512_store_si512(out + 2 * WORDS, (__m512i)_mm512_cvtne2ps_pbh(p[3], p[2]));
    block->largest[row] = now;
    return factor;
}

/* Scores of `rows` queries with one tile of keys, as probabilities; `keys` of the tile count. */
INLINE void probabilities(const Attention *a, Block *block, int rows, size_t row, const uint32_t *packed, size_t keys,
                          uint16_t out[TILE_ROWS][TILE_KEYS], __m512 factors[TILE_ROWS]) {
    __m512 acc[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++)
            acc[r][v] = _mm512_setzero_ps();
    multiply(acc, rows, TILE_VECTORS, block->q[row], MAX_WIDTH, packed, TILE_KEYS, a->width / 2);
    if (keys < TILE_KEYS) {
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; v++) {
                const __mmask16 past = (__mmask16)(~((1ull << keys) - 1) >> (v * WORDS));
                acc[r][v] = _mm512_mask_mov_ps(acc[r][v], past, _mm512_set1_ps(-INFINITY));
            }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        factors[r] = soften(block, row + (size_t)r, acc[r], out[r]);
}

INLINE float *out_at(Block *block, size_t row, int r, size_t vector, int v) {
    return block->out[row + (size_t)r] + (vector + (size_t)v) * WORDS;
}

/* Adds the values of a tile, weighted, to some vectors of the answers of `rows` queries. */
INLINE void add_values(const Attention *a, Block *block, int rows, int vectors, size_t row, size_t vector,
                       const uint32_t *packed, uint16_t p[TILE_ROWS][TILE_KEYS], const __m512 factors[TILE_ROWS]) {
    __m512 acc[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            acc[r][v] = _mm512_mul_ps(factors[r], _mm512_load_ps(out_at(block, row, r, vector, v)));
    multiply(acc, rows, vectors, p[0], TILE_KEYS, packed + vector * WORDS, a->vectors * WORDS, TILE_KEYS / 2);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            _mm512_store_ps(out_at(block, row, r, vector, v), acc[r][v]);
}

/* Some queries and one tile of keys and values. */
INLINE void tile(const Attention *a, Block *block, int rows, size_t row, const uint32_t *k, const uint32_t *v,
                 size_t keys) {
    uint16_t p[TILE_ROWS][TILE_KEYS] __attribute__((aligned(64)));
    __m512 factors[TILE_ROWS];
    probabilities(a, block, rows, row, k, keys, p, factors);
    size_t vector = 0;
    for (; vector + TILE_VECTORS <= a->vectors; vector += TILE_VECTORS)
        add_values(a, block, rows, TILE_VECTORS, row, vector, v, p, factors);
    switch (a->vectors - vector) {
    case 3: add_values(a, block, rows, 3, row, vector, v, p, factors); break;
    case 2: add_values(a, block, rows, 2, row, vector, v, p, factors); break;
    case 1: add_values(a, block, rows, 1, row, vector, v, p, factors); break;
    default: break;
    }
}

static void load_queries(const Attention *a, Block *block, const float *q, size_t count) {
    const __m512 scale = _mm512_set1_ps(1.44269504f / sqrtf((float)a->width)); /* log2(e), for powers of two */
    for (size_t row = 0; row < count; row++, q += a->heads * a->width) {
        for (size_t i = 0; i < a->width; i += WORDS) {
            const size_t left = a->width - i;
            const __mmask16 mask = left >= WORDS ? 0xffff : (__mmask16)((1u << left) - 1);
            const __m512 values = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(mask, q + i));
            _mm256_store_si256((__m256i *)(block->q[row] + i), (__m256i)_mm512_cvtneps_pbh(values));
            _mm512_store_ps(block->out[row] + i, _mm512_setzero_ps());
        }
        _mm512_store_ps(block->sum[row], _mm512_setzero_ps());
        block->largest[row] = -FLT_MAX; /* no score is below it, and two of them have a distance */
    }
}

static void store_answers(const Attention *a, const Block *block, float *out, size_t count) {
    for (size_t row = 0; row < count; row++, out += a->heads * a->width) {
        const __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(_mm512_load_ps(block->sum[row])));
        for (size_t i = 0; i < a->width; i += WORDS) {
            const size_t left = a->width - i;
            const __mmask16 mask = left >= WORDS ? 0xffff : (__mmask16)((1u << left) - 1);
            _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(inverse, _mm512_load_ps(block->out[row] + i)));
        }
    }
}

static void all_rows(const Attention *a, Block *block, size_t count, const uint32_t *k, const uint32_t *v,
                     size_t keys) {
    size_t row = 0;
    for (; row + TILE_ROWS <= count; row += TILE_ROWS)
        tile(a, block, TILE_ROWS, row, k, v, keys);
    for (; row < count; row++)
        tile(a, block, 1, row, k, v, keys);
}

void query_block_task(void *attention, size_t index) {
    const Attention *a = attention;
    const size_t blocks = (a->queries + QUERY_BLOCK - 1) / QUERY_BLOCK;
    const size_t first = index % blocks * QUERY_BLOCK, head = index / blocks, left = a->queries - first;
    const size_t count = left < QUERY_BLOCK ? left : QUERY_BLOCK;
    const size_t start = ((head / a->heads * a->queries + first) * a->heads + head % a->heads) * a->width;
    Block block;
    load_queries(a, &block, a->q + start, count);
    for (size_t t = 0; t < a->tiles; t++) {
        const size_t tile = head * a->tiles + t, keys = a->keys - t * TILE_KEYS;
        all_rows(a, &block, count, a->packed_k + tile * k_tile_words(a), a->packed_v + tile * v_tile_words(a),
                 keys < TILE_KEYS ? keys : TILE_KEYS);
    }
    store_answers(a, &block, a->out + start, count);
}
