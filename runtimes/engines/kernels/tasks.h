/* All tasks, compiled for the instruction set whose header came before: Partial, begin, dot, finish, PARTIAL_WORDS,
 * multiply_add, store_eight_halves, store_quads, Narrow, store_narrow, dot_pair, and sizes of tiles in registers. */
#include "cpu.h"
#include "instruction_set.h"

#include <float.h>
#include <math.h>

#include "denormals.h"

#include "round_int8.h"

#include "chunk.h"
#include "scales.h"

#include "few_rows.h"
#include "panel.h"

#include "attention_pack.h"
#include "attention_block.h"

#define TASKS(named, features)                                                                                         \
    {.name = named,                                                                                                    \
     .needs = features,                                                                                                \
     .round_row = round_row,                                                                                           \
     .few_rows = few_rows,                                                                                             \
     .panel = panel,                                                                                                   \
     .pack_tile = pack_tile,                                                                                           \
     .query_block = query_block}
