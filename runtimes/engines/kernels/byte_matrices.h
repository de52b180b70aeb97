/* Products of matrices of bytes (FEAT_I8MM): two rows of inputs with the weights of two outputs, eight of each at once. */

/* Four rows of weights: the first eight bytes of the first two and of the others, then the second eight. */
#define ARRANGE pair_words
INLINE void pair_words(Ints v[LANES]) {
    const Ints a = v[0], b = v[1], c = v[2], d = v[3];
    v[0] = pair_low(a, b), v[1] = pair_low(c, d), v[2] = pair_high(a, b), v[3] = pair_high(c, d);
}

/* Like `block_sums` of panel.h. A sum of a pair of rows has two outputs of one and two of the other; a row without a
 * second is taken twice. */
#define BLOCK_SUMS matrix_sums
INLINE void matrix_sums(const int8_t *x, size_t stride, const uint8_t *values, size_t words, int rows,
                        Ints sums[TILE_ROWS][TILE_VECTORS]) {
    int32x4_t pairs[TILE_ROWS / 2][2 * TILE_VECTORS];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r += 2)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) {
            const Ints first = sums[r][v], second = sums[r + 1 < rows ? r + 1 : r][v];
            pairs[r / 2][2 * v] = (int32x4_t)pair_low(first, second);
            pairs[r / 2][2 * v + 1] = (int32x4_t)pair_high(first, second);
        }
    for (size_t i = 0; i < words; i += 2)
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; half++) {
            int8x16_t inputs[TILE_ROWS / 2];
#pragma GCC unroll 2
            for (int r = 0; r < rows; r += 2) {
                const int8_t *first = x + (size_t)r * stride + half * (CHUNK / 2) + 4 * i;
                inputs[r / 2] = vcombine_s8(vld1_s8(first), vld1_s8(r + 1 < rows ? first + stride : first));
            }
#pragma GCC unroll 8
            for (size_t v = 0; v < 2 * TILE_VECTORS; v++) {
                const uint8_t *from = values + (2 * (i + v % 2) + half) * PANEL_COLUMNS * 4 + v / 2 * VECTOR_BYTES;
                const int8x16_t weights = (int8x16_t)load_ints(from);
#pragma GCC unroll 2
                for (int r = 0; r < rows; r += 2)
                    pairs[r / 2][v] = vmmlaq_s32(pairs[r / 2][v], inputs[r / 2], weights);
            }
        }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r += 2)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) {
            const Ints low = (Ints)pairs[r / 2][2 * v], high = (Ints)pairs[r / 2][2 * v + 1];
            sums[r][v] = pair_low(low, high);
            if (r + 1 < rows) sums[r + 1][v] = pair_high(low, high);
        }
}
