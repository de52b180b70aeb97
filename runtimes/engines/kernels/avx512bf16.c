/* AVX-512 with VNNI and products of bfloat16: AMD since Zen 4, Intel's servers since Cooper Lake. */
#include "cached_attention.h"
#include "matmul_int.h"
#include "avx512.h"
#include "bfloat16.h"

typedef uint16_t Narrow;

INLINE void store_narrow(Narrow *to, Floats v) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}

/* As it stands, for the reason that `dot` has. */
INLINE Floats dot_pair(Floats sum, const Narrow *pair, Words packed) {
    const Ints both = all_of_four(pair);
    __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(both), "v"(packed));
    return sum;
}

#include "tasks.h"

const InstructionSet avx512bf16 = TASKS("avx512bf16", AVX512_VNNI | AVX512_BF16);
