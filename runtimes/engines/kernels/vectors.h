/* Vectors of VECTOR_BYTES and what every instruction set does with them, in the compiler's own notation.
 *
 * A set's header defines VECTOR_BYTES before it includes this, and the rest of what tasks.h names behind it. */
#ifndef LENSMITH_VECTORS_H
#define LENSMITH_VECTORS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define VECTOR(type, bytes) type __attribute__((vector_size(bytes)))

enum { LANES = VECTOR_BYTES / 4 };

typedef VECTOR(int32_t, VECTOR_BYTES) Ints;
typedef VECTOR(uint32_t, VECTOR_BYTES) Words;
typedef VECTOR(int64_t, VECTOR_BYTES) Pairs;
typedef VECTOR(float, VECTOR_BYTES) Floats;
typedef VECTOR(uint16_t, VECTOR_BYTES) Halves;
typedef VECTOR(uint8_t, VECTOR_BYTES) Bytes;
typedef VECTOR(uint16_t, 16) Eight;

INLINE Ints load_ints(const void *from) {
    Ints v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE Floats load_floats(const float *from) {
    Floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store_floats(float *to, Floats v) { memcpy(to, &v, sizeof v); }

INLINE Ints all_ints(int32_t value) { return value - (Ints){0}; }
INLINE Floats all_floats(float value) { return value - (Floats){0}; }

/* Four bytes as they lie, in every lane. */
INLINE Ints all_of_four(const void *from) {
    int32_t value;
    memcpy(&value, from, sizeof value);
    return all_ints(value);
}

#ifdef __clang__
#define SHUFFLE(type, mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, mask, a, b, ...) __builtin_shuffle(a, b, (mask){__VA_ARGS__})
#endif
#define INTS(a, b, ...) SHUFFLE(Ints, Ints, a, b, __VA_ARGS__)
#define PAIRS(a, b, ...) (Ints) SHUFFLE(Pairs, Pairs, (Pairs)(a), (Pairs)(b), __VA_ARGS__)

/* Lanes of two vectors in turn, from the first or the second half of each. */
INLINE Eight zip_first_eight(Eight a, Eight b) { return SHUFFLE(Eight, Eight, a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE Eight zip_second_eight(Eight a, Eight b) { return SHUFFLE(Eight, Eight, a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

/* zip_first and zip_second are the same over whole vectors; zip_low, zip_high, and of pairs of lanes pair_low and
 * pair_high, in every 16 bytes for themselves, as SSE has it. */
#if VECTOR_BYTES == 64
INLINE Ints zip_first(Ints a, Ints b) { return INTS(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
INLINE Ints zip_second(Ints a, Ints b) {
    return INTS(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
INLINE Ints zip_low(Ints a, Ints b) { return INTS(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29); }
INLINE Ints zip_high(Ints a, Ints b) {
    return INTS(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
INLINE Ints pair_low(Ints a, Ints b) { return PAIRS(a, b, 0, 8, 2, 10, 4, 12, 6, 14); }
INLINE Ints pair_high(Ints a, Ints b) { return PAIRS(a, b, 1, 9, 3, 11, 5, 13, 7, 15); }
#elif VECTOR_BYTES == 32
INLINE Ints zip_first(Ints a, Ints b) { return INTS(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE Ints zip_second(Ints a, Ints b) { return INTS(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
INLINE Ints zip_low(Ints a, Ints b) { return INTS(a, b, 0, 8, 1, 9, 4, 12, 5, 13); }
INLINE Ints zip_high(Ints a, Ints b) { return INTS(a, b, 2, 10, 3, 11, 6, 14, 7, 15); }
INLINE Ints pair_low(Ints a, Ints b) { return PAIRS(a, b, 0, 4, 2, 6); }
INLINE Ints pair_high(Ints a, Ints b) { return PAIRS(a, b, 1, 5, 3, 7); }
#else
INLINE Ints zip_first(Ints a, Ints b) { return INTS(a, b, 0, 4, 1, 5); }
INLINE Ints zip_second(Ints a, Ints b) { return INTS(a, b, 2, 6, 3, 7); }
INLINE Ints zip_low(Ints a, Ints b) { return zip_first(a, b); }
INLINE Ints zip_high(Ints a, Ints b) { return zip_second(a, b); }
INLINE Ints pair_low(Ints a, Ints b) { return PAIRS(a, b, 0, 2); }
INLINE Ints pair_high(Ints a, Ints b) { return PAIRS(a, b, 1, 3); }
#endif

/* Transposes LANES vectors: each round brings one bit of a row's number into the lane and one of the lane's out. */
INLINE void transpose(Ints v[LANES]) {
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        Ints t[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            t[2 * i] = zip_first(v[i], v[i + LANES / 2]);
            t[2 * i + 1] = zip_second(v[i], v[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            v[i] = t[i];
    }
}

/* Halves of eight rows of as many as lie in GROUPS times 16 bytes: each 16 bytes are transposed for themselves. */
#if VECTOR_BYTES >= 32
enum { GROUPS = 2 };
typedef VECTOR(uint16_t, 32) Columns;
INLINE Columns zip_first_halves(Columns a, Columns b) {
    return SHUFFLE(Columns, Columns, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27);
}
INLINE Columns zip_second_halves(Columns a, Columns b) {
    return SHUFFLE(Columns, Columns, a, b, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31);
}
#else
enum { GROUPS = 1 };
typedef Eight Columns;
#define zip_first_halves zip_first_eight
#define zip_second_halves zip_second_eight
#endif

#define TRANSPOSE(TYPE, FIRST, SECOND, v)                                                                              \
    _Pragma("GCC unroll 3") for (int round = 0; round < 3; round++) {                                                  \
        TYPE t[8];                                                                                                     \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) {                                                          \
            t[2 * i] = FIRST(v[i], v[i + 4]);                                                                          \
            t[2 * i + 1] = SECOND(v[i], v[i + 4]);                                                                     \
        }                                                                                                              \
        _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) v[i] = t[i];                                               \
    }
INLINE void transpose_eight(Eight v[8]) { TRANSPOSE(Eight, zip_first_eight, zip_second_eight, v) }
INLINE void transpose_groups(Columns v[8]) { TRANSPOSE(Columns, zip_first_halves, zip_second_halves, v) }

#endif
