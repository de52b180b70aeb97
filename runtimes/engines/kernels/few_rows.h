/* Decoding: a few rows, as fast as memory gives the weights. The weights of 16 outputs meet the inputs four rows of
 * weights at a time, which leaves whole numbers; then these are scaled and summed for all 16 side by side. */

enum { GROUP = 16, QUADS = GROUP / 4 };
enum { SEGMENT = 32, SEGMENT_BLOCKS = SEGMENT * MAX_CHUNK_BLOCKS, SUMS = 2 * SEGMENT_BLOCKS };

/* Up to SEGMENT chunks of 16 outputs, fewer where the sums of all rows would not fit. */
typedef struct Segment {
    int32_t sums[SUMS][GROUP] __attribute__((aligned(64))); /* [rows, chunks, pieces] */
    float scales[SEGMENT_BLOCKS][GROUP] __attribute__((aligned(64)));
    int32_t zeros[SEGMENT_BLOCKS][GROUP] __attribute__((aligned(64)));
    size_t column, chunk, chunks;
} Segment;

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

/* A chunk has so many sums of each output: of 32 inputs, or of a block if that is smaller. */
INLINE size_t pieces(const Product *p) { return CHUNK / smaller(p->block, 32); }

/* A part of a chunk of four rows of weights; `halves` if blocks are of 16 inputs. */
INLINE void add_part(const Product *p, int bits, int halves, const Chunk from[4], size_t c, size_t part, Segment *s,
                     size_t quad) {
    const size_t in_chunk = halves ? 8 : 4, piece = c * in_chunk + part * in_chunk / PARTS;
    const int8_t *x = p->rounded + (s->chunk + c) * CHUNK + part * VECTOR_BYTES;
    int32_t *to = &s->sums[piece][4 * quad];
    Part w[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        w[i] = load_part(from[i], bits, part);
    for (size_t r = 0; r < p->m; r++, x += p->chunks * CHUNK, to += s->chunks * in_chunk * GROUP) {
        const Ints even = load_ints(x), odd = load_ints(x + CHUNK / 2), none = {0};
        Ints v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            v[i] = finish(dot(dot(begin(none), w[i].even, even), w[i].odd, odd), none);
        if (halves) {
            store_quads(first_sums(v[0], v[1], v[2], v[3]), to, 2 * GROUP);
            store_quads(second_sums(v[0], v[1], v[2], v[3]), to + GROUP, 2 * GROUP);
        } else {
            store_quads(QUAD_SUMS(v[0], v[1], v[2], v[3]), to, GROUP);
        }
    }
}

/* A part of a chunk of four rows of weights where there is one row of inputs: sums run on through the segment, so that
 * none begins at zero again, and those at the end of each block are kept. Returns where the next ones go. */
INLINE int32_t *run_on(const Product *p, int bits, const Chunk from[4], const int8_t *x, size_t part, Ints sums[4],
                       int32_t *to) {
    const Ints even = load_ints(x), odd = load_ints(x + CHUNK / 2);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const Part w = load_part(from[i], bits, part);
        sums[i] = finish(dot(dot(begin(sums[i]), w.even, even), w.odd, odd), sums[i]);
    }
    if ((part + 1) * 2 * VECTOR_BYTES & (p->block - 1)) return to;
    store_quads(QUAD_SUMS(sums[0], sums[1], sums[2], sums[3]), to, GROUP);
    return to + GROUP;
}

/* Where a vector is not longer than what a block has at least. */
INLINE int runs_on(const Product *p) { return VECTOR_BYTES == 16 && p->m == 1 && p->block >= 32; }

/* A chunk of four rows of weights; where it is not whole it is copied to `endings`. */
INLINE void find_chunks(const Product *p, int bits, size_t column, size_t chunk, Ending endings[4], Chunk from[4]) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++)
        from[i] = find_chunk(p, bits, smaller(column + i, p->n - 1), chunk, &endings[i]);
}

/* The next four rows are fetched meanwhile, one behind the other: so memory gives them fastest. */
INLINE void add_quad(const Product *p, int bits, int halves, int one, Segment *s, size_t quad) {
    const size_t column = s->column + 4 * quad, chunks = s->chunks, bytes = row_bytes(p, bits);
    const size_t whole = p->blocks * p->block / CHUNK - s->chunk; /* only the chunk behind these may be shorter */
    const uint8_t *ahead = p->weights + (column + 4) * bytes + s->chunk * CHUNK * (size_t)bits / 8;
    const int8_t *x = p->rounded + s->chunk * CHUNK;
    Ending endings[4];
    Chunk from[4];
    Ints sums[4] = {{0}};
    int32_t *to = &s->sums[0][4 * quad];
    find_chunks(p, bits, column, s->chunk, endings, from);
    for (size_t c = 0, next = 0; c < chunks; c++) {
        if (__builtin_expect(c && c == whole, 0)) find_chunks(p, bits, column, s->chunk + c, endings, from);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            __builtin_prefetch(ahead + next * CHUNK * (size_t)bits / 8, 0, 3);
            if (++next == chunks) next = 0, ahead += bytes;
        }
#pragma GCC unroll 4
        for (size_t part = 0; part < PARTS; part++)
            if (one)
                to = run_on(p, bits, from, x + c * CHUNK + part * VECTOR_BYTES, part, sums, to);
            else
                add_part(p, bits, halves, from, c, part, s, quad);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++)
            from[i] = next_chunk(from[i], bits);
    }
}

INLINE void add_quads(const Product *p, int bits, Segment *s) {
    for (size_t quad = 0; quad < QUADS; quad++)
        if (runs_on(p))
            add_quad(p, bits, 0, 1, s, quad);
        else if (p->block < 32)
            add_quad(p, bits, 1, 0, s, quad);
        else
            add_quad(p, bits, 0, 0, s, quad);
}

/* Adds the chunks to the sums of 16 outputs of one row; the exact sum of a block is in `each` pieces, or, of sums that
 * run on, what is more than in the block before. */
INLINE void scale_row(const Product *p, size_t each, int one, const Segment *s, size_t r, float y[GROUP]) {
    const size_t blocks = s->chunks * chunk_blocks(p), first = r * row_blocks(p) + s->chunk * chunk_blocks(p);
    const int32_t(*parts)[GROUP] = s->sums + r * blocks * each;
    Floats sums[GROUP / LANES];
    Ints before[GROUP / LANES] = {{0}};
    memcpy(sums, y, sizeof sums);
    for (size_t b = 0; b < blocks; b++) {
        const Floats scale = all_floats(p->row_scales[first + b]);
#pragma GCC unroll 4
        for (size_t h = 0; h < GROUP / LANES; h++) {
            Ints sum = begin_block(p, first + b, &s->zeros[b][h * LANES]);
#pragma GCC unroll 4
            for (size_t i = 0; i < each; i++)
                sum += load_ints(&parts[b * each + i][h * LANES]);
            if (one) {
                sum -= before[h];
                before[h] = load_ints(&parts[b][h * LANES]);
            }
            sums[h] = multiply_add(to_floats(sum), scale * load_floats(&s->scales[b][h * LANES]), sums[h]);
        }
    }
    memcpy(y, sums, sizeof sums);
}

static void scale_rows(const Product *p, const Segment *s, float y[FEW_ROWS][GROUP]) {
    for (size_t r = 0; r < p->m; r++)
        switch (runs_on(p) ? 0 : p->block) {
        case 0: scale_row(p, 1, 1, s, r, y[r]); break;
        case 128: scale_row(p, 4, 0, s, r, y[r]); break;
        case 64: scale_row(p, 2, 0, s, r, y[r]); break;
        default: scale_row(p, 1, 0, s, r, y[r]);
        }
}

static void add_segment(const Product *p, Segment *s, float y[FEW_ROWS][GROUP]) {
    const size_t blocks = chunk_blocks(p), scales = GROUP * p->blocks;
    load_scales(p, s->column, GROUP, s->chunk * blocks, s->chunks * blocks, s->scales[0], s->zeros[0]);
    for (size_t i = 0; i < scales; i += 32)
        __builtin_prefetch(p->scales + s->column * p->blocks + scales + i); /* the next ones */
    switch (p->bits) {
    case 2: add_quads(p, 2, s); break;
    case 3: add_quads(p, 3, s); break;
    default: add_quads(p, 4, s);
    }
    scale_rows(p, s, y);
}

static void few_rows(void *product, size_t index) {
    const Product local = *(const Product *)product, *p = &local; /* which no store can change */
    const size_t first = index * FEW_ROWS_COLUMNS, last = smaller(p->n, first + FEW_ROWS_COLUMNS);
    const size_t most = smaller(SEGMENT, SUMS / pieces(p) / p->m / 2 * 2);
    Segment s;
    for (s.column = first; s.column < last; s.column += GROUP) {
        const size_t width = smaller(GROUP, p->n - s.column);
        float y[FEW_ROWS][GROUP] = {{0}};
        for (size_t r = 0; r < p->m && p->bias; r++)
            memcpy(y[r], p->bias + s.column, width * sizeof(float));
        for (s.chunk = 0; s.chunk < p->chunks; s.chunk += most) {
            s.chunks = smaller(most, p->chunks - s.chunk);
            add_segment(p, &s, y);
        }
        for (size_t r = 0; r < p->m; r++)
            memcpy(p->y + r * p->n + s.column, y[r], width * sizeof(float));
    }
}
