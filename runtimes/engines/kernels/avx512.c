/* AVX-512 with VNNI, as Intel's processors have it since Ice Lake, without products of bfloat16. */
#include "cached_attention.h"
#include "matmul_int.h"
#include "avx512.h"
#include "bfloat16.h"
#include "fma_pairs.h"
#include "tasks.h"

const InstructionSet avx512 = TASKS("avx512", AVX512_VNNI);
