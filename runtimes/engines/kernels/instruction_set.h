/* The kernels for one instruction set, and which of them this process uses.
 *
 * Every set gives the same bits: sums of rounded numbers are exact, and float sums are taken in one order, with one
 * rounding for each multiplication and addition together. */
#ifndef LENSMITH_INSTRUCTION_SET_H
#define LENSMITH_INSTRUCTION_SET_H

#include <stddef.h>

typedef void Task(void *job, size_t index);

typedef struct InstructionSet {
    const char *name;
    unsigned needs;          /* features, as of cpu.h */
    Task *round_row;         /* of a Product: see matmul_int.h */
    Task *few_rows, *panel;
    Task *pack_tile;         /* of an Attention: see attention.h */
    Task *query_block;
    Task *cached_append;     /* of a CachedAttention: see cached_attention.h */
    Task *cached_range, *cached_merge, *cached_block;
    Task *norm_rotary_row;   /* of a NormRotary: see norm_rotary.h */
} InstructionSet;

const InstructionSet *instructions(void); /* NULL where this processor has none of them */

#endif
