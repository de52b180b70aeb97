/* Prefill: many rows. The weights of 64 outputs are unpacked once, a slice of inputs at a time, for all rows. */

enum { SLICE = 2, SLICE_BLOCKS = SLICE * MAX_CHUNK_BLOCKS, TILE_COLUMNS = TILE_VECTORS * LANES };

#ifndef ARRANGE /* a set may multiply in another way, and let weights lie in another order for it */
#define ARRANGE transpose
#define BLOCK_SUMS block_sums
#endif

/* Weights of some chunks and 64 outputs: values for 4 inputs of each output beside each other. */
typedef struct Slice {
    uint8_t values[SLICE * CHUNK / 4][PANEL_COLUMNS * 4] __attribute__((aligned(64)));
    float scales[SLICE_BLOCKS][PANEL_COLUMNS] __attribute__((aligned(64)));
    int32_t zeros[SLICE_BLOCKS][PANEL_COLUMNS] __attribute__((aligned(64)));
    size_t column, width; /* of the outputs */
    size_t chunk, chunks; /* of the inputs */
} Slice;

/* A part of a chunk of LANES outputs; those behind the last repeat it. Even inputs stand in the low halves of bytes and
 * odd ones in the high halves, so that half the words are turned. */
INLINE void unpack(const Product *p, int bits, const Slice *slice, size_t column, size_t chunk, size_t part,
                   uint8_t (*to)[PANEL_COLUMNS * 4]) {
    const size_t left = p->blocks * p->block - (slice->chunk + chunk) * CHUNK;
    Ints v[LANES];
#pragma GCC unroll 16
    for (size_t i = 0; i < LANES; i++) {
        Ending ending;
        const Chunk start = row_start(p, bits, smaller(slice->column + column + i, p->n - 1));
        const Chunk from = complete(behind(start, bits, slice->chunk + chunk), bits, left, &ending);
        const Part values = load_part(from, bits, part);
        v[i] = (Ints)(values.even | (Bytes)((Halves)values.odd << 4));
    }
    ARRANGE(v);
#pragma GCC unroll 16
    for (size_t i = 0; i < LANES; i++) {
        const size_t word = chunk * CHUNK / 4 + 2 * (part * LANES + i);
        const Part values = split_halves((Halves)v[i]);
        memcpy(to[word] + 4 * column, &values.even, sizeof values.even);
        memcpy(to[word + 1] + 4 * column, &values.odd, sizeof values.odd);
    }
}

INLINE void unpack_slice(const Product *p, int bits, Slice *slice) {
    for (size_t c = 0; c < slice->chunks; c++)
        for (size_t column = 0; column < PANEL_COLUMNS; column += LANES)
            for (size_t part = 0; part < PARTS; part++)
                unpack(p, bits, slice, column, c, part, slice->values);
}

static void load_slice(const Product *p, Slice *slice) {
    const size_t blocks = chunk_blocks(p);
    switch (p->bits) {
    case 2: unpack_slice(p, 2, slice); break;
    case 3: unpack_slice(p, 3, slice); break;
    default: unpack_slice(p, 4, slice);
    }
    load_scales(p, slice->column, PANEL_COLUMNS, slice->chunk * blocks, slice->chunks * blocks, slice->scales[0],
                slice->zeros[0]);
}

/* Weights that all rows of a tile share: a set keeps them in registers where the compiler would load them again. */
#ifndef KEEP
#define KEEP(weights) (weights)
#endif

/* The words of one block, exactly, for a tile of rows and outputs. */
INLINE void block_sums(const int8_t *x, size_t stride, const uint8_t *values, size_t words, int rows,
                       Ints sums[TILE_ROWS][TILE_VECTORS]) {
    for (size_t first = 0; first < words; first += PARTIAL_WORDS / 2) {
        const size_t last = smaller(words, first + PARTIAL_WORDS / 2);
        Partial partial[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; v++)
                partial[r][v] = begin(sums[r][v]);
        for (size_t i = first; i < last; i += INPUT_WORDS)
#pragma GCC unroll 2
            for (size_t half = 0; half < 2; half++)
#pragma GCC unroll 2
                for (size_t word = 0; word < INPUT_WORDS; word++) {
                    const uint8_t *from = values + (2 * (i + word) + half) * PANEL_COLUMNS * 4;
                    Bytes w[TILE_VECTORS];
#pragma GCC unroll 4
                    for (size_t v = 0; v < TILE_VECTORS; v++)
                        w[v] = KEEP((Bytes)load_ints(from + v * VECTOR_BYTES));
#pragma GCC unroll 6
                    for (int r = 0; r < rows; r++) {
                        const Inputs inputs = load_inputs(x + (size_t)r * stride + half * (CHUNK / 2) + 4 * i);
#pragma GCC unroll 4
                        for (int v = 0; v < TILE_VECTORS; v++)
                            partial[r][v] = dot_word(partial[r][v], w[v], inputs, word);
                    }
                }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; v++)
                sums[r][v] = finish(partial[r][v], sums[r][v]);
    }
}

/* One block of `rows` rows and TILE_COLUMNS outputs from `column` of the slice: exact sums, then one scale each. */
INLINE void add_block(const Product *p, const Slice *slice, int rows, size_t row, size_t b, size_t column,
                      float *y, size_t stride) {
    const size_t blocks = row_blocks(p), block = slice->chunk * chunk_blocks(p) + b, words = p->block / 8;
    const size_t word = b % chunk_blocks(p) * words, chunk = b / chunk_blocks(p);
    const int8_t *x = p->rounded + (row * p->chunks + slice->chunk + chunk) * CHUNK + 4 * word;
    Ints sums[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        const size_t at = (row + (size_t)r) * blocks + block;
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++)
            sums[r][v] = begin_block(p, at, &slice->zeros[b][column + (size_t)v * LANES]);
    }
    BLOCK_SUMS(x, p->chunks * CHUNK, slice->values[chunk * CHUNK / 4 + 2 * word] + 4 * column, words, rows, sums);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        const Floats scale = all_floats(p->row_scales[(row + (size_t)r) * blocks + block]);
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) {
            const size_t lane = column + (size_t)v * LANES;
            const Floats both = scale * load_floats(&slice->scales[b][lane]);
            float *to = y + (size_t)r * stride + (size_t)v * LANES;
            store_floats(to, multiply_add(to_floats(sums[r][v]), both, load_floats(to)));
        }
    }
}

/* Some rows of the slice's outputs, `stride` apart. */
INLINE void tile(const Product *p, const Slice *slice, int rows, size_t row, float *y, size_t stride) {
    for (size_t column = 0; column < PANEL_COLUMNS; column += TILE_COLUMNS)
        for (size_t b = 0; b < slice->chunks * chunk_blocks(p); b++)
            add_block(p, slice, rows, row, b, column, y + column, stride);
}

/* A copy of the loops for each number of rows, so that sums stay in registers. */
static void add_rows(const Product *p, const Slice *slice, size_t rows, size_t row, float *y, size_t stride) {
    switch (rows) {
#if TILE_ROWS > 5
    case 6: tile(p, slice, 6, row, y, stride); break;
    case 5: tile(p, slice, 5, row, y, stride); break;
#endif
#if TILE_ROWS > 3
    case 4: tile(p, slice, 4, row, y, stride); break;
#endif
    case 3: tile(p, slice, 3, row, y, stride); break;
    case 2: tile(p, slice, 2, row, y, stride); break;
    default: tile(p, slice, 1, row, y, stride);
    }
}

/* Outputs begin as their bias or zero. */
static void start_outputs(const Product *p, const Slice *slice) {
    for (size_t row = 0; row < p->m; row++) {
        float *y = p->y + row * p->n + slice->column;
        if (p->bias)
            memcpy(y, p->bias + slice->column, slice->width * sizeof *y);
        else
            memset(y, 0, slice->width * sizeof *y);
    }
}

/* A panel that is not full has its sums in memory of its own meanwhile, which no other task writes. */
static void add_narrow(const Product *p, const Slice *slice, size_t rows, size_t row) {
    float sums[TILE_ROWS][PANEL_COLUMNS] = {{0}}, *y = p->y + row * p->n + slice->column;
    for (size_t r = 0; r < rows; r++)
        memcpy(sums[r], y + r * p->n, slice->width * sizeof *y);
    add_rows(p, slice, rows, row, sums[0], PANEL_COLUMNS);
    for (size_t r = 0; r < rows; r++)
        memcpy(y + r * p->n, sums[r], slice->width * sizeof *y);
}

static void add_slice(const Product *p, const Slice *slice) {
    for (size_t row = 0; row < p->m; row += TILE_ROWS) {
        const size_t rows = smaller(TILE_ROWS, p->m - row);
        if (slice->width == PANEL_COLUMNS)
            add_rows(p, slice, rows, row, p->y + row * p->n + slice->column, p->n);
        else
            add_narrow(p, slice, rows, row);
    }
}

static void panel(void *product, size_t index) {
    const Product local = *(const Product *)product, *p = &local; /* which no store can change */
    Slice slice = {.column = index * PANEL_COLUMNS};
    slice.width = smaller(PANEL_COLUMNS, p->n - slice.column);
    start_outputs(p, &slice);
    for (; slice.chunk < p->chunks; slice.chunk += SLICE) {
        slice.chunks = smaller(SLICE, p->chunks - slice.chunk);
        load_slice(p, &slice);
        add_slice(p, &slice);
    }
}
