/* What an operator of this library says about itself, and what its computation may ask for. */
#ifndef LENSMITH_OPERATOR_H
#define LENSMITH_OPERATOR_H

#include "ort.h"

enum { MAX_INPUTS = 17, MAX_OUTPUTS = 4, MAX_ATTRIBUTES = 6, MAX_FLOATS = 2, MAX_RANK = 4 };

typedef struct Kernel Kernel;

/* An integer that a node must give, and what it may be. */
typedef struct Attribute {
    const char *name; /* NULL behind the last of an operator */
    int64_t least, most;
} Attribute;

/* The same of a float. */
typedef struct FloatAttribute {
    const char *name;
    float least, most;
} FloatAttribute;

typedef struct Input {
    const char *name;
    enum ElementType type;
} Input;

/* One operator. */
typedef struct Operator {
    OrtCustomOp definition; /* first, so that ONNX Runtime's pointer to it is a pointer to the operator */
    const char *name;
    OrtStatus *(*compute)(const Kernel *kernel, OrtKernelContext *context);
    size_t required, inputs; /* inputs behind the first `required` may be missing */
    size_t outputs;
    Input named[MAX_INPUTS];
    enum ElementType made[MAX_OUTPUTS];
    Attribute attributes[MAX_ATTRIBUTES];
    FloatAttribute floats[MAX_FLOATS];
    int bits; /* of the weights, for operators that differ in nothing else */
} Operator;

/* One node of a graph: its operator and the values of its attributes. */
struct Kernel {
    const Operator *operator;
    const OrtApi *api;
    OrtMemoryInfo *memory;
    int64_t attributes[MAX_ATTRIBUTES];
    float floats[MAX_FLOATS];
};

typedef struct Tensor {
    int present; /* an optional input may be missing */
    void *data;  /* may be NULL where there are no elements */
    size_t rank;
    int64_t dims[MAX_RANK];
} Tensor;

/* Memory of one computation, from ONNX Runtime's arena. */
typedef struct Scratch {
    OrtAllocator *allocator;
    void *block;
    char *next;
} Scratch;

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        OrtStatus *status_ = (call);                                                                                   \
        if (status_) return status_;                                                                                   \
    } while (0)

void complete_definition(Operator *operator);
OrtStatus *get_inputs(const Kernel *kernel, OrtKernelContext *context, Tensor *inputs);
OrtStatus *make_output(const Kernel *kernel, OrtKernelContext *context, size_t index, Tensor *output);
OrtStatus *invalid(const Kernel *kernel, const char *format, ...) __attribute__((format(printf, 2, 3)));
size_t elements(const Tensor *tensor);
OrtStatus *open_scratch(const Kernel *kernel, OrtKernelContext *context, size_t bytes, Scratch *scratch);
void *take(Scratch *scratch, size_t bytes); /* on a cache line; the sum of `room_for` must have been asked for */
void close_scratch(const Kernel *kernel, Scratch *scratch);

/* Sizes come from files that others wrote: nothing is read before these have passed.
 *
 * ANY fits every dimension. Rows are the first dimension; all elements may also stand in one row. An input that may be
 * missing passes where it is. */
enum { ANY = -1 };
OrtStatus *expect_shape(const Kernel *kernel, const Tensor *inputs, size_t index, size_t rank, const int64_t *dims);
OrtStatus *expect_rows(const Kernel *kernel, const Tensor *inputs, size_t index, size_t rows, size_t row_elements);

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { CACHE_LINE = 64 };

static inline size_t divide_up(size_t value, size_t by) { return (value + by - 1) / by; }
static inline size_t room_for(size_t bytes) { return divide_up(bytes, CACHE_LINE) * CACHE_LINE; }

/* Runs task(job, 0) to task(job, count - 1) on the threads of the session. */
static inline OrtStatus *parallel_for(const Kernel *kernel, OrtKernelContext *context, size_t count,
                                      void (*task)(void *, size_t), void *job) {
    return ORT(kernel->api, KernelContext_ParallelFor)(context, task, count, 0, job);
}

#endif
