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

static size_t slice_blocks(const Product *p, const Slice *slice) { return slice->chunks * CHUNK / p->block; }

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

/* The same of weights of 8 bits, in order. Reads no byte behind the end of a row. */
INLINE void unpack_bytes(const Product *p, const Slice *slice, size_t column, size_t chunk, size_t part,
                         uint8_t (*to)[PANEL_COLUMNS * 4]) {
    const size_t bytes = p->is_signed ? p->k : row_bytes(p, 8), first = (slice->chunk + chunk) * CHUNK + part * VECTOR_BYTES;
    const Bytes middle = (Bytes){0} + (uint8_t)(SIGNED_WEIGHTS == p->is_signed ? 0 : 128);
    Ints v[LANES];
#pragma GCC unroll 16
    for (size_t i = 0; i < LANES; i++) {
        const uint8_t *row = p->weights + smaller(slice->column + column + i, p->n - 1) * bytes;
        uint8_t ending[VECTOR_BYTES] = {0};
        const uint8_t *from = row + first;
        if (first + VECTOR_BYTES > bytes) {
            if (first < bytes) memcpy(ending, from, bytes - first);
            from = ending;
        }
        v[i] = (Ints)((Bytes)load_ints(from) ^ middle);
    }
    transpose(v);
#pragma GCC unroll 16
    for (size_t i = 0; i < LANES; i++)
        memcpy(to[chunk * CHUNK / 4 + part * LANES + i] + 4 * column, &v[i], sizeof v[i]);
}

static void load_bytes(const Product *p, Slice *slice) {
    for (size_t c = 0; c < slice->chunks; c++)
        for (size_t column = 0; column < PANEL_COLUMNS; column += LANES)
            for (size_t part = 0; part < 2 * PARTS; part++)
                unpack_bytes(p, slice, column, c, part, slice->values);
}

INLINE void unpack_slice(const Product *p, int bits, Slice *slice) {
    for (size_t c = 0; c < slice->chunks; c++)
        for (size_t column = 0; column < PANEL_COLUMNS; column += LANES)
            for (size_t part = 0; part < PARTS; part++)
                unpack(p, bits, slice, column, c, part, slice->values);
}

/* One scale for each row of weights. */
static void load_row_scales(const Product *p, Slice *slice) {
    for (size_t i = 0; i < slice->width; i += 8) {
        Eight halves = {0};
        memcpy(&halves, p->scales + slice->column + i, smaller(8, slice->width - i) * sizeof *p->scales);
        for (size_t b = 0; b < slice_blocks(p, slice); b++)
            store_eight_halves(&slice->scales[b][i], halves);
    }
}

static void load_slice(const Product *p, Slice *slice) {
    switch (p->bits) {
    case 8: load_bytes(p, slice); break;
    case 2: unpack_slice(p, 2, slice); break;
    case 3: unpack_slice(p, 3, slice); break;
    default: unpack_slice(p, 4, slice);
    }
    if (p->is_signed) {
        load_row_scales(p, slice);
        return;
    }
    load_scales(p, slice->column, PANEL_COLUMNS, slice->chunk * CHUNK / p->block, slice_blocks(p, slice),
                slice->scales[0], slice->zeros[0]);
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

/* The sum with products of four weights of 8 bits a lane. */
#ifndef DOT_BYTES
#define DOT_BYTES(sum, weights, inputs, word) finish(dot_word(begin(sum), weights, inputs, word), sum)
#endif

/* The same with weights of 8 bits, whose words are in order. */
INLINE void byte_sums(const int8_t *x, size_t stride, const uint8_t *values, size_t words, int rows,
                      Ints sums[TILE_ROWS][TILE_VECTORS]) {
#pragma GCC unroll 2
    for (size_t i = 0; i < words; i += INPUT_WORDS)
#pragma GCC unroll 2
        for (size_t word = 0; word < INPUT_WORDS; word++) {
            Bytes w[TILE_VECTORS];
#pragma GCC unroll 4
            for (size_t v = 0; v < TILE_VECTORS; v++)
                w[v] = KEEP((Bytes)load_ints(values + (i + word) * PANEL_COLUMNS * 4 + v * VECTOR_BYTES));
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                const Inputs inputs = load_inputs(x + (size_t)r * stride + 4 * i);
#pragma GCC unroll 4
                for (int v = 0; v < TILE_VECTORS; v++)
                    sums[r][v] = DOT_BYTES(sums[r][v], w[v], inputs, word);
            }
        }
}

/* One block of `rows` rows and TILE_COLUMNS outputs from `column` of the slice: exact sums, then one scale each. */
INLINE void add_block(const Product *p, const Slice *slice, int bytes, int rows, size_t row, size_t b, size_t column,
                      float *y, size_t apart) {
    const size_t blocks = row_blocks(p), block = slice->chunk * CHUNK / p->block + b, stride = p->chunks * CHUNK;
    const int8_t *x = p->rounded + row * stride + slice->chunk * CHUNK;
    Ints sums[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        const size_t at = (row + (size_t)r) * blocks + block;
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++)
            sums[r][v] = begin_block(p, at, &slice->zeros[b][column + (size_t)v * LANES]);
    }
    if (bytes) {
        byte_sums(x + b * p->block, stride, slice->values[b * p->block / 4] + 4 * column, p->block / 4, rows, sums);
    } else {
        const size_t chunk = b * p->block / CHUNK, words = p->block / 8, word = b % chunk_blocks(p) * words;
        const uint8_t *values = slice->values[chunk * CHUNK / 4 + 2 * word] + 4 * column;
        BLOCK_SUMS(x + chunk * CHUNK + 4 * word, stride, values, words, rows, sums);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        const Floats scale = all_floats(p->row_scales[(row + (size_t)r) * blocks + block]);
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) {
            const size_t lane = column + (size_t)v * LANES;
            const Floats both = scale * load_floats(&slice->scales[b][lane]);
            float *to = y + (size_t)r * apart + (size_t)v * LANES;
            store_floats(to, multiply_add(to_floats(sums[r][v]), both, load_floats(to)));
        }
    }
}

#ifndef OWN_SUMS /* whether a tile's sums of floats, too, have registers of their own while it goes through a slice */
#define OWN_SUMS 0
#endif

/* Some rows of the slice's outputs, which are `apart`. */
INLINE void tile(const Product *p, const Slice *slice, int bytes, int rows, size_t row, float *y, size_t apart) {
    for (size_t column = 0; column < PANEL_COLUMNS; column += TILE_COLUMNS, y += TILE_COLUMNS) {
        float own[TILE_ROWS][TILE_COLUMNS], *sums = OWN_SUMS ? own[0] : y;
        const size_t stride = OWN_SUMS ? TILE_COLUMNS : apart;
#pragma GCC unroll 6
        for (int r = 0; r < rows && OWN_SUMS; r++)
            memcpy(own[r], y + (size_t)r * apart, sizeof own[r]);
        for (size_t b = 0; b < slice_blocks(p, slice); b++)
            add_block(p, slice, bytes, rows, row, b, column, sums, stride);
#pragma GCC unroll 6
        for (int r = 0; r < rows && OWN_SUMS; r++)
            memcpy(y + (size_t)r * apart, own[r], sizeof own[r]);
    }
}

/* A copy of the loops for each number of rows, so that sums stay in registers. */
INLINE void tile_of(const Product *p, const Slice *slice, int bytes, size_t rows, size_t row, float *y,
                    size_t apart) {
    switch (rows) {
#if TILE_ROWS > 5
    case 6: tile(p, slice, bytes, 6, row, y, apart); break;
    case 5: tile(p, slice, bytes, 5, row, y, apart); break;
#endif
#if TILE_ROWS > 3
    case 4: tile(p, slice, bytes, 4, row, y, apart); break;
#endif
    case 3: tile(p, slice, bytes, 3, row, y, apart); break;
    case 2: tile(p, slice, bytes, 2, row, y, apart); break;
    default: tile(p, slice, bytes, 1, row, y, apart);
    }
}

static void add_rows(const Product *p, const Slice *slice, size_t rows, size_t row, float *y, size_t apart) {
    if (p->bits == 8)
        tile_of(p, slice, 1, rows, row, y, apart);
    else
        tile_of(p, slice, 0, rows, row, y, apart);
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
