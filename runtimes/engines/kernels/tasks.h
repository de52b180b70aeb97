/* All tasks, compiled for the instruction set whose header came before. It defines
 *
 * - Partial, begin, dot, finish, PARTIAL_WORDS: sums of products of four bytes a lane,
 * - Inputs, load_inputs, INPUT_WORDS, dot_word: the same of some words that were loaded at once,
 * - Narrow, store_narrow, dot_pair: sums of products of pairs of bfloat16,
 * - SIGNED_WEIGHTS, if those of 8 bits are multiplied as such, and DOT_BYTES where their sums are no Partial,
 * - multiply_add, with one rounding, and moves: widen_bytes, repeat_bytes, store_eight_halves, load_halves,
 *   store_halves, load_int16, load_int8, widen_eight,
 * - TILE_ROWS, TILE_VECTORS, ATTENTION_ROWS, ATTENTION_VECTORS: how many sums its registers hold. */
#include "cpu.h"
#include "instruction_set.h"

#include <float.h>
#include <math.h>

#include "denormals.h"

#ifndef SIGNED_WEIGHTS
#define SIGNED_WEIGHTS 0
#endif

#include "scales.h"

#include "round_int8.h"

#include "chunk.h"

#include "few_rows.h"
#include "panel.h"

#include "attention_pack.h"
#include "attention_block.h"

#include "cached_block.h"

#include "norm_rotary_row.h"

#define TASKS(named, features)                                                                                         \
    {.name = named,                                                                                                    \
     .needs = features,                                                                                                \
     .round_row = round_row,                                                                                           \
     .few_rows = few_rows,                                                                                             \
     .panel = panel,                                                                                                   \
     .pack_tile = pack_tile,                                                                                           \
     .query_block = query_block,                                                                                       \
     .cached_append = cached_append,                                                                                   \
     .cached_range = cached_range,                                                                                     \
     .cached_merge = cached_merge,                                                                                     \
     .cached_block = cached_block,                                                                                     \
     .norm_rotary_row = norm_rotary_row}
