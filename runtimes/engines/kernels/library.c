/* The entry point that ONNX Runtime calls: registers the operators where this processor can run them.
 *
 * What is not registered, ONNX Runtime replaces by the function of the same name in the graph file. */
#include "instruction_set.h"
#include "operator.h"

extern Operator matmul_int8_rows, matmul_int8, matmul_int4, matmul_int3, matmul_int2, attention_bf16, cached_attention;

static Operator *const OPERATORS[] = {&matmul_int8_rows, &matmul_int8,    &matmul_int4,     &matmul_int3,
                                      &matmul_int2,      &attention_bf16, &cached_attention};
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
