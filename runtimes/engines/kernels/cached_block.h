/* Causal attention of some rows over the cache: one tile of keys at a time, with a running softmax in every range. */

/* Rows, and what is known of their answers so far; keys are of one tile, those of a value of the width side by side. */
typedef struct CachedBlock {
    uint16_t keys[MAX_WIDTH * TILE_KEYS] __attribute__((aligned(64))); /* halves, or bytes as words */
    uint16_t widened[TILE_KEYS * MAX_WIDTH] __attribute__((aligned(64))); /* values of bytes, as halves */
    float q[BLOCK_VALUES] __attribute__((aligned(64)));   /* scaled for powers of two */
    float out[BLOCK_VALUES] __attribute__((aligned(64))); /* of a range, not yet divided by the sum */
    float sum[BLOCK_ROWS][WORDS] __attribute__((aligned(64)));
    float largest[BLOCK_ROWS];
    size_t ends[BLOCK_ROWS];                  /* keys that a row sees */
    const char *values;                       /* of the tile */
    const char *next_values;                  /* of the tile behind it */
    size_t keys_first;                        /* of the tile, of all */
} CachedBlock;

enum { FEW_CACHED_ROWS = 16 }; /* up to so many, bytes are widened where they are multiplied */

/* What keys and values are widened from. */
enum Cached { HALVES, SIGNED_WORDS, SIGNED_BYTES };

INLINE size_t bytes_of(enum Cached kind) { return kind == SIGNED_BYTES ? 1 : 2; }

typedef VECTOR(int8_t, VECTOR_BYTES / 4) SignedBytes;

INLINE Floats load_cached(enum Cached kind, const void *from, size_t at) {
    if (kind == HALVES) return load_halves((const uint16_t *)from + at);
    return kind == SIGNED_WORDS ? load_int16((const int16_t *)from + at) : load_int8((const int8_t *)from + at);
}

/* New keys or values of one head in int8, by the scale of each channel. */
static void append_bytes(const float *from, size_t stride, size_t width, size_t count, const float *scales, int8_t *to) {
    const Floats rounder = all_floats(ROUNDER);
    for (size_t row = 0; row < count; row++, from += stride, to += width)
        for (size_t i = 0; i < width; i += LANES) {
            const Floats steps = within(load_floats(from + i) / load_floats(scales + i), -128.0f, 127.0f);
            const SignedBytes bytes = __builtin_convertvector((Ints)(steps + rounder) - (Ints)rounder, SignedBytes);
            memcpy(to + i, &bytes, sizeof bytes);
        }
}

/* New keys or values of one head in float16, those that are too large as the largest. */
static void append(const float *from, size_t stride, size_t width, size_t count, uint16_t *to) {
    for (size_t row = 0; row < count; row++, from += stride, to += width)
        for (size_t i = 0; i < width; i += LANES)
            store_halves(to + i, within(load_floats(from + i), -65504.0f, 65504.0f));
}

static void cached_append(void *attention, size_t index) {
    const CachedAttention *a = attention;
    const size_t row = index / a->kv_heads, head = index % a->kv_heads, stride = a->kv_heads * a->width;
    const size_t from = (row * a->queries * a->kv_heads + head) * a->width;
    const size_t to = (index * a->capacity + (size_t)a->past[row]) * a->width;
    if (a->key_scales) {
        const float *k = a->key_scales + head * a->width, *v = a->value_scales + head * a->width;
        append_bytes(a->k + from, stride, a->width, a->queries, k, (int8_t *)a->keys + to);
        append_bytes(a->v + from, stride, a->width, a->queries, v, (int8_t *)a->values + to);
        return;
    }
    append(a->k + from, stride, a->width, a->queries, (uint16_t *)a->keys + to);
    append(a->v + from, stride, a->width, a->queries, (uint16_t *)a->values + to);
}

INLINE Eight load_eight(enum Cached kind, const char *from, size_t at) {
    Eight halves;
    if (kind != HALVES) return widen_eight((const int8_t *)from + at);
    memcpy(&halves, from + 2 * at, sizeof halves);
    return halves;
}

/* A part of as many keys as there are groups, eight apart; behind the end the last one again. */
INLINE Columns load_columns(enum Cached kind, const char *keys, size_t width, size_t key, size_t count, size_t at) {
    const Eight first = load_eight(kind, keys, smaller(key, count - 1) * width + at);
    return join_groups(first, load_eight(kind, keys, smaller(key + 8, count - 1) * width + at));
}

/* The tile of keys from `keys`, of which there are `count`, some by some, while those of the next tile are fetched. */
INLINE void turn_keys(const CachedAttention *a, enum Cached kind, const char *keys, size_t count, uint16_t *out) {
    const size_t width = a->width, each = bytes_of(kind);
    const char *next = keys + TILE_KEYS * width * each;
    if (count < TILE_KEYS) memset(out, 0, TILE_KEYS * width * sizeof *out);
    for (size_t key = 0; key < count; key += 8 * GROUPS)
        for (size_t i = 0; i < width; i += 8) {
            Columns v[8];
            for (size_t at = 0; at < 64 * GROUPS * each; at += 64)
                __builtin_prefetch(next + (key * width + 8 * GROUPS * i) * each + at, 0, 2);
#pragma GCC unroll 8
            for (size_t r = 0; r < 8; r++)
                v[r] = load_columns(kind, keys, width, key + r, count, i);
            transpose_groups(v);
#pragma GCC unroll 8
            for (size_t r = 0; r < 8; r++)
                memcpy(out + (i + r) * TILE_KEYS + key, &v[r], sizeof v[r]);
        }
}

/* Fewer rows take more vectors at once, so that registers hold as many sums: each waits for the one before. */
#define MOST_VECTORS (2 * ATTENTION_VECTORS < TILE_PARTS ? 2 * ATTENTION_VECTORS : TILE_PARTS)
INLINE int vectors_for(int rows) { return rows > ATTENTION_ROWS / 2 ? ATTENTION_VECTORS : MOST_VECTORS; }

/* acc[r][v] += x[r][i] times `vectors` vectors of the cache, for `count` i. In each step, `step` bytes are fetched from
 * `next` on: read evenly and in order, memory gives them fastest. */
INLINE void multiply_cached(Floats acc[ATTENTION_ROWS][MOST_VECTORS], int rows, int vectors, const float *x,
                            size_t stride, enum Cached kind, const void *cached, size_t cached_stride, size_t count,
                            const char *next, size_t step) {
    for (size_t i = 0; i < count; i++) {
        __builtin_prefetch(next + i * step, 0, 2);
        Floats w[MOST_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            w[v] = load_cached(kind, cached, i * cached_stride + (size_t)v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                acc[r][v] = multiply_add(all_floats(x[(size_t)r * stride + i]), w[v], acc[r][v]);
    }
}

/* Scores of some rows with the tile; keys that a row does not see have the least. */
INLINE void cached_scores(const CachedAttention *a, const CachedBlock *block, enum Cached kind, int rows, size_t row,
                          float scores[ATTENTION_ROWS][TILE_KEYS]) {
    const int vectors = vectors_for(rows);
    for (size_t key = 0; key < TILE_KEYS; key += (size_t)vectors * LANES) {
        Floats acc[ATTENTION_ROWS][MOST_VECTORS] = {{{0}}};
        const enum Cached turned = kind == HALVES ? HALVES : SIGNED_WORDS;
        const size_t each = bytes_of(kind);
        const size_t step = (size_t)vectors * LANES * each / 2;
        multiply_cached(acc, rows, vectors, block->q + row * a->width, a->width, turned, block->keys + key, TILE_KEYS,
                        a->width, block->next_values + key * a->width * each / 2, step);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                store_floats(&scores[r][key + (size_t)v * LANES], acc[r][v]);
    }
    for (int r = 0; r < rows; r++) {
        const size_t end = block->ends[row + (size_t)r];
        for (size_t key = end > block->keys_first ? end - block->keys_first : 0; key < TILE_KEYS; key++)
            scores[r][key] = -INFINITY;
    }
}

INLINE float most_of(const float scores[TILE_KEYS]) {
    float most[TILE_KEYS / 2];
#pragma GCC unroll 32
    for (size_t i = 0; i < TILE_KEYS / 2; i++)
        most[i] = scores[i] > scores[i + TILE_KEYS / 2] ? scores[i] : scores[i + TILE_KEYS / 2];
#pragma GCC unroll 8
    for (size_t half = TILE_KEYS / 4; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            most[i] = most[i] > most[i + half] ? most[i] : most[i + half];
    return most[0];
}

/* Scores of a row become probabilities below the largest; what was summed before counts by a factor. */
INLINE void cached_soften(CachedBlock *block, size_t row, float largest, float factor, float scores[TILE_KEYS]) {
    Floats p[TILE_PARTS];
#pragma GCC unroll 16
    for (size_t i = 0; i < TILE_PARTS; i++) {
        p[i] = exact_power(load_floats(scores + i * LANES) - all_floats(largest));
        store_floats(scores + i * LANES, p[i]);
    }
    add_probabilities(block->sum[row], p, factor);
}

/* Probabilities of some rows; gives the factors for what was summed before. */
INLINE void soften_rows(CachedBlock *block, int rows, size_t row, float scores[ATTENTION_ROWS][TILE_KEYS],
                        float factors[LANES]) {
    Floats shifts = {0};
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        const float before = block->largest[row + (size_t)r], now = most_of(scores[r]);
        block->largest[row + (size_t)r] = now > before ? now : before;
        shifts[r] = before - block->largest[row + (size_t)r];
    }
    store_floats(factors, exact_power(shifts));
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        cached_soften(block, row + (size_t)r, block->largest[row + (size_t)r], factors[r], scores[r]);
}

/* Adds the first `count` values of the tile, weighted, to some vectors of the answers of some rows. */
INLINE void cached_values(const CachedAttention *a, CachedBlock *block, enum Cached kind, int rows, int vectors,
                          size_t row, size_t column, const float *p, const float *factors, size_t count) {
    Floats acc[ATTENTION_ROWS][MOST_VECTORS];
    float *out = block->out + row * a->width + column;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            acc[r][v] = all_floats(factors[r]) * load_floats(out + (size_t)r * a->width + (size_t)v * LANES);
    const size_t each = bytes_of(kind);
    const size_t tile = TILE_KEYS * a->width * each, step = (size_t)vectors * LANES * each / 2;
    multiply_cached(acc, rows, vectors, p, TILE_KEYS, kind, block->values + column * each, a->width, count,
                    block->next_values + tile / 2 + column * TILE_KEYS * each / 2, step);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            store_floats(out + (size_t)r * a->width + (size_t)v * LANES, acc[r][v]);
}

/* Some rows and the tile; of them, the last one sees most. */
INLINE void cached_rows(const CachedAttention *a, CachedBlock *block, enum Cached kind, int rows, size_t row) {
    float scores[ATTENTION_ROWS][TILE_KEYS] __attribute__((aligned(64))), factors[LANES];
    const size_t end = block->ends[row + (size_t)rows - 1];
    if (end <= block->keys_first) return;
    cached_scores(a, block, kind, rows, row, scores);
    soften_rows(block, rows, row, scores, factors);
    const size_t whole = a->width / LANES, count = smaller(end - block->keys_first, TILE_KEYS);
    const size_t most = (size_t)vectors_for(rows);
    size_t vector = 0;
    for (; vector + most <= whole; vector += most)
        cached_values(a, block, kind, rows, (int)most, row, vector * LANES, scores[0], factors, count);
    for (; vector < whole; vector++)
        cached_values(a, block, kind, rows, 1, row, vector * LANES, scores[0], factors, count);
}

INLINE void cached_tile(const CachedAttention *a, CachedBlock *block, enum Cached kind, size_t rows) {
    size_t row = 0;
    for (; row + ATTENTION_ROWS <= rows; row += ATTENTION_ROWS)
        cached_rows(a, block, kind, ATTENTION_ROWS, row);
    for (; row + 2 <= rows; row += 2)
        cached_rows(a, block, kind, 2, row);
    if (row < rows) cached_rows(a, block, kind, 1, row);
}

/* What was widened from bytes as halves, which hold them exactly: for many rows, once instead of for each few. */
static void widen_tile(const CachedAttention *a, CachedBlock *block, size_t count) {
    int16_t *words = (int16_t *)block->keys;
    for (size_t i = 0; i < TILE_KEYS * a->width; i += LANES)
        store_halves(block->keys + i, load_int16(words + i));
    for (size_t i = 0; i < count * a->width; i += LANES)
        store_halves(block->widened + i, load_int8((const int8_t *)block->values + i));
    block->values = (const char *)block->widened;
}

/* The rows of a block over the keys of one range; `head` counts through the batch, too. */
INLINE void attend_kind(const CachedAttention *a, CachedBlock *block, enum Cached kind, size_t head, size_t rows,
                        size_t range) {
    const size_t each = bytes_of(kind), start = head * a->capacity;
    const size_t last = smaller(block->ends[rows - 1], (range + 1) * RANGE_KEYS);
    memset(block->out, 0, rows * a->width * sizeof *block->out);
    memset(block->sum, 0, rows * sizeof *block->sum);
    for (size_t row = 0; row < rows; row++)
        block->largest[row] = -FLT_MAX; /* no score is below it, and two of them have a distance */
    for (size_t key = range * RANGE_KEYS; key < last; key += TILE_KEYS) {
        const size_t at = (start + key) * a->width * each;
        block->keys_first = key;
        block->values = a->values + at;
        block->next_values = a->values + at + TILE_KEYS * a->width * each;
        const size_t count = smaller(last - key, TILE_KEYS);
        turn_keys(a, kind, a->keys + at, count, block->keys);
        if (kind == HALVES || rows <= FEW_CACHED_ROWS) {
            cached_tile(a, block, kind, rows);
        } else {
            widen_tile(a, block, count);
            cached_tile(a, block, HALVES, rows);
        }
    }
}

static void attend_range(const CachedAttention *a, CachedBlock *block, size_t head, size_t rows, size_t range) {
    if (a->key_scales)
        attend_kind(a, block, SIGNED_BYTES, head, rows, range);
    else
        attend_kind(a, block, HALVES, head, rows, range);
}

/* Where a row's queries and answers stand. */
INLINE size_t answer_start(const CachedAttention *a, size_t head, size_t row) {
    const size_t query = head / a->kv_heads * a->queries + row / a->group;
    return ((query * a->kv_heads + head % a->kv_heads) * a->group + row % a->group) * a->width;
}

static void load_rows(const CachedAttention *a, CachedBlock *block, size_t head, size_t first, size_t rows) {
    const Floats scale = all_floats(1.44269504f / sqrtf((float)a->width)); /* log2(e), for powers of two */
    const float *steps = a->key_scales ? a->key_scales + head % a->kv_heads * a->width : NULL;
    for (size_t row = 0; row < rows; row++) {
        const float *q = a->q + answer_start(a, head, first + row);
        block->ends[row] = (size_t)a->past[head / a->kv_heads] + (first + row) / a->group + 1;
        for (size_t i = 0; i < a->width; i += LANES) {
            const Floats scaled = scale * load_floats(q + i);
            store_floats(block->q + row * a->width + i, steps ? scaled * load_floats(steps + i) : scaled);
        }
    }
}

/* What is known of a row behind some ranges. */
typedef struct Merged {
    float out[MAX_WIDTH] __attribute__((aligned(64)));
    float sum, largest;
} Merged;

INLINE Merged *begin_merged(Merged *merged, size_t width) {
    memset(merged->out, 0, width * sizeof *merged->out);
    merged->sum = 0, merged->largest = -FLT_MAX;
    return merged;
}

/* Adds a range: its answer, not yet divided by the sum. */
INLINE void merge(Merged *to, const float *out, float sum, float largest, size_t width) {
    const float now = fmaxf(to->largest, largest);
    const Floats kept = exact_power(all_floats(to->largest - now)), added = exact_power(all_floats(largest - now));
    to->sum = multiply_add(all_floats(to->sum), kept, all_floats(sum) * added)[0];
    to->largest = now;
    for (size_t i = 0; i < width; i += LANES)
        store_floats(to->out + i, multiply_add(load_floats(to->out + i), kept, load_floats(out + i) * added));
}

INLINE void store_merged(const CachedAttention *a, const Merged *merged, size_t head, size_t row) {
    const Floats inverse = all_floats(1.0f / merged->sum);
    const float *steps = a->value_scales ? a->value_scales + head % a->kv_heads * a->width : NULL;
    float *out = a->out + answer_start(a, head, row);
    for (size_t i = 0; i < a->width; i += LANES) {
        const Floats made = inverse * load_floats(merged->out + i);
        store_floats(out + i, steps ? made * load_floats(steps + i) : made);
    }
}

/* All rows over one range, for cached_merge: of each row the answer, its sum and the largest score. */
static void cached_range(void *attention, size_t index) {
    const CachedAttention *a = attention;
    const size_t head = index / a->ranges;
    float *to = a->partial + index * partial_size(a);
    CachedBlock block;
    load_rows(a, &block, head, 0, a->rows);
    attend_range(a, &block, head, a->rows, index % a->ranges);
    for (size_t row = 0; row < a->rows; row++, to += a->width + 2) {
        memcpy(to, block.out + row * a->width, a->width * sizeof *to);
        to[a->width] = sum_of(block.sum[row]), to[a->width + 1] = block.largest[row];
    }
}

/* The answers of one head from those of the ranges. */
static void cached_merge(void *attention, size_t head) {
    const CachedAttention *a = attention;
    Merged merged;
    for (size_t row = 0; row < a->rows; row++) {
        const float *from = a->partial + head * a->ranges * partial_size(a) + row * (a->width + 2);
        begin_merged(&merged, a->width);
        for (size_t range = 0; range < a->ranges; range++, from += partial_size(a))
            merge(&merged, from, from[a->width], from[a->width + 1], a->width);
        store_merged(a, &merged, head, row);
    }
}

/* A block of many rows over all ranges. */
static void cached_block(void *attention, size_t index) {
    const CachedAttention *a = attention;
    const size_t blocks = (a->rows + a->block_rows - 1) / a->block_rows, head = index / blocks;
    const size_t first = index % blocks * a->block_rows, rows = smaller(a->block_rows, a->rows - first);
    Merged merged[BLOCK_ROWS];
    CachedBlock block;
    load_rows(a, &block, head, first, rows);
    for (size_t row = 0; row < rows; row++)
        begin_merged(&merged[row], a->width);
    for (size_t range = 0; range * RANGE_KEYS < block.ends[rows - 1]; range++) {
        attend_range(a, &block, head, rows, range);
        for (size_t row = 0; row < rows; row++)
            merge(&merged[row], block.out + row * a->width, sum_of(block.sum[row]), block.largest[row], a->width);
    }
    for (size_t row = 0; row < rows; row++)
        store_merged(a, &merged[row], head, first + row);
}
