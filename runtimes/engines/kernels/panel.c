/* Prefill: many rows. The weights of 64 outputs are unpacked once, a slice of inputs at a time, for all rows. */
#include "chunk.h"

enum { SLICE = 2, VECTORS = PANEL_COLUMNS / LANES, TILE_ROWS = 6, SLICE_BLOCKS = SLICE * MAX_CHUNK_BLOCKS };

/* Weights of some chunks and 64 outputs: values for 4 inputs of 16 outputs in each vector. */
typedef struct Slice {
    uint8_t values[SLICE * CHUNK / 4][VECTORS][64] __attribute__((aligned(64)));
    float scales[SLICE_BLOCKS][PANEL_COLUMNS] __attribute__((aligned(64)));
    int32_t zeros[SLICE_BLOCKS][PANEL_COLUMNS] __attribute__((aligned(64)));
    size_t column, width; /* of the outputs */
    size_t chunk, chunks; /* of the inputs */
} Slice;

/* Transposes 16 vectors of 16 words of 4 bytes: four rounds that exchange words at the distances 1, 2, 4 and 8. */
INLINE void transpose(__m512i *v) {
    __m512i t[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Even inputs in the low halves of bytes, odd ones in the high halves: half the words to transpose. */
INLINE __m512i join(Chunk chunk) { return _mm512_or_si512(chunk.even, _mm512_slli_epi16(chunk.odd, 4)); }

/* One chunk of 16 outputs; those behind the last repeat it, and inputs behind the end of a row meet zeros. */
INLINE void unpack(const Product *p, int bits, size_t column, size_t chunk, uint8_t (*out)[VECTORS][64],
                   size_t vector) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i v[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        v[i] = join(load_chunk(p, bits, smaller(column + (size_t)i, p->n - 1), chunk, chunk + 1 == p->chunks));
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        _mm512_store_si512(out[2 * i][vector], _mm512_and_si512(v[i], low));
        _mm512_store_si512(out[2 * i + 1][vector], _mm512_and_si512(_mm512_srli_epi16(v[i], 4), low));
    }
}

static void load_scales(const Product *p, Slice *slice) {
    const size_t first = slice->chunk * chunk_blocks(p), count = slice->chunks * chunk_blocks(p);
    for (size_t i = 0; i < PANEL_COLUMNS; i++) {
        const size_t row = smaller(slice->column + i, p->n - 1);
        for (size_t b = 0; b < count; b++) {
            const int there = first + b < p->blocks;
            slice->scales[b][i] = there ? _cvtsh_ss(p->scales[row * p->blocks + first + b]) : 0.0f;
            slice->zeros[b][i] = there ? zero_point(p, row, first + b) : 0;
        }
    }
}

INLINE void unpack_slice(const Product *p, int bits, Slice *slice) {
    for (size_t c = 0; c < slice->chunks; c++)
        for (size_t v = 0; v < VECTORS; v++)
            unpack(p, bits, slice->column + v * LANES, slice->chunk + c, slice->values + c * CHUNK / 4, v);
}

static void load_slice(const Product *p, Slice *slice) {
    switch (p->bits) {
    case 2: unpack_slice(p, 2, slice); break;
    case 3: unpack_slice(p, 3, slice); break;
    default: unpack_slice(p, 4, slice);
    }
    load_scales(p, slice);
}

INLINE __mmask16 lanes(const Slice *slice, int vector) {
    const int left = (int)slice->width - vector * LANES;
    return left >= LANES ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

/* The sums so far of one row and vector of outputs: the bias before the first slice. */
INLINE __m512 start_of(const Product *p, const Slice *slice, size_t row, int vector) {
    const size_t column = slice->column + (size_t)vector * LANES;
    if (slice->chunk) return _mm512_maskz_loadu_ps(lanes(slice, vector), p->y + row * p->n + column);
    return p->bias ? _mm512_maskz_loadu_ps(lanes(slice, vector), p->bias + column) : _mm512_setzero_ps();
}

/* The instruction as it stands: the compiler would move loads ahead until sums no longer fit into registers. */
INLINE __m512i dot(__m512i sum, __m512i weights, __m512i four) {
    __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(four));
    return sum;
}

/* One block of `rows` rows: exact integer sums, then one scale each. */
INLINE void add_block(const Product *p, const Slice *slice, int rows, size_t row, size_t b,
                      float (*sums)[PANEL_COLUMNS]) {
    const size_t blocks = row_blocks(p), block = slice->chunk * chunk_blocks(p) + b, words = p->block / 8;
    const size_t word = b % chunk_blocks(p) * words, chunk = b / chunk_blocks(p);
    const int8_t *x = p->rounded + (row * p->chunks + slice->chunk + chunk) * CHUNK + 4 * word;
    const uint8_t(*values)[VECTORS][64] = slice->values + chunk * CHUNK / 4 + 2 * word;
    const size_t stride = p->chunks * CHUNK;
    __m512i acc[TILE_ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        const __m512i sum = _mm512_set1_epi32(p->row_sums[(row + (size_t)r) * blocks + block]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            acc[r][v] = p->zeros ? _mm512_mullo_epi32(sum, _mm512_load_si512(slice->zeros[b] + v * LANES)) : sum;
    }
    for (size_t i = 0; i < words; i++) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            __m512i w[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                w[v] = _mm512_load_si512(values[2 * i + (size_t)half][v]);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                const __m512i four = _mm512_set1_epi32(*(const int32_t *)(x + (size_t)r * stride + half * 64 + 4 * i));
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++)
                    acc[r][v] = dot(acc[r][v], w[v], four);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        const __m512 scale = _mm512_set1_ps(p->row_scales[(row + (size_t)r) * blocks + block]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const __m512 both = _mm512_mul_ps(scale, _mm512_load_ps(slice->scales[b] + v * LANES));
            float *at = sums[r] + v * LANES;
            _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][v]), both, _mm512_load_ps(at)));
        }
    }
}

INLINE void tile(const Product *p, const Slice *slice, int rows, size_t row) {
    float sums[TILE_ROWS][PANEL_COLUMNS] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            _mm512_store_ps(sums[r] + v * LANES, start_of(p, slice, row + (size_t)r, v));
    for (size_t b = 0; b < slice->chunks * chunk_blocks(p); b++)
        add_block(p, slice, rows, row, b, sums);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            _mm512_mask_storeu_ps(p->y + (row + (size_t)r) * p->n + slice->column + (size_t)v * LANES,
                                  lanes(slice, v), _mm512_load_ps(sums[r] + v * LANES));
}

static void add_slice(const Product *p, const Slice *slice) {
    size_t row = 0;
    for (; row + TILE_ROWS <= p->m; row += TILE_ROWS)
        tile(p, slice, TILE_ROWS, row);
    switch (p->m - row) { /* a copy of the loops for each number of rows, so that sums stay in registers */
    case 5: tile(p, slice, 5, row); break;
    case 4: tile(p, slice, 4, row); break;
    case 3: tile(p, slice, 3, row); break;
    case 2: tile(p, slice, 2, row); break;
    case 1: tile(p, slice, 1, row); break;
    default: break;
    }
}

void panel_task(void *product, size_t index) {
    const Product *p = product;
    Slice slice = {.column = index * PANEL_COLUMNS};
    slice.width = smaller(PANEL_COLUMNS, p->n - slice.column);
    for (; slice.chunk < p->chunks; slice.chunk += SLICE) {
        slice.chunks = smaller(SLICE, p->chunks - slice.chunk);
        load_slice(p, &slice);
        add_slice(p, &slice);
    }
}
