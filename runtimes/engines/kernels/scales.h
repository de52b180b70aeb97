/* Scales and zero points of some blocks and outputs, turned so that outputs lie beside each other; and what sums
 * of a block begin with. */

#ifndef RAISED /* sums of blocks as floats by a conversion: a set may add something to all of them for a quicker way */
#define RAISED 0
INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }
#endif

/* The end of a row, or less than eight rows: zeros behind the end, and the last row again behind the last. */
__attribute__((noinline, cold)) static void load_rest(const uint8_t *matrix, size_t rows, size_t bytes, size_t row, size_t first,
                      uint8_t to[8][sizeof(Eight)]) {
    memset(to, 0, 8 * sizeof *to);
    for (size_t i = 0; i < 8 && first < bytes; i++)
        memcpy(to[i], matrix + smaller(row + i, rows - 1) * bytes + first, smaller(sizeof *to, bytes - first));
}

/* Eight halves of each of eight rows of `bytes`, from the byte `first`, turned. */
INLINE void load_eight_rows(const void *matrix, size_t rows, size_t bytes, size_t row, size_t first, Eight v[8]) {
    uint8_t rest[8][sizeof *v];
    const uint8_t *from = (const uint8_t *)matrix + row * bytes + first;
    size_t stride = bytes;
    if (row + 8 > rows || first + sizeof *v > bytes) {
        load_rest(matrix, rows, bytes, row, first, rest);
        from = rest[0], stride = sizeof *v;
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++)
        memcpy(&v[i], from + i * stride, sizeof v[i]);
    transpose_eight(v);
}

/* `count` blocks of 8 outputs to rows of `stride` floats. */
INLINE void turn_scales(const Product *p, size_t column, size_t first, size_t count, float *to, size_t stride) {
    for (size_t b = 0; b < count; b += 8) {
        Eight v[8];
        load_eight_rows(p->scales, p->n, p->blocks * 2, column, (first + b) * 2, v);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++)
            if (b + i < count) store_eight_halves(to + (b + i) * stride, v[i]);
    }
}

/* Four zero points in each half; `first` is even. */
static void turn_zeros(const Product *p, size_t column, size_t first, size_t count, int32_t *to, size_t stride) {
    const Eight none = {0};
    for (size_t b = 0; b < count; b += 32) {
        Eight v[8];
        load_eight_rows(p->zeros, p->n, zero_bytes(p), column, (first + b) / 2, v);
        for (size_t i = 0; i < smaller(32, count - b); i++) {
            const Eight points = (v[i / 4] >> (uint16_t)(i % 4 * 4)) & 15;
            VECTOR(int32_t, 16) low = (VECTOR(int32_t, 16))zip_first_eight(points, none) + (p->middle - 8);
            VECTOR(int32_t, 16) high = (VECTOR(int32_t, 16))zip_second_eight(points, none) + (p->middle - 8);
            memcpy(to + (b + i) * stride, &low, sizeof low);
            memcpy(to + (b + i) * stride + 4, &high, sizeof high);
        }
    }
}

/* `columns` outputs, a multiple of 8; zeros are left alone where the product has none. */
INLINE void load_scales(const Product *p, size_t column, size_t columns, size_t first, size_t count, float *scales,
                        int32_t *zeros) {
    for (size_t i = 0; i < columns; i += 8) {
        turn_scales(p, column + i, first, count, scales + i, columns);
        if (p->zeros) turn_zeros(p, column + i, first, count, zeros + i, columns);
    }
}

/* What the sums of a block begin with, at `at` among those of all rows. */
INLINE Ints begin_block(const Product *p, size_t at, const int32_t *zeros) {
    const Ints start = all_ints(p->row_sums[at]);
    return p->zeros ? all_ints(RAISED) + start * load_ints(zeros) : start;
}
