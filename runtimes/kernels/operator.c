/* The callbacks that all operators share, and their access to tensors and memory. */
#include "operator.h"

#include <stdlib.h>
#include <string.h>

static const Operator *as_operator(const OrtCustomOp *definition) { return (const Operator *)definition; }

static const char *get_name(const OrtCustomOp *op) { return as_operator(op)->name; }

static const char *on_the_cpu(const OrtCustomOp *op) {
    (void)op;
    return NULL; /* the default */
}

static enum ElementType input_type(const OrtCustomOp *op, size_t index) { return as_operator(op)->types[index]; }

static size_t input_count(const OrtCustomOp *op) { return as_operator(op)->inputs; }

static enum ElementType output_type(const OrtCustomOp *op, size_t index) {
    (void)index;
    return as_operator(op)->types[0];
}

static size_t one_output(const OrtCustomOp *op) {
    (void)op;
    return 1;
}

static enum Characteristic input_characteristic(const OrtCustomOp *op, size_t index) {
    return index < as_operator(op)->required ? REQUIRED : OPTIONAL;
}

static enum Characteristic output_characteristic(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return REQUIRED;
}

static enum Memory input_memory(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return ORT_MEMORY_DEFAULT;
}

static OrtStatus *create_kernel(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **out) {
    Kernel made = {.operator = as_operator(op), .api = api};
    for (size_t i = 0; i < MAX_ATTRIBUTES && made.operator->attributes[i]; i++)
        TRY(ORT(api, KernelInfoGetAttribute_int64)(info, made.operator->attributes[i], &made.attributes[i]));
    TRY(ORT(api, CreateCpuMemoryInfo)(ORT_ARENA, ORT_MEMORY_DEFAULT, &made.memory));
    Kernel *kernel = malloc(sizeof *kernel);
    if (!kernel) return ORT(api, CreateStatus)(ORT_RUNTIME_EXCEPTION, "out of memory");
    *kernel = made;
    *out = kernel;
    return NULL;
}

static void destroy_kernel(void *kernel) {
    ORT(((Kernel *)kernel)->api, ReleaseMemoryInfo)(((Kernel *)kernel)->memory);
    free(kernel);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
    return ((const Kernel *)kernel)->operator->compute(kernel, context);
}

void complete_definition(Operator *operator) {
    operator->definition = (OrtCustomOp){
        .version = ORT_VERSION,
        .GetName = get_name,
        .GetExecutionProviderType = on_the_cpu,
        .GetInputType = input_type,
        .GetInputTypeCount = input_count,
        .GetOutputType = output_type,
        .GetOutputTypeCount = one_output,
        .GetInputCharacteristic = input_characteristic,
        .GetOutputCharacteristic = output_characteristic,
        .GetInputMemoryType = input_memory,
        .KernelDestroy = destroy_kernel,
        .CreateKernelV2 = create_kernel,
        .KernelComputeV2 = compute,
    };
}

OrtStatus *invalid(const Kernel *kernel, const char *message) {
    return ORT(kernel->api, CreateStatus)(ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *read_dims(const Kernel *kernel, const OrtTensorTypeAndShapeInfo *info, Tensor *tensor) {
    TRY(ORT(kernel->api, GetDimensionsCount)(info, &tensor->rank));
    if (tensor->rank > MAX_RANK) return invalid(kernel, "a tensor has more than 4 dimensions");
    return ORT(kernel->api, GetDimensions)(info, tensor->dims, tensor->rank);
}

static OrtStatus *read_tensor(const Kernel *kernel, const OrtValue *value, Tensor *tensor) {
    OrtTensorTypeAndShapeInfo *info;
    TRY(ORT(kernel->api, GetTensorTypeAndShape)(value, &info));
    OrtStatus *status = read_dims(kernel, info, tensor);
    ORT(kernel->api, ReleaseTensorTypeAndShapeInfo)(info);
    if (status) return status;
    return ORT(kernel->api, GetTensorMutableData)((OrtValue *)value, &tensor->data);
}

/* Fills all MAX_INPUTS; those that the node lacks are empty. */
OrtStatus *get_inputs(const Kernel *kernel, OrtKernelContext *context, Tensor *inputs) {
    size_t count;
    memset(inputs, 0, MAX_INPUTS * sizeof *inputs);
    TRY(ORT(kernel->api, KernelContext_GetInputCount)(context, &count));
    for (size_t i = 0; i < count; i++) {
        const OrtValue *value;
        TRY(ORT(kernel->api, KernelContext_GetInput)(context, i, &value));
        if (value) TRY(read_tensor(kernel, value, &inputs[i]));
    }
    return NULL;
}

/* Makes the output with the shape in `output`. */
OrtStatus *make_output(const Kernel *kernel, OrtKernelContext *context, Tensor *output) {
    OrtValue *value;
    TRY(ORT(kernel->api, KernelContext_GetOutput)(context, 0, output->dims, output->rank, &value));
    return ORT(kernel->api, GetTensorMutableData)(value, &output->data);
}

OrtStatus *open_scratch(const Kernel *kernel, OrtKernelContext *context, size_t bytes, Scratch *scratch) {
    TRY(ORT(kernel->api, KernelContext_GetAllocator)(context, kernel->memory, &scratch->allocator));
    scratch->block = scratch->allocator->Alloc(scratch->allocator, bytes + CACHE_LINE);
    scratch->next = (char *)room_for((uintptr_t)scratch->block);
    if (scratch->block) return NULL;
    close_scratch(kernel, scratch);
    return ORT(kernel->api, CreateStatus)(ORT_RUNTIME_EXCEPTION, "out of memory");
}

void *take(Scratch *scratch, size_t bytes) {
    void *memory = scratch->next;
    scratch->next += room_for(bytes);
    return memory;
}

void close_scratch(const Kernel *kernel, Scratch *scratch) {
    if (scratch->block) scratch->allocator->Free(scratch->allocator, scratch->block);
    ORT(kernel->api, ReleaseAllocator)(scratch->allocator);
}
