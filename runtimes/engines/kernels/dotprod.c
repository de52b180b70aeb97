/* Arm with products of four bytes (FEAT_DotProd): Cortex-A76 of a Raspberry Pi 5, Neoverse, Apple's, most since 2018. */
#include "cached_attention.h"
#include "matmul_int.h"
#include "neon.h"
#include "whole_sums.h"
#include "byte_dots.h"
#include "bfloat16.h"
#include "fma_pairs.h"
#include "tasks.h"

const InstructionSet dotprod = TASKS("dotprod", NEON | NEON_DOTPROD);
