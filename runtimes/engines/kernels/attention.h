/* The parts of full attention: softmax(q k' / sqrt(width)) v within each row of a batch, head by head.
 *
 * Queries, keys, values and probabilities are rounded to bfloat16; products are summed and the softmax is taken in
 * float32. Keys and values are packed once in tiles of 64 keys, in the order in which pairs of them are multiplied. */
#ifndef LENSMITH_ATTENTION_H
#define LENSMITH_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

enum { WORDS = 16, TILE_KEYS = 64, TILE_VECTORS = TILE_KEYS / WORDS, MAX_WIDTH = 256, QUERY_BLOCK = 48 };

/* A task packs one tile of one head of one batch row, another computes QUERY_BLOCK queries of one head of one row. */
typedef struct Attention {
    const float *q;     /* [batch, queries, heads * width] */
    const float *k, *v; /* [batch, keys, heads * width] */
    float *out;         /* like q */
    size_t batch, queries, keys, heads, width;
    size_t tiles;        /* of keys, rounded up */
    size_t vectors;      /* of a value of one head, rounded up */
    uint32_t *packed_k;  /* [batch, heads, tiles, width / 2, TILE_VECTORS, WORDS] pairs along the width */
    uint32_t *packed_v;  /* [batch, heads, tiles, TILE_KEYS / 2, vectors, WORDS] pairs of keys */
} Attention;

static inline size_t k_tile_words(const Attention *a) { return a->width / 2 * TILE_KEYS; }
static inline size_t v_tile_words(const Attention *a) { return TILE_KEYS / 2 * a->vectors * WORDS; }

#endif
