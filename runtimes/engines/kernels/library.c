/* The entry point that ONNX Runtime calls: registers the operators where this processor can run them.
 *
 * What is not registered, ONNX Runtime replaces by the function of the same name in the graph file. */
#include "instruction_set.h"
#include "operator.h"

#define MATMULS(ROW, BITS)                                                                                             \
    ROW(matmul_int##BITS) ROW(two_matmul_int##BITS) ROW(three_matmul_int##BITS) ROW(four_matmul_int##BITS)
#define ALL(ROW)                                                                                                       \
    ROW(matmul_int8_rows) MATMULS(ROW, 8) MATMULS(ROW, 4) MATMULS(ROW, 3) MATMULS(ROW, 2) ROW(attention_bf16)          \
    ROW(cached_attention) ROW(cached_attention_int8) ROW(norm_rotary)
#define DECLARED(name) extern Operator name;
#define LISTED(name) &name,

ALL(DECLARED)

static Operator *const OPERATORS[] = {ALL(LISTED)};
enum { OPERATOR_COUNT = sizeof OPERATORS / sizeof *OPERATORS };

/* The name of the operator at `index`, NULL behind the last. */
EXPORT const char *lensmith_operator(size_t index) { return index < OPERATOR_COUNT ? OPERATORS[index]->name : NULL; }

EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static OrtCustomOpDomain *domain; /* sessions share it, and it must outlive them */
    const OrtApi *api = base->GetApi(ORT_VERSION);
    if (!domain) {
        OrtCustomOpDomain *made;
        TRY(ORT(api, CreateCustomOpDomain)("lensmith", &made));
        for (size_t i = 0; i < OPERATOR_COUNT; i++) {
            complete_definition(OPERATORS[i]);
            if (instructions()) TRY(ORT(api, CustomOpDomain_Add)(made, &OPERATORS[i]->definition));
        }
        domain = made;
    }
    return ORT(api, AddCustomOpDomain)(options, domain);
}
