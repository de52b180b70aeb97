/* What is done to the inputs of a product before they are rounded, so that they need not be written and read between.
 *
 * Sums over a row are taken in one order for every processor: PARTIAL_SUMS of them, of the inputs whose places have the
 * same remainder, which are then added by halves. */
#ifndef LENSMITH_PROLOGUE_H
#define LENSMITH_PROLOGUE_H

enum { PARTIAL_SUMS = 32 };

enum PrologueKind {
    NO_PROLOGUE,
    SKIP_RMS_NORM,
    SKIP_LAYER_NORM,
    GELU,
    FAST_GELU,
    QUICK_GELU,
    GATED_QUICK_GELU,
    GATED_SIGMOID,
    PROLOGUES
};

typedef struct Prologue {
    enum PrologueKind kind;
    const float *other;         /* [m, k]: what is added, or what gates */
    const float *weight, *bias; /* [k], of norms */
    float *sum;                 /* [m, k], of norms */
    float number;               /* epsilon or alpha */
} Prologue;

#endif
