/* The heads of one row, normed and turned: element by element, but for the sum of squares. */
#include "norm_rotary.h"

/* Loops that any compiler vectorizes. */
static void norm_and_turn(const float *restrict x, const float *restrict weight, float scale, const float *restrict cosine,
                          const float *restrict sine, size_t turned, size_t width, float *restrict out) {
    for (size_t i = 0; i < turned; i++) {
        const float first = x[i] * scale * weight[i], second = x[turned + i] * scale * weight[turned + i];
        out[i] = fmaf(first, cosine[i], -(second * sine[i]));
        out[turned + i] = fmaf(second, cosine[i], first * sine[i]);
    }
    for (size_t i = 2 * turned; i < width; i++)
        out[i] = x[i] * scale * weight[i];
}

INLINE void norm_rotary_heads(const NormRotary *n, const Heads *heads, size_t row) {
    const size_t at = (size_t)n->positions[row] * n->turned;
    for (size_t head = row * heads->count; head < (row + 1) * heads->count; head++) {
        const float *x = heads->x + head * n->width;
        const float scale = 1.0f / sqrtf(sum_of_row(x, n->width, 0.0f, 1) / (float)n->width + n->epsilon);
        norm_and_turn(x, heads->weight, scale, n->cosine + at, n->sine + at, n->turned, n->width,
                      heads->out + head * n->width);
    }
}

static void norm_rotary_row(void *norm_rotary, size_t row) {
    const NormRotary *n = norm_rotary;
    norm_rotary_heads(n, &n->query, row);
    norm_rotary_heads(n, &n->key, row);
}
