/* What the sets of x86-64 share. */
#include <immintrin.h>

INLINE void store_eight_halves(float *to, Eight halves) { _mm256_storeu_ps(to, _mm256_cvtph_ps((__m128i)halves)); }

INLINE Eight widen_eight(const int8_t *from) { return (Eight)_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)from)); }

INLINE Columns join_groups(Eight first, Eight second) {
    return (Columns)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)first), (__m128i)second, 1);
}

/* The inputs of a row that are loaded at once, to be multiplied a word after the other. */
typedef Ints Inputs;
enum { INPUT_WORDS = 1 };
INLINE Inputs load_inputs(const int8_t *from) { return all_of_four(from); }
#define dot_word(sum, weights, inputs, word) dot(sum, weights, inputs)
