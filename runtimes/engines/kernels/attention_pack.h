/* Packs keys and values in bfloat16. */

/* LANES floats from `from`, zeros behind the first `count`. */
INLINE Floats load_some(const float *from, size_t count) {
    Floats v = {0};
    if (count >= LANES) return load_floats(from);
    memcpy(&v, from, count * sizeof *from);
    return v;
}

INLINE size_t left_of(size_t count, size_t at) { return at < count ? count - at : 0; }

/* Values of two keys in turn; keys behind the last are zeros. */
static void pack_values(const Attention *a, const float *values, size_t count, uint32_t *out) {
    const size_t row = a->heads * a->width;
    for (size_t key = 0; key < TILE_KEYS; key += 2)
        for (size_t i = 0; i < a->vectors * WORDS; i += LANES, out += LANES) {
            const size_t width = left_of(a->width, i);
            const float *from = values + key * row + i;
            const Words first = round_bfloat16(load_some(from, key < count ? width : 0));
            const Words second = round_bfloat16(load_some(from + row, key + 1 < count ? width : 0));
            const Words both = first | second << 16;
            memcpy(out, &both, sizeof both);
        }
}

static void pack_keys(const Attention *a, const float *keys, size_t count, uint32_t *out) {
    if (count < TILE_KEYS) memset(out, 0, k_tile_words(a) * sizeof *out); /* what no key fills */
    for (size_t key = 0; key < count; key++, keys += a->heads * a->width)
        for (size_t i = 0; i < a->width; i += LANES) {
            const Words rounded = round_bfloat16(load_some(keys + i, a->width - i));
            for (size_t lane = 0; lane < smaller(LANES, a->width - i); lane += 2)
                out[(i + lane) / 2 * TILE_KEYS + key] = rounded[lane] | rounded[lane + 1] << 16;
        }
}

static void pack_tile(void *attention, size_t index) {
    const Attention *a = attention;
    const size_t tile = index % a->tiles, head = index / a->tiles % a->heads, row = index / a->tiles / a->heads;
    const size_t first = tile * TILE_KEYS, count = smaller(TILE_KEYS, a->keys - first);
    const size_t start = ((row * a->keys + first) * a->heads + head) * a->width;
    pack_keys(a, a->k + start, count, a->packed_k + index * k_tile_words(a));
    pack_values(a, a->v + start, count, a->packed_v + index * v_tile_words(a));
}
