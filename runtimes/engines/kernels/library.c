/* The entry point that ONNX Runtime calls: registers the operators where this processor can run them.
 *
 * What is not registered, ONNX Runtime replaces by the function of the same name in the graph file. */
#include "instruction_set.h"
#include "product_operators.h"

extern Operator attention_bf16, cached_attention, cached_attention_int8, norm_rotary;

static Operator *const OTHERS[] = {&attention_bf16, &cached_attention, &cached_attention_int8, &norm_rotary};
enum { OTHER_COUNT = sizeof OTHERS / sizeof *OTHERS };

static Operator *operator_at(size_t index) {
    return index < OTHER_COUNT ? OTHERS[index] : product_operator(index - OTHER_COUNT);
}

/* The name of the operator at `index`, NULL behind the last. */
EXPORT const char *lensmith_operator(size_t index) {
    const Operator *operator = operator_at(index);
    return operator ? operator->name : NULL;
}

EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static OrtCustomOpDomain *domain; /* sessions share it, and it must outlive them */
    const OrtApi *api = base->GetApi(ORT_VERSION);
    if (!domain) {
        OrtCustomOpDomain *made;
        TRY(ORT(api, CreateCustomOpDomain)("lensmith", &made));
        Operator *each;
        for (size_t i = 0; (each = operator_at(i)); i++) {
            complete_definition(each);
            if (instructions()) TRY(ORT(api, CustomOpDomain_Add)(made, &each->definition));
        }
        domain = made;
    }
    return ORT(api, AddCustomOpDomain)(options, domain);
}
