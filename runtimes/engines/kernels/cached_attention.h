/* The parts of causal attention over a cache of keys and values in float16 or int8, head by head.
 *
 * Everything else is float32. An int8 times the scale of its channel is the value: scales of keys are taken into the
 * queries, those of values into the answers, so that what the cache holds is only widened.
 *
 * Keys are taken in tiles of TILE_KEYS and these in ranges of RANGE_KEYS, both counted from the first key of all: so an
 * answer depends neither on how many rows there are nor on how many threads. */
#ifndef LENSMITH_CACHED_ATTENTION_H
#define LENSMITH_CACHED_ATTENTION_H

#include "attention.h"

enum { RANGE_KEYS = 512, BLOCK_ROWS = 96, BLOCK_VALUES = 48 * MAX_WIDTH };

/* A row is one query of one head. Rows of the heads that share keys are those of the first query, then of the second. */
typedef struct CachedAttention {
    const float *q;          /* [batch, queries, kv_heads * group * width] */
    const float *k, *v;      /* [batch, queries, kv_heads * width], the new ones */
    char *keys, *values;     /* [batch, kv_heads, capacity, width] */
    const float *key_scales, *value_scales; /* [kv_heads, width] of int8, NULL for float16 */
    const int32_t *past;     /* [batch], the keys before the new ones */
    float *out;              /* like q */
    size_t batch, queries, kv_heads, group, width, capacity;
    size_t rows, block_rows; /* of the heads that share keys: of all queries, and of a task */
    size_t ranges;           /* of the longest row of the batch */
    float *partial;          /* [batch * kv_heads, ranges, rows, width + 2]; see cached_range */
} CachedAttention;

static inline size_t cached_bytes(const CachedAttention *a) { return a->key_scales ? 1 : 2; } /* of a value */
static inline size_t partial_size(const CachedAttention *a) { return a->rows * (a->width + 2); }

#endif
