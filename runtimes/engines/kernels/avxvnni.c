/* AVX2 with products of four bytes: Intel's desktops and laptops since Alder Lake, the N100 among them, and AMD's. */
#include "cached_attention.h"
#include "matmul_int.h"
#include "avx2.h"
#include "whole_sums.h"
#include "cpu.h"

/* The same arithmetic in AVX-512's encoding, to try it on processors that have that one alone. */
#ifdef __AVXVNNI__
#define DPBUSD _mm256_dpbusd_avx_epi32
enum { ENCODING = AVX_VNNI };
#else
#define DPBUSD _mm256_dpbusd_epi32
enum { ENCODING = AVX512_VNNI };
#endif

INLINE Partial dot(Partial sum, Bytes weights, Ints four) {
    return (Ints)DPBUSD((__m256i)sum, (__m256i)weights, (__m256i)four);
}

#include "bfloat16.h"
#include "fma_pairs.h"
#include "tasks.h"

const InstructionSet avxvnni = TASKS("avxvnni", AVX2_FMA_F16C | ENCODING);
