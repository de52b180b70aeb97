/* The inputs of a product as they are rounded: of a row what its norm needs, then block after block. */

enum { MAX_BLOCK = 2 * CHUNK };

/* What the norm of a row needs. */
typedef struct Statistics {
    float mean, inverse; /* one by the root of the variance */
} Statistics;

/* The first `count` lanes, and others behind them. */
INLINE Floats load_padded(const float *from, size_t count, Floats others) {
    if (count >= LANES) return load_floats(from);
    memcpy(&others, from, count * sizeof *from);
    return others;
}

/* The sum of as many as a power of two, in their place. */
static float add_by_halves(float *sums, size_t count) {
    for (size_t half = count / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            sums[i] += sums[i + half];
    return sums[0];
}

/* Of x less the mean, or of its squares. */
INLINE float sum_of_row(const float *x, size_t count, float mean, int squares) {
    Floats sums[PARTIAL_SUMS / LANES] = {{0}};
    for (size_t i = 0; i < count; i += PARTIAL_SUMS)
#pragma GCC unroll 8
        for (size_t v = 0; v < PARTIAL_SUMS / LANES; v++) {
            const size_t at = i + v * LANES;
            if (at >= count) break;
            const Floats far = load_padded(x + at, count - at, all_floats(mean)) - all_floats(mean);
            sums[v] = squares ? multiply_add(far, far, sums[v]) : sums[v] + far;
        }
    float parts[PARTIAL_SUMS];
    memcpy(parts, sums, sizeof parts);
    return add_by_halves(parts, PARTIAL_SUMS);
}

/* Adds what is to be added, which norms look at. */
static Statistics begin_row(const Product *p, size_t row) {
    const Prologue *before = &p->before;
    Statistics found = {0};
    if (!before->sum) return found;
    const float *x = p->x + row * p->k, *other = before->other + row * p->k;
    float *restrict sum = before->sum + row * p->k;
    for (size_t i = 0; i < p->k; i++)
        sum[i] = x[i] + other[i];
    if (before->kind == SKIP_LAYER_NORM) found.mean = sum_of_row(sum, p->k, 0.0f, 0) / (float)p->k;
    found.inverse = 1.0f / sqrtf(sum_of_row(sum, p->k, found.mean, 1) / (float)p->k + before->number);
    return found;
}

/* `at` is the place in the row, `x` and `other` what lies there. */
INLINE Floats apply(enum PrologueKind kind, const Prologue *before, Statistics row, size_t at, size_t count, Floats x,
                    Floats other) {
    const Floats none = all_floats(0.0f);
    switch (kind) {
    case SKIP_RMS_NORM:
        return x * all_floats(row.inverse) * load_padded(before->weight + at, count, none);
    case SKIP_LAYER_NORM:
        return multiply_add((x - all_floats(row.mean)) * all_floats(row.inverse),
                            load_padded(before->weight + at, count, none), load_padded(before->bias + at, count, none));
    case GELU:
        return gelu(x);
    case FAST_GELU:
        return fast_gelu(x);
    case QUICK_GELU:
        return times_sigmoid(x, x * all_floats(before->number));
    case GATED_QUICK_GELU:
        return x * times_sigmoid(other, other * all_floats(before->number));
    default:
        return times_sigmoid(x, other);
    }
}

INLINE const float *apply_all(enum PrologueKind kind, const Product *p, Statistics known, const float *x, size_t row,
                              size_t start, size_t count, float *out) {
    const int gated = kind == GATED_QUICK_GELU || kind == GATED_SIGMOID;
    const float *gate = gated ? p->before.other + row * p->k + start : NULL;
    for (size_t i = 0; i < count; i += LANES) {
        const Floats none = all_floats(0.0f), value = load_padded(x + i, count - i, none);
        const Floats other = gated ? load_padded(gate + i, count - i, none) : none;
        store_floats(out + i, apply(kind, &p->before, known, start + i, count - i, value, other));
    }
    return out;
}

/* The `count` inputs of a row from `start`: as they lie, or in `room`. */
static const float *input_block(const Product *p, size_t row, Statistics known, size_t start, size_t count,
                                float room[MAX_BLOCK]) {
    const float *x = (p->before.sum ? p->before.sum : p->x) + row * p->k + start;
    switch (p->before.kind) {
#define CASE(KIND)                                                                                                     \
    case KIND:                                                                                                         \
        return apply_all(KIND, p, known, x, row, start, count, room);
        CASE(SKIP_RMS_NORM)
        CASE(SKIP_LAYER_NORM)
        CASE(GELU)
        CASE(FAST_GELU)
        CASE(QUICK_GELU)
        CASE(GATED_QUICK_GELU)
        CASE(GATED_SIGMOID)
#undef CASE
    default:
        return x;
    }
}
