/* The parts of a product with weights of 8, 4, 3 or 2 bits: y [m, n] = x [m, k] times weights [n, k] transposed, plus
 * bias [n].
 *
 * Weights of 4 bits are those of ONNX Runtime's MatMulNBits: rows of blocks, the first value of a byte in its low bits,
 * a value meaning (bits - zero point) * scale. Those of 2 bits lie the same way, four in a byte; those of 3 bits are
 * rows of their low two bits and behind these, in the same row, of their top bits, eight in a byte. Zero points have
 * 4 bits, and where weights have fewer, those of the same weights as 4 bits around 8; those of 8 bits are around 128.
 * Activations are rounded to int8 in the same blocks, symmetrically, as MatMulNBits does at accuracy level 4.
 *
 * The order of sums is one for every processor and number of rows, so that each gives the same bits: an output begins
 * as its bias or zero, and block after block, y = fma((float)s, scale of x * scale of the weight, y), where s is the
 * exact sum of the products of rounded activations and weights of the block.
 *
 * A chunk is 128 inputs: 64 bytes of weights of 4 bits. Its low halves are the even inputs and its high halves the odd
 * ones, so rounded activations are kept as 64 even and 64 odd values, and no weight of 4 bits is ever moved. For weights
 * of 8 bits they are kept in order.
 *
 * Signed weights are of 8 bits around zero, [n, k], with one scale for each row. */
#ifndef LENSMITH_MATMUL_INT_H
#define LENSMITH_MATMUL_INT_H

#include "prologue.h"

#include <stddef.h>
#include <stdint.h>

enum { CHUNK = 128, MAX_CHUNK_BLOCKS = 8 };

/* Tasks: one row is rounded; FEW_ROWS_COLUMNS outputs of up to FEW_ROWS rows, or PANEL_COLUMNS outputs of all rows. */
enum { FEW_ROWS = 8, FEW_ROWS_COLUMNS = 64, PANEL_COLUMNS = 64 };

typedef struct Product {
    const float *x;         /* [m, k] */
    const uint8_t *weights; /* [n, blocks * block * bits / 8] */
    const uint16_t *scales; /* float16 [n, blocks], with signed weights [n] */
    const uint8_t *zeros;   /* [n, ceil(blocks / 2)], or NULL where all are in the middle */
    const float *bias;      /* [n] or NULL */
    float *y;               /* [m, n] */
    size_t m, n, k, block;  /* block: 16, 32, 64 or 128, with 8 bits also 256 */
    int is_signed;          /* weights */
    int bits, middle;       /* 2, 3, 4 or 8; half of the levels that these can have */
    size_t blocks, chunks;  /* in a row, rounded up */
    Prologue before;        /* of x */

    int8_t *rounded;    /* [m, chunks * CHUNK], zeros behind the last input */
    float *row_scales;  /* [m, chunks * blocks in a chunk] */
    int32_t *row_sums;  /* like row_scales: minus the sum of the rounded values, times the middle without zero points
                         * and then RAISED, see scales.h */
} Product;

static inline size_t chunk_blocks(const Product *p) { return CHUNK / p->block; }
static inline size_t row_blocks(const Product *p) { return p->chunks * CHUNK / p->block; }
static inline size_t row_bytes(const Product *p, int bits) { return p->blocks * p->block * (size_t)bits / 8; }
static inline size_t zero_bytes(const Product *p) { return (p->blocks + 1) / 2; } /* of a row */

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

#endif
