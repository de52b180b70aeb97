/* Attention of a block of queries over all keys, one tile of keys at a time, with a running softmax. */

enum { TILE_PARTS = TILE_KEYS / LANES, WORD_PARTS = WORDS / LANES };

/* The queries of a block and what is known of their answers so far. */
typedef struct Block {
    Narrow q[QUERY_BLOCK][MAX_WIDTH] __attribute__((aligned(64)));  /* scaled for powers of two */
    float out[QUERY_BLOCK][MAX_WIDTH] __attribute__((aligned(64))); /* not yet divided by the sum */
    float sum[QUERY_BLOCK][WORDS] __attribute__((aligned(64)));     /* of probabilities, in parts */
    float largest[QUERY_BLOCK];
} Block;

/* 2^x within 5e-6, far below the rounding of probabilities: a polynomial of the fraction and an exact power. Where the
 * power is too small for a full mantissa it is zero. */
INLINE Floats power_of_two(Floats x) {
    const Floats rounder = all_floats(ROUNDER), least = all_floats(-126.0f);
    const Ints below = x < least;
    const Floats bounded = (Floats)(((Ints)x & ~below) | ((Ints)least & below)), shifted = bounded + rounder;
    const Floats fraction = bounded - (shifted - rounder); /* from the nearest integer: -0.5 to 0.5 */
    const Ints exponent = (Ints)shifted - (Ints)rounder;
    Floats y = all_floats(0.0096788f);
    y = multiply_add(y, fraction, all_floats(0.0558263f));
    y = multiply_add(y, fraction, all_floats(0.2402246f));
    y = multiply_add(y, fraction, all_floats(0.6931304f));
    y = multiply_add(y, fraction, all_floats(1.0f));
    return (Floats)((Ints)(y * (Floats)((exponent + 127) << 23)) & ~below);
}

INLINE Floats larger(Floats a, Floats b) {
    const Ints first = a > b;
    return (Floats)(((Ints)a & first) | ((Ints)b & ~first));
}

static float largest_of(const float scores[TILE_KEYS]) {
    Floats largest = load_floats(scores);
    for (size_t i = LANES; i < TILE_KEYS; i += LANES)
        largest = larger(load_floats(scores + i), largest);
    float found = largest[0];
    for (size_t lane = 1; lane < LANES; lane++)
        found = fmaxf(found, largest[lane]);
    return found;
}

/* acc[r][v] += the products of pairs of `rows` rows of x with packed pairs of `vectors` vectors. */
INLINE void multiply(Floats acc[ATTENTION_ROWS][ATTENTION_VECTORS], int rows, int vectors, const Narrow *x,
                     size_t stride, const uint32_t *packed, size_t packed_stride, size_t count) {
    for (size_t i = 0; i < count; i++) {
        Words w[ATTENTION_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            w[v] = (Words)load_ints(packed + i * packed_stride + (size_t)v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                acc[r][v] = dot_pair(acc[r][v], x + (size_t)r * stride + 2 * i, w[v]);
    }
}

/* Scores of `rows` queries with a tile of keys, of which there are `keys`. */
INLINE void score(const Attention *a, const Block *block, int rows, size_t row, const uint32_t *packed, size_t keys,
                  float scores[ATTENTION_ROWS][TILE_KEYS]) {
    for (size_t key = 0; key < TILE_KEYS; key += ATTENTION_VECTORS * LANES) {
        Floats acc[ATTENTION_ROWS][ATTENTION_VECTORS] = {{{0}}};
        multiply(acc, rows, ATTENTION_VECTORS, block->q[row], MAX_WIDTH, packed + key, TILE_KEYS, a->width / 2);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < ATTENTION_VECTORS; v++)
                store_floats(&scores[r][key + (size_t)v * LANES], acc[r][v]);
    }
    for (int r = 0; r < rows; r++)
        for (size_t key = keys; key < TILE_KEYS; key++)
            scores[r][key] = -INFINITY;
}

/* Adds those of a tile to the sums of a row, which count by `factor`: in the order of 16 lanes, however many there are. */
INLINE void add_probabilities(float sum[WORDS], const Floats p[TILE_PARTS], float factor) {
#pragma GCC unroll 4
    for (size_t i = 0; i < WORD_PARTS; i++) {
        const Floats first = p[i] + p[i + WORD_PARTS], second = p[i + 2 * WORD_PARTS] + p[i + 3 * WORD_PARTS];
        store_floats(sum + i * LANES, multiply_add(load_floats(sum + i * LANES), all_floats(factor), first + second));
    }
}

/* Probabilities of one row from its scores; returns the factor for what was summed before. */
INLINE float soften(Block *block, size_t row, const float scores[TILE_KEYS], Narrow out[TILE_KEYS]) {
    const float before = block->largest[row], now = fmaxf(before, largest_of(scores));
    const float factor = power_of_two(all_floats(before - now))[0];
    Floats p[TILE_PARTS];
#pragma GCC unroll 16
    for (size_t i = 0; i < TILE_PARTS; i++) {
        p[i] = power_of_two(load_floats(scores + i * LANES) - all_floats(now));
        store_narrow(out + i * LANES, p[i]);
    }
    add_probabilities(block->sum[row], p, factor);
    block->largest[row] = now;
    return factor;
}

/* Adds the values of a tile, weighted, to some vectors of the answers of `rows` queries. */
INLINE void add_values(const Attention *a, Block *block, int rows, int vectors, size_t row, size_t column,
                       const uint32_t *packed, const Narrow *p, const float factors[ATTENTION_ROWS]) {
    Floats acc[ATTENTION_ROWS][ATTENTION_VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            acc[r][v] = all_floats(factors[r]) * load_floats(&block->out[row + (size_t)r][column + (size_t)v * LANES]);
    multiply(acc, rows, vectors, p, TILE_KEYS, packed + column, a->vectors * WORDS, TILE_KEYS / 2);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            store_floats(&block->out[row + (size_t)r][column + (size_t)v * LANES], acc[r][v]);
}

/* Some queries and one tile of keys and values. */
INLINE void attend(const Attention *a, Block *block, int rows, size_t row, const uint32_t *k, const uint32_t *v,
                   size_t keys) {
    float scores[ATTENTION_ROWS][TILE_KEYS] __attribute__((aligned(64))), factors[ATTENTION_ROWS];
    Narrow p[ATTENTION_ROWS][TILE_KEYS] __attribute__((aligned(64)));
    score(a, block, rows, row, k, keys, scores);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        factors[r] = soften(block, row + (size_t)r, scores[r], p[r]);
    const size_t whole = a->vectors * WORD_PARTS;
    size_t vector = 0;
    for (; vector + ATTENTION_VECTORS <= whole; vector += ATTENTION_VECTORS)
        add_values(a, block, rows, ATTENTION_VECTORS, row, vector * LANES, v, p[0], factors);
    for (; vector < whole; vector++)
        add_values(a, block, rows, 1, row, vector * LANES, v, p[0], factors);
}

static void load_queries(const Attention *a, Block *block, const float *q, size_t count) {
    const Floats scale = all_floats(1.44269504f / sqrtf((float)a->width)); /* log2(e), for powers of two */
    for (size_t row = 0; row < count; row++, q += a->heads * a->width) {
        for (size_t i = 0; i < a->width; i += LANES)
            store_narrow(block->q[row] + i, scale * load_some(q + i, a->width - i));
        memset(block->out[row], 0, sizeof block->out[row]);
        memset(block->sum[row], 0, sizeof block->sum[row]);
        block->largest[row] = -FLT_MAX; /* no score is below it, and two of them have a distance */
    }
}

static float sum_of(const float parts[WORDS]) {
    float sums[WORDS];
    memcpy(sums, parts, sizeof sums);
    return add_by_halves(sums, WORDS);
}

static void store_answers(const Attention *a, const Block *block, float *out, size_t count) {
    for (size_t row = 0; row < count; row++, out += a->heads * a->width) {
        const float inverse = 1.0f / sum_of(block->sum[row]);
        for (size_t i = 0; i < a->width; i++)
            out[i] = inverse * block->out[row][i];
    }
}

static void all_rows(const Attention *a, Block *block, size_t count, const uint32_t *k, const uint32_t *v,
                     size_t keys) {
    size_t row = 0;
    for (; row + ATTENTION_ROWS <= count; row += ATTENTION_ROWS)
        attend(a, block, ATTENTION_ROWS, row, k, v, keys);
    for (; row < count; row++)
        attend(a, block, 1, row, k, v, keys);
}

static void query_block(void *attention, size_t index) {
    const Attention *a = attention;
    const size_t blocks = (a->queries + QUERY_BLOCK - 1) / QUERY_BLOCK;
    const size_t first = index % blocks * QUERY_BLOCK, head = index / blocks;
    const size_t count = smaller(QUERY_BLOCK, a->queries - first);
    const size_t start = ((head / a->heads * a->queries + first) * a->heads + head % a->heads) * a->width;
    const unsigned state = flush_tiny_numbers();
    Block block;
    load_queries(a, &block, a->q + start, count);
    for (size_t t = 0; t < a->tiles; t++) {
        const size_t tile = head * a->tiles + t;
        all_rows(a, &block, count, a->packed_k + tile * k_tile_words(a), a->packed_v + tile * v_tile_words(a),
                 smaller(TILE_KEYS, a->keys - t * TILE_KEYS));
    }
    store_answers(a, &block, a->out + start, count);
    restore_numbers(state);
}
