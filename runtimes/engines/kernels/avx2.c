/* AVX2 with FMA and F16C: nearly every x86-64 processor since 2013. */
#include "cached_attention.h"
#include "matmul_int.h"
#include "avx2.h"

/* Sums of products of two bytes in 16 bits, of at most 2 * 15 * 127 each: eight of them fit. */
typedef __m256i Partial;
INLINE Partial begin(Ints sum) {
    (void)sum;
    return _mm256_setzero_si256();
}
INLINE Partial dot(Partial sum, Bytes weights, Ints four) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16((__m256i)weights, (__m256i)four));
}
/* For many rows: the instructions as they stand, since the compiler would put half of a tile's sums into memory. */
INLINE Partial dot_in_order(Partial sum, Bytes weights, Ints four) {
    __m256i products;
    __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                     : "+x"(sum), "=&x"(products)
                     : "x"(weights), "x"(four));
    return sum;
}
#undef dot_word
#define dot_word(sum, weights, inputs, word) dot_in_order(sum, weights, inputs)
INLINE Ints finish(Partial sum, Ints before) {
    return before + (Ints)_mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}
enum { PARTIAL_WORDS = 8 };

/* Two products with a weight of 8 bits fit into 16 bits only if it is signed, and then its sign goes to the input. */
#define SIGNED_WEIGHTS 1
#define DOT_BYTES(sum, weights, inputs, word) dot_bytes(sum, (__m256i)(weights), (__m256i)(inputs))
INLINE Ints dot_bytes(Ints sum, __m256i weights, __m256i four) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(four, weights));
    return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#include "bfloat16.h"
#include "fma_pairs.h"
#include "tasks.h"

const InstructionSet avx2 = TASKS("avx2", AVX2_FMA_F16C);
