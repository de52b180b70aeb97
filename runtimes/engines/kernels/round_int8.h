/* Rounds activations to int8 in blocks, in the order in which weights are packed. Loops that any compiler vectorizes. */

/* Blocks of nothing but values below this count as zeros: the inverse of their scale would overflow. */
static const float SMALLEST = 1e-30f;

static int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Compared as integers, which order magnitudes in the same way and put NaN above all of them: it must not get lost. */
static float largest_magnitude(const float *x, size_t count) {
    int32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        const int32_t magnitude = bits_of(x[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    float value;
    memcpy(&value, &largest, sizeof value);
    return value;
}

/* One block of `count` inputs; behind them, and where an input is no finite number, are zeros. Returns minus the sum of
 * the rounded values. */
static int32_t round_block(const float *x, size_t count, size_t block, int8_t *out, float *scale) {
    const float largest = largest_magnitude(x, count);
    int32_t sum = 0;
    if (!(largest >= SMALLEST && largest <= FLT_MAX)) {
        *scale = largest < SMALLEST ? 0.0f : NAN;
        memset(out, 0, block);
        return 0;
    }
    const float inverse = 127.0f / largest;
    *scale = largest / 127.0f;
    for (size_t i = 0; i < count; i++) {
        const int32_t rounded = bits_of(x[i] * inverse + ROUNDER) - bits_of(ROUNDER);
        out[i] = (int8_t)rounded;
        sum -= rounded;
    }
    memset(out + count, 0, block - count);
    return sum;
}

/* A set that multiplies signed weights has those of 8 bits around zero, and nothing to take away. */
INLINE int32_t start_of(const Product *p, int32_t sum) {
    if (p->bits == 8 && SIGNED_WEIGHTS) return RAISED;
    return p->zeros ? sum : p->middle * sum + RAISED;
}

static void round_chunk(const Product *p, size_t row, Statistics known, size_t c) {
    const size_t blocks = row_blocks(p), in_chunk = chunk_blocks(p);
    float room[MAX_BLOCK];
    int8_t in_order[CHUNK], *out = p->rounded + (row * p->chunks + c) * CHUNK;
    for (size_t b = 0; b < in_chunk; b++) {
        const size_t at = row * blocks + c * in_chunk + b, start = c * CHUNK + b * p->block;
        const size_t count = start < p->k ? smaller(p->block, p->k - start) : 0;
        const float *x = input_block(p, row, known, count ? start : 0, count, room);
        p->row_sums[at] = start_of(p, round_block(x, count, p->block, in_order + b * p->block, &p->row_scales[at]));
    }
    for (size_t i = 0; i < CHUNK / 2; i++) {
        out[i] = in_order[2 * i];
        out[CHUNK / 2 + i] = in_order[2 * i + 1];
    }
}

static void round_in_order(const Product *p, size_t row, Statistics known) {
    float room[MAX_BLOCK];
    for (size_t b = 0; b < row_blocks(p); b++) {
        const size_t at = row * row_blocks(p) + b, start = b * p->block;
        const size_t count = start < p->k ? smaller(p->block, p->k - start) : 0;
        const float *x = input_block(p, row, known, count ? start : 0, count, room);
        int8_t *out = p->rounded + row * p->chunks * CHUNK + start;
        p->row_sums[at] = start_of(p, round_block(x, count, p->block, out, &p->row_scales[at]));
    }
}

static void round_row(void *product, size_t row) {
    const Product *p = product;
    const Statistics known = begin_row(p, row);
    if (p->bits == 8)
        round_in_order(p, row, known);
    else
        for (size_t c = 0; c < p->chunks; c++)
            round_chunk(p, row, known, c);
}
