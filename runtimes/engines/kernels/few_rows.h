/* Decoding: a few rows, as fast as memory gives the weights. A chunk of 16 outputs at a time: weights of four outputs
 * together meet the inputs, which leaves whole numbers, and these are turned, scaled and summed for all 16 side by side.
 * Nothing waits for memory in between: what comes next is fetched at the same rate all the time. */

enum { GROUP = 16, QUADS = GROUP / 4, TURNED = 8, PART_PIECES = 4 / PARTS };

/* What a chunk gives each row: of every 32 inputs, or of both halves of them, four sums of each quad of outputs. */
typedef Ints Quads[2 * PARTS][QUADS];

/* 16 outputs of some rows. */
typedef struct Group {
    Quads sums[FEW_ROWS]; /* of one chunk */
    float scales[TURNED][GROUP] __attribute__((aligned(64))); /* of the next blocks */
    int32_t zeros[TURNED][GROUP] __attribute__((aligned(64)));
    float y[FEW_ROWS][GROUP] __attribute__((aligned(64)));
    Chunk start[GROUP]; /* of the rows of weights */
    size_t column;
} Group;

#ifndef QUAD_SUMS
/* The sum of each 16 bytes of four vectors, side by side. */
INLINE Ints quad_sums(Ints a, Ints b, Ints c, Ints d) {
    const Ints ab = zip_low(a, b) + zip_high(a, b), cd = zip_low(c, d) + zip_high(c, d);
    return pair_low(ab, cd) + pair_high(ab, cd);
}
#define QUAD_SUMS quad_sums
#endif

/* Of each 8 bytes: the sums of the first ones, and of the second ones. */
INLINE Ints first_sums(Ints a, Ints b, Ints c, Ints d) {
    const Ints ab = zip_low(a, b), cd = zip_low(c, d);
    return pair_low(ab, cd) + pair_high(ab, cd);
}
INLINE Ints second_sums(Ints a, Ints b, Ints c, Ints d) {
    const Ints ab = zip_high(a, b), cd = zip_high(c, d);
    return pair_low(ab, cd) + pair_high(ab, cd);
}

/* Whether sums of one row run on through the parts of a chunk, so that none begins at zero again. What a block has is then
 * what its last part has more than that of the block before. Where a vector has no more inputs than a block. */
INLINE int runs_on(size_t in_chunk, size_t rows) { return VECTOR_BYTES == 16 && in_chunk < 8 && rows == 1; }

/* A part of a chunk of four rows of weights, times one row: the sums run on, and are kept at the end of a block. */
INLINE void run_on(int bits, size_t in_chunk, const Chunk from[4], const int8_t *x, size_t part, Ints sums[4], Quads to,
                   size_t quad) {
    const Ints even = load_ints(x), odd = load_ints(x + CHUNK / 2);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const Part w = load_part(from[i], bits, part);
        sums[i] = finish(dot(dot(begin(sums[i]), w.even, even), w.odd, odd), sums[i]);
    }
    if ((part + 1) * in_chunk % PARTS == 0) to[2 * part][quad] = QUAD_SUMS(sums[0], sums[1], sums[2], sums[3]);
}

/* A part of a chunk of four rows of weights, times `rows` rows; `halves` if blocks are of 16 inputs. */
INLINE void add_part(const Product *p, int bits, int halves, size_t rows, const Chunk from[4], const int8_t *x,
                     size_t part, Quads *to, size_t quad) {
    Part w[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        w[i] = load_part(from[i], bits, part);
    for (size_t r = 0; r < rows; r++, x += p->chunks * CHUNK) {
        const Ints even = load_ints(x), odd = load_ints(x + CHUNK / 2), none = {0};
        Ints v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            v[i] = finish(dot(dot(begin(none), w[i].even, even), w[i].odd, odd), none);
        if (halves) {
            to[r][2 * part][quad] = first_sums(v[0], v[1], v[2], v[3]);
            to[r][2 * part + 1][quad] = second_sums(v[0], v[1], v[2], v[3]);
        } else {
            to[r][2 * part][quad] = QUAD_SUMS(v[0], v[1], v[2], v[3]);
        }
    }
}

/* The quads of a part of a chunk to its pieces, every `stride`: all 16 outputs beside each other. */
INLINE void turn_quads(const Ints q[QUADS], Ints to[][GROUP / LANES], size_t stride) {
#if VECTOR_BYTES == 64
    const Ints a = PAIRS(q[0], q[1], 0, 1, 8, 9, 2, 3, 10, 11), b = PAIRS(q[0], q[1], 4, 5, 12, 13, 6, 7, 14, 15);
    const Ints c = PAIRS(q[2], q[3], 0, 1, 8, 9, 2, 3, 10, 11), d = PAIRS(q[2], q[3], 4, 5, 12, 13, 6, 7, 14, 15);
    to[0][0] = PAIRS(a, c, 0, 1, 2, 3, 8, 9, 10, 11);
    to[stride][0] = PAIRS(a, c, 4, 5, 6, 7, 12, 13, 14, 15);
    to[2 * stride][0] = PAIRS(b, d, 0, 1, 2, 3, 8, 9, 10, 11);
    to[3 * stride][0] = PAIRS(b, d, 4, 5, 6, 7, 12, 13, 14, 15);
#elif VECTOR_BYTES == 32
    to[0][0] = PAIRS(q[0], q[1], 0, 1, 4, 5);
    to[0][1] = PAIRS(q[2], q[3], 0, 1, 4, 5);
    to[stride][0] = PAIRS(q[0], q[1], 2, 3, 6, 7);
    to[stride][1] = PAIRS(q[2], q[3], 2, 3, 6, 7);
#else
    (void)stride;
    memcpy(to[0], q, QUADS * sizeof *q);
#endif
}

/* One block of 16 outputs of one row, whose exact sum is in `each` pieces, less what is in `before`. */
INLINE void scale_block(const Product *p, const Group *g, size_t each, size_t b, size_t at, Ints pieces[][GROUP / LANES],
                        const Ints *before, Floats y[GROUP / LANES]) {
    const Floats scale = all_floats(p->row_scales[at]);
#pragma GCC unroll 4
    for (size_t v = 0; v < GROUP / LANES; v++) {
        Ints sum = begin_block(p, at, &g->zeros[b][v * LANES]);
#pragma GCC unroll 4
        for (size_t i = 0; i < each; i++)
            sum += pieces[i][v];
        if (before) sum -= before[v];
        y[v] = multiply_add(to_floats(sum), scale * load_floats(&g->scales[b][v * LANES]), y[v]);
    }
}

/* Adds chunk `c`, of `in_chunk` blocks, to the sums of 16 outputs of one row. */
INLINE void scale_chunk(const Product *p, size_t in_chunk, int running, Group *g, size_t r, size_t c) {
    const size_t halves = in_chunk == 8, each = in_chunk < 4 ? 4 / in_chunk : 1, last = running ? each - 1 : 0;
    Ints pieces[8][GROUP / LANES];
    Floats y[GROUP / LANES];
    memcpy(y, g->y[r], sizeof y);
#pragma GCC unroll 4
    for (size_t part = last; part < PARTS; part += 1 + last)
#pragma GCC unroll 2
        for (size_t half = 0; half <= halves; half++)
            turn_quads(g->sums[r][2 * part + half], &pieces[part * PART_PIECES * (1 + halves) + half], 1 + halves);
#pragma GCC unroll 8
    for (size_t b = 0; b < in_chunk; b++)
        scale_block(p, g, each - last, c * in_chunk % TURNED + b, r * row_blocks(p) + c * in_chunk + b,
                    pieces + b * each + last, running && b ? pieces[b * each - 1] : NULL, y);
    memcpy(g->y[r], y, sizeof y);
}

/* A chunk of 16 outputs; `left` inputs of it are there. The next 16 outputs are fetched meanwhile, as they lie, which is
 * how memory gives them fastest, and not into the first cache, which these fill. */
INLINE void add_chunk(const Product *p, int bits, size_t in_chunk, size_t rows, Group *g, size_t c, size_t left) {
    const size_t bytes = CHUNK * (size_t)bits / 8;
    const int running = runs_on(in_chunk, rows);
    const uint8_t *ahead = p->weights + (g->column + GROUP) * row_bytes(p, bits) + c * GROUP * bytes;
    const uint8_t *scales = (const uint8_t *)(p->scales + (g->column + GROUP) * p->blocks + c * GROUP * in_chunk);
    for (size_t i = 0; i < GROUP * in_chunk * 2; i += 64) /* a cache line */
        __builtin_prefetch(scales + i, 0, 2);
    for (size_t quad = 0; quad < QUADS; quad++) {
        Chunk from[4];
        Ending endings[4];
        Ints sums[4] = {{0}};
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            __builtin_prefetch(ahead + (4 * quad + i) * bytes, 0, 2);
            from[i] = complete(behind(g->start[4 * quad + i], bits, c), bits, left, &endings[i]);
        }
#pragma GCC unroll 4
        for (size_t part = 0; part < PARTS; part++) {
            const int8_t *x = p->rounded + c * CHUNK + part * VECTOR_BYTES;
            if (running)
                run_on(bits, in_chunk, from, x, part, sums, g->sums[0], quad);
            else
                add_part(p, bits, in_chunk == 8, rows, from, x, part, g->sums, quad);
        }
    }
    for (size_t r = 0; r < rows; r++)
        scale_chunk(p, in_chunk, running, g, r, c);
}

INLINE void add_group(const Product *p, int bits, size_t in_chunk, size_t rows, Group *g) {
    const size_t inputs = p->blocks * p->block;
    for (size_t i = 0; i < GROUP; i++)
        g->start[i] = row_start(p, bits, smaller(g->column + i, p->n - 1));
    for (size_t c = 0; c < p->chunks; c++) {
        if (c * in_chunk % TURNED == 0)
            load_scales(p, g->column, GROUP, c * in_chunk, TURNED, g->scales[0], g->zeros[0]);
        add_chunk(p, bits, in_chunk, rows, g, c, inputs - c * CHUNK);
    }
}

/* One row is what decoding has: a copy of the loops for it. */
INLINE void add_rows_of(const Product *p, int bits, size_t in_chunk, Group *g) {
    if (p->m == 1)
        add_group(p, bits, in_chunk, 1, g);
    else
        add_group(p, bits, in_chunk, p->m, g);
}

INLINE void add_blocks_of(const Product *p, int bits, Group *g) {
    switch (p->block) {
    case 128: add_rows_of(p, bits, 1, g); break;
    case 64: add_rows_of(p, bits, 2, g); break;
    case 32: add_rows_of(p, bits, 4, g); break;
    default: add_rows_of(p, bits, 8, g);
    }
}

static void add_bits_of(const Product *p, Group *g) {
    switch (p->bits) {
    case 2: add_blocks_of(p, 2, g); break;
    case 3: add_blocks_of(p, 3, g); break;
    default: add_blocks_of(p, 4, g);
    }
}

static void few_rows(void *product, size_t index) {
    const Product local = *(const Product *)product, *p = &local; /* which no store can change */
    const size_t first = index * FEW_ROWS_COLUMNS, last = smaller(p->n, first + FEW_ROWS_COLUMNS);
    Group g;
    for (g.column = first; g.column < last; g.column += GROUP) {
        const size_t width = smaller(GROUP, p->n - g.column);
        memset(g.y, 0, sizeof g.y);
        for (size_t r = 0; r < p->m && p->bias; r++)
            memcpy(g.y[r], p->bias + g.column, width * sizeof(float));
        add_bits_of(p, &g);
        for (size_t r = 0; r < p->m; r++)
            memcpy(p->y + r * p->n + g.column, g.y[r], width * sizeof(float));
    }
}
