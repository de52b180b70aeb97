/* The part of ONNX Runtime's C interface that these kernels use.
 *
 * ONNX Runtime appends to its table of functions and never reorders it, so a function is its position in the table of
 * every version since the one that brought it. Version 17 (of 2024) is asked for: every release since grants it. */
#ifndef LENSMITH_ORT_H
#define LENSMITH_ORT_H

#include <stddef.h>
#include <stdint.h>

#define ORT_VERSION 17

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtApi OrtApi;

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

typedef struct OrtAllocator {
    uint32_t version;
    void *(*Alloc)(struct OrtAllocator *allocator, size_t bytes);
    void (*Free)(struct OrtAllocator *allocator, void *memory);
} OrtAllocator;

enum ElementType { TYPE_FLOAT = 1, TYPE_UINT8 = 2, TYPE_INT8 = 3, TYPE_INT32 = 6, TYPE_INT64 = 7, TYPE_FLOAT16 = 10 };
enum Characteristic { REQUIRED = 0, OPTIONAL = 1 };
enum ErrorCode { ORT_INVALID_ARGUMENT = 2, ORT_RUNTIME_EXCEPTION = 6 };
enum Memory { ORT_ARENA = 1, ORT_MEMORY_DEFAULT = 0 };

/* The definition of one operator: a table of callbacks that ONNX Runtime asks. */
typedef struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const struct OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info);
    const char *(*GetName)(const struct OrtCustomOp *op);
    const char *(*GetExecutionProviderType)(const struct OrtCustomOp *op);
    enum ElementType (*GetInputType)(const struct OrtCustomOp *op, size_t index);
    size_t (*GetInputTypeCount)(const struct OrtCustomOp *op);
    enum ElementType (*GetOutputType)(const struct OrtCustomOp *op, size_t index);
    size_t (*GetOutputTypeCount)(const struct OrtCustomOp *op);
    void (*KernelCompute)(void *kernel, OrtKernelContext *context);
    void (*KernelDestroy)(void *kernel);
    enum Characteristic (*GetInputCharacteristic)(const struct OrtCustomOp *op, size_t index);
    enum Characteristic (*GetOutputCharacteristic)(const struct OrtCustomOp *op, size_t index);
    enum Memory (*GetInputMemoryType)(const struct OrtCustomOp *op, size_t index);
    void *unused_variadic[4];
    OrtStatus *(*CreateKernelV2)(const struct OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                                 void **kernel);
    OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
    void *unused_shapes_and_aliases[7];
} OrtCustomOp;

_Static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void *), "the layout of OrtCustomOp in version 17");

/* A row for each function: its type, its name here and its position in the table of OrtApi. */
#define ORT_FUNCTIONS(ROW)                                                                                             \
    ROW(0, OrtStatus *, CreateStatus, (enum ErrorCode code, const char *message))                                      \
    ROW(26, OrtStatus *, CreateCustomOpDomain, (const char *domain, OrtCustomOpDomain **out))                          \
    ROW(27, OrtStatus *, CustomOpDomain_Add, (OrtCustomOpDomain * domain, const OrtCustomOp *op))                      \
    ROW(28, OrtStatus *, AddCustomOpDomain, (OrtSessionOptions * options, OrtCustomOpDomain * domain))                 \
    ROW(51, OrtStatus *, GetTensorMutableData, (OrtValue * value, void **out))                                         \
    ROW(61, OrtStatus *, GetDimensionsCount, (const OrtTensorTypeAndShapeInfo *info, size_t *out))                     \
    ROW(62, OrtStatus *, GetDimensions, (const OrtTensorTypeAndShapeInfo *info, int64_t *out, size_t count))           \
    ROW(65, OrtStatus *, GetTensorTypeAndShape, (const OrtValue *value, OrtTensorTypeAndShapeInfo **out))              \
    ROW(69, OrtStatus *, CreateCpuMemoryInfo, (enum Memory allocator, enum Memory kind, OrtMemoryInfo **out))          \
    ROW(85, OrtStatus *, KernelInfoGetAttribute_float, (const OrtKernelInfo *info, const char *name, float *out))      \
    ROW(86, OrtStatus *, KernelInfoGetAttribute_int64, (const OrtKernelInfo *info, const char *name, int64_t *out))    \
    ROW(88, OrtStatus *, KernelContext_GetInputCount, (const OrtKernelContext *context, size_t *out))                  \
    ROW(90, OrtStatus *, KernelContext_GetInput,                                                                       \
        (const OrtKernelContext *context, size_t index, const OrtValue **out))                                         \
    ROW(91, OrtStatus *, KernelContext_GetOutput,                                                                      \
        (OrtKernelContext * context, size_t index, const int64_t *dims, size_t count, OrtValue **out))                 \
    ROW(94, void, ReleaseMemoryInfo, (OrtMemoryInfo * memory))                                                         \
    ROW(99, void, ReleaseTensorTypeAndShapeInfo, (OrtTensorTypeAndShapeInfo * info))                                   \
    ROW(132, void, ReleaseAllocator, (OrtAllocator * allocator))                                                       \
    ROW(253, OrtStatus *, KernelContext_GetAllocator,                                                                  \
        (const OrtKernelContext *context, const OrtMemoryInfo *memory, OrtAllocator **out))                            \
    ROW(274, OrtStatus *, KernelContext_ParallelFor,                                                                   \
        (const OrtKernelContext *context, void (*task)(void *, size_t), size_t total, size_t batches, void *job))

#define ORT_TYPE(slot, result, name, arguments) typedef result(*ort_##name) arguments;
ORT_FUNCTIONS(ORT_TYPE)
#undef ORT_TYPE

enum OrtSlot {
#define ORT_SLOT(slot, result, name, arguments) slot_##name = slot,
    ORT_FUNCTIONS(ORT_SLOT)
#undef ORT_SLOT
};

/* Calls a function of the interface: ORT(api, CreateStatus)(code, message). */
#define ORT(api, name) ((ort_##name)((void *const *)(api))[slot_##name])

#endif
