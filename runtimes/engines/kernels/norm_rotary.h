/* Queries and keys of new tokens: an RMS norm of each head, and behind it the rotation by the token's position.
 *
 * A head is x / sqrt(mean(x^2) + epsilon) * weight; then the first `turned` values and as many behind them are turned as
 * pairs, and what is left stays. Squares are added in one order, so that a token's bits depend on nothing but itself. */
#ifndef LENSMITH_NORM_ROTARY_H
#define LENSMITH_NORM_ROTARY_H

#include <stddef.h>
#include <stdint.h>

/* Queries, or keys. */
typedef struct Heads {
    const float *x;      /* [rows, count * width] */
    const float *weight; /* [width] */
    float *out;          /* like x */
    size_t count;
} Heads;

/* A task is a row: one token of one batch row. */
typedef struct NormRotary {
    Heads query, key;
    const int64_t *positions;  /* [rows] */
    const float *cosine, *sine; /* [any, turned] by position */
    size_t rows, width, turned;
    float epsilon;
} NormRotary;

#endif
