/* Loads a chunk of weights of 2, 3 or 4 bits, a vector after the other: the one place that knows how they lie. */

enum { PARTS = CHUNK / 2 / VECTOR_BYTES };

/* The values of a part of a chunk, a byte each. Those behind the end of the row meet activations of zero. */
typedef struct Part {
    Bytes even, odd; /* inputs */
} Part;

/* Where the bytes of a chunk lie. */
typedef struct Chunk {
    const uint8_t *low, *tops; /* 4 or 2 bits of each input; of 3 bits the low two, and the top ones */
} Chunk;

/* The end of a row, from where all bytes of a chunk may be read. */
typedef struct Ending {
    uint8_t low[CHUNK / 2], tops[CHUNK / 8];
} Ending;

INLINE size_t low_bits(int bits) { return bits == 4 ? 4 : 2; }

INLINE Chunk row_start(const Product *p, int bits, size_t row) {
    const uint8_t *start = p->weights + row * row_bytes(p, bits);
    return (Chunk){start, start + p->blocks * p->block / 4};
}

/* The chunk that lies `count` chunks behind in the same row. */
INLINE Chunk behind(Chunk chunk, int bits, size_t count) {
    return (Chunk){chunk.low + count * CHUNK * low_bits(bits) / 8, chunk.tops + count * CHUNK / 8};
}

/* A chunk of which `left` inputs are there. Only the last one of a row may be shorter; it is copied to `ending`. */
INLINE Chunk complete(Chunk chunk, int bits, size_t left, Ending *ending) {
    if (left >= CHUNK) return chunk;
    memset(ending, 0, sizeof *ending);
    memcpy(ending->low, chunk.low, left * low_bits(bits) / 8);
    if (bits == 3) memcpy(ending->tops, chunk.tops, left / 8);
    return (Chunk){ending->low, ending->tops};
}

#ifndef HIGH_HALVES /* where bytes cannot be shifted */
#define HIGH_HALVES(packed) ((Bytes)((packed) >> 4) & 15)
#endif

INLINE Part split_halves(Halves packed) { return (Part){(Bytes)packed & 15, HIGH_HALVES(packed)}; }

/* Four inputs of two bits in each half: 0 and 2 in its low byte's low bits, 1 and 3 above them. */
INLINE Part split_quarters(Halves words) {
    const Halves spread = words | words << 4; /* inputs 0 and 1, then 2 and 3 */
    return (Part){(Bytes)spread & 3, (Bytes)(spread >> 2) & 3};
}

/* Adds the top bits of 3: `eights` has those of eight inputs in each byte, and each byte four times. */
INLINE Part add_tops(Part part, Bytes eights) {
    const Bytes even = (Bytes)((Words){0} + 0x40100401u), odd = even << 1; /* the bits 0, 2, 4, 6 and 1, 3, 5, 7 */
    return (Part){part.even | ((Bytes)((eights & even) == even) & 4), part.odd | ((Bytes)((eights & odd) == odd) & 4)};
}

INLINE Part load_part(Chunk chunk, int bits, size_t part) {
    if (bits == 4) return split_halves((Halves)load_ints(chunk.low + part * VECTOR_BYTES));
    const Part low = split_quarters(widen_bytes(chunk.low + part * VECTOR_BYTES / 2));
    return bits == 2 ? low : add_tops(low, repeat_bytes(chunk.tops + part * VECTOR_BYTES / 4));
}
