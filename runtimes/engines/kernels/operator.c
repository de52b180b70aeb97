/* The callbacks that all operators share, and their access to tensors and memory. */
#include "operator.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const Operator *as_operator(const OrtCustomOp *definition) { return (const Operator *)definition; }

static const char *get_name(const OrtCustomOp *op) { return as_operator(op)->name; }

static const char *on_the_cpu(const OrtCustomOp *op) {
    (void)op;
    return NULL; /* the default */
}

static enum ElementType input_type(const OrtCustomOp *op, size_t index) { return as_operator(op)->named[index].type; }

static size_t input_count(const OrtCustomOp *op) { return as_operator(op)->inputs; }

static enum ElementType output_type(const OrtCustomOp *op, size_t index) {
    return as_operator(op)->made[index];
}

static size_t output_count(const OrtCustomOp *op) { return as_operator(op)->outputs; }

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

static OrtStatus *read_attribute(Kernel *kernel, const OrtKernelInfo *info, size_t index) {
    const Attribute *attribute = &kernel->operator->attributes[index];
    int64_t *value = &kernel->attributes[index];
    TRY(ORT(kernel->api, KernelInfoGetAttribute_int64)(info, attribute->name, value));
    if (*value >= attribute->least && *value <= attribute->most) return NULL;
    return invalid(kernel, "%s is %" PRId64 ", expected %" PRId64 " to %" PRId64, attribute->name, *value,
                   attribute->least, attribute->most);
}

static OrtStatus *read_float(Kernel *kernel, const OrtKernelInfo *info, size_t index) {
    const FloatAttribute *attribute = &kernel->operator->floats[index];
    float *value = &kernel->floats[index];
    TRY(ORT(kernel->api, KernelInfoGetAttribute_float)(info, attribute->name, value));
    if (*value >= attribute->least && *value <= attribute->most) return NULL; /* which no NaN is */
    return invalid(kernel, "%s is %g, expected %g to %g", attribute->name, *value, attribute->least, attribute->most);
}

static OrtStatus *create_kernel(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **out) {
    Kernel made = {.operator = as_operator(op), .api = api};
    for (size_t i = 0; i < MAX_ATTRIBUTES && made.operator->attributes[i].name; i++)
        TRY(read_attribute(&made, info, i));
    for (size_t i = 0; i < MAX_FLOATS && made.operator->floats[i].name; i++)
        TRY(read_float(&made, info, i));
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
        .GetOutputTypeCount = output_count,
        .GetInputCharacteristic = input_characteristic,
        .GetOutputCharacteristic = output_characteristic,
        .GetInputMemoryType = input_memory,
        .KernelDestroy = destroy_kernel,
        .CreateKernelV2 = create_kernel,
        .KernelComputeV2 = compute,
    };
}

/* An error whose text begins with the operator's name. */
OrtStatus *invalid(const Kernel *kernel, const char *format, ...) {
    char message[400];
    va_list arguments;
    const int used = snprintf(message, sizeof message, "%s: ", kernel->operator->name);
    va_start(arguments, format);
    vsnprintf(message + used, sizeof message - (size_t)used, format, arguments);
    va_end(arguments);
    return ORT(kernel->api, CreateStatus)(ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *read_dims(const Kernel *kernel, const OrtTensorTypeAndShapeInfo *info, Tensor *tensor) {
    TRY(ORT(kernel->api, GetDimensionsCount)(info, &tensor->rank));
    if (tensor->rank > MAX_RANK) return invalid(kernel, "an input has %zu dimensions, expected at most %d", tensor->rank, MAX_RANK);
    return ORT(kernel->api, GetDimensions)(info, tensor->dims, tensor->rank);
}

static OrtStatus *read_tensor(const Kernel *kernel, const OrtValue *value, Tensor *tensor) {
    OrtTensorTypeAndShapeInfo *info;
    TRY(ORT(kernel->api, GetTensorTypeAndShape)(value, &info));
    OrtStatus *status = read_dims(kernel, info, tensor);
    ORT(kernel->api, ReleaseTensorTypeAndShapeInfo)(info);
    if (status) return status;
    tensor->present = 1;
    return ORT(kernel->api, GetTensorMutableData)((OrtValue *)value, &tensor->data);
}

/* Fills all MAX_INPUTS; those that the node lacks are not present. */
OrtStatus *get_inputs(const Kernel *kernel, OrtKernelContext *context, Tensor *inputs) {
    const Operator *operator = kernel->operator;
    size_t count;
    memset(inputs, 0, MAX_INPUTS * sizeof *inputs);
    TRY(ORT(kernel->api, KernelContext_GetInputCount)(context, &count));
    if (count > operator->inputs)
        return invalid(kernel, "there are %zu inputs, expected at most %zu", count, operator->inputs);
    for (size_t i = 0; i < count; i++) {
        const OrtValue *value;
        TRY(ORT(kernel->api, KernelContext_GetInput)(context, i, &value));
        if (value) TRY(read_tensor(kernel, value, &inputs[i]));
    }
    for (size_t i = 0; i < operator->required; i++)
        if (!inputs[i].present) return invalid(kernel, "the input %s is missing", operator->named[i].name);
    return NULL;
}

/* How many elements a tensor has: what is in memory, or none, and then other dimensions may be of any size. */
size_t elements(const Tensor *tensor) {
    size_t count = 1;
    for (size_t i = 0; i < tensor->rank; i++)
        count *= (size_t)tensor->dims[i];
    return count;
}

/* "[2, any, 64]" */
static const char *write_shape(char out[MAX_RANK * 22 + 3], size_t rank, const int64_t *dims) {
    char *end = out;
    *end++ = '[';
    for (size_t i = 0; i < rank; i++) {
        end += sprintf(end, "%s", i ? ", " : "");
        end += dims[i] == ANY ? sprintf(end, "any") : sprintf(end, "%" PRId64, dims[i]);
    }
    strcpy(end, "]");
    return out;
}

static OrtStatus *unlike(const Kernel *kernel, const Tensor *inputs, size_t index, size_t rank, const int64_t *dims) {
    char found[MAX_RANK * 22 + 3], expected[MAX_RANK * 22 + 3];
    return invalid(kernel, "the input %s has the shape %s, expected %s", kernel->operator->named[index].name,
                   write_shape(found, inputs[index].rank, inputs[index].dims), write_shape(expected, rank, dims));
}

OrtStatus *expect_shape(const Kernel *kernel, const Tensor *inputs, size_t index, size_t rank, const int64_t *dims) {
    const Tensor *tensor = &inputs[index];
    if (!tensor->present) return NULL;
    int same = tensor->rank == rank;
    for (size_t i = 0; same && i < rank; i++)
        same = dims[i] == ANY || dims[i] == tensor->dims[i];
    return same ? NULL : unlike(kernel, inputs, index, rank, dims);
}

OrtStatus *expect_rows(const Kernel *kernel, const Tensor *inputs, size_t index, size_t rows, size_t row_elements) {
    const Tensor *tensor = &inputs[index];
    if (!tensor->present) return NULL;
    const int in_rows = tensor->rank == 1 || (tensor->rank && tensor->dims[0] == (int64_t)rows);
    if (in_rows && elements(tensor) == rows * row_elements) return NULL;
    return unlike(kernel, inputs, index, 2, (int64_t[]){(int64_t)rows, (int64_t)row_elements});
}

/* Makes an output with the shape in `output`. */
OrtStatus *make_output(const Kernel *kernel, OrtKernelContext *context, size_t index, Tensor *output) {
    OrtValue *value;
    TRY(ORT(kernel->api, KernelContext_GetOutput)(context, index, output->dims, output->rank, &value));
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
