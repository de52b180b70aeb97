#include "instruction_set.h"

#include "cpu.h"
#include "operator.h"

#include <string.h>

#if defined(__x86_64__)
extern const InstructionSet avx512bf16, avx512, avxvnni, avx2;
static const InstructionSet *const SETS[] = {&avx512bf16, &avx512, &avxvnni, &avx2}; /* the quickest first */
#elif defined(__aarch64__)
extern const InstructionSet i8mm, dotprod, neon;
static const InstructionSet *const SETS[] = {&i8mm, &dotprod, &neon};
#else
static const InstructionSet *const SETS[] = {NULL};
#endif
enum { SET_COUNT = sizeof SETS / sizeof *SETS };

static const InstructionSet *chosen;

static int runs_here(const InstructionSet *set) { return set && (cpu_features() & set->needs) == set->needs; }

const InstructionSet *instructions(void) {
    for (size_t i = 0; !chosen && i < SET_COUNT; i++)
        if (runs_here(SETS[i])) chosen = SETS[i];
    return chosen;
}

/* The name of the set at `index`, NULL behind the last. */
EXPORT const char *lensmith_instruction_set(size_t index) {
    return index < SET_COUNT && SETS[index] ? SETS[index]->name : NULL;
}

/* Uses the set of this name, or the quickest where it is NULL; returns the name of what is used from now on, NULL and
 * no change where this processor lacks it. */
EXPORT const char *lensmith_choose(const char *name) {
    for (size_t i = 0; i < SET_COUNT; i++)
        if (runs_here(SETS[i]) && (!name || !strcmp(name, SETS[i]->name))) {
            chosen = SETS[i];
            return chosen->name;
        }
    return NULL;
}
