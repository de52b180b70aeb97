/* Calls the operators of runtimes/engines/kernels without ONNX Runtime, so that sanitizers see every byte that they touch.
 *
 * Reads cases from stdin and answers each on stdout, in the words of tests/fuzz/driver.py. Every tensor ends where its
 * pages end and the next page cannot be read, which also catches the masked loads that sanitizers do not see; what is
 * in front of it is poisoned. Outputs and scratch memory begin as NaN. Tasks run from the last to the first. */
#include "operator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else /* for processors that are emulated */
#define ASAN_POISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#endif

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#include <windows.h>
static size_t page_size(void) { return 4096; }
static char *take_pages(size_t bytes) { return VirtualAlloc(NULL, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE); }
static void give_back(char *pages, size_t bytes) { (void)bytes, VirtualFree(pages, 0, MEM_RELEASE); }
static void forbid(char *page) {
    DWORD before;
    VirtualProtect(page, page_size(), PAGE_NOACCESS, &before);
}
static void read_and_write_bytes(void) { _setmode(0, _O_BINARY), _setmode(1, _O_BINARY); }
#else
#include <sys/mman.h>
#include <unistd.h>
static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }
static char *take_pages(size_t bytes) {
    char *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}
static void give_back(char *pages, size_t bytes) { munmap(pages, bytes); }
static void forbid(char *page) { mprotect(page, page_size(), PROT_NONE); }
static void read_and_write_bytes(void) {}
#endif

extern const char *lensmith_choose(const char *name);
extern OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

enum { MOST_INPUTS = MAX_INPUTS + 1, MOST_RANK = 8, MOST_NAME = 32, SLOTS = 300, OPERATORS = 32 };
static const size_t MOST_BYTES = (size_t)1 << 28;

struct OrtStatus {
    int64_t code;
    char message[512];
};
struct OrtValue {
    size_t rank;
    int64_t dims[MOST_RANK];
    char *pages, *data;
    size_t mapped, bytes;
};
struct OrtTensorTypeAndShapeInfo {
    const OrtValue *value;
};
struct OrtKernelInfo {
    const char *names[MAX_ATTRIBUTES];
    int64_t values[MAX_ATTRIBUTES];
    const char *float_names[MAX_FLOATS];
    float floats[MAX_FLOATS];
};
struct OrtKernelContext {
    size_t count;
    int present[MOST_INPUTS];
    OrtValue inputs[MOST_INPUTS], outputs[MAX_OUTPUTS];
    size_t element_bytes[MAX_OUTPUTS];
};

static const OrtCustomOp *operators[OPERATORS];
static size_t operator_count;
static int opened; /* infos, allocators and blocks that were not given back */

static void map(OrtValue *value, size_t bytes) {
    const size_t room = divide_up(bytes, page_size()) * page_size();
    value->bytes = bytes, value->mapped = room + page_size();
    value->pages = take_pages(value->mapped);
    if (!value->pages) abort();
    forbid(value->pages + room);
    value->data = value->pages + room - bytes;
    memset(value->data, 0xff, bytes);
    ASAN_POISON_MEMORY_REGION(value->pages, room - bytes);
}

static void unmap(OrtValue *value) {
    ASAN_UNPOISON_MEMORY_REGION(value->pages, value->mapped);
    give_back(value->pages, value->mapped);
}

static OrtStatus *create_status(enum ErrorCode code, const char *message) {
    OrtStatus *status = calloc(1, sizeof *status);
    status->code = code;
    strncpy(status->message, message, sizeof status->message - 1);
    return status;
}

static OrtStatus *create_domain(const char *domain, OrtCustomOpDomain **out) {
    *out = (OrtCustomOpDomain *)domain;
    return NULL;
}

static OrtStatus *add_operator(OrtCustomOpDomain *domain, const OrtCustomOp *op) {
    (void)domain;
    operators[operator_count++] = op;
    return NULL;
}

static OrtStatus *add_domain(OrtSessionOptions *options, OrtCustomOpDomain *domain) {
    (void)options, (void)domain;
    return NULL;
}

static OrtStatus *data_of(OrtValue *value, void **out) {
    *out = value->data;
    return NULL;
}

static OrtStatus *rank_of(const OrtTensorTypeAndShapeInfo *info, size_t *out) {
    *out = info->value->rank;
    return NULL;
}

static OrtStatus *dims_of(const OrtTensorTypeAndShapeInfo *info, int64_t *out, size_t count) {
    memcpy(out, info->value->dims, count * sizeof *out);
    return NULL;
}

static OrtStatus *open_info(const OrtValue *value, OrtTensorTypeAndShapeInfo **out) {
    *out = malloc(sizeof **out);
    (*out)->value = value;
    opened++;
    return NULL;
}

static void close_info(OrtTensorTypeAndShapeInfo *info) {
    opened--;
    free(info);
}

static OrtStatus *open_memory_info(enum Memory allocator, enum Memory kind, OrtMemoryInfo **out) {
    (void)allocator, (void)kind;
    *out = (OrtMemoryInfo *)&opened;
    opened++;
    return NULL;
}

static void close_memory_info(OrtMemoryInfo *info) {
    (void)info;
    opened--;
}

static OrtStatus *attribute(const OrtKernelInfo *info, const char *name, int64_t *out) {
    for (size_t i = 0; i < MAX_ATTRIBUTES; i++)
        if (info->names[i] && !strcmp(info->names[i], name)) {
            *out = info->values[i];
            return NULL;
        }
    return create_status(ORT_INVALID_ARGUMENT, "no such attribute");
}

static OrtStatus *float_attribute(const OrtKernelInfo *info, const char *name, float *out) {
    for (size_t i = 0; i < MAX_FLOATS; i++)
        if (info->float_names[i] && !strcmp(info->float_names[i], name)) {
            *out = info->floats[i];
            return NULL;
        }
    return create_status(ORT_INVALID_ARGUMENT, "no such float attribute");
}

static OrtStatus *input_count(const OrtKernelContext *context, size_t *out) {
    *out = context->count;
    return NULL;
}

static OrtStatus *input(const OrtKernelContext *context, size_t index, const OrtValue **out) {
    *out = context->present[index] ? &context->inputs[index] : NULL;
    return NULL;
}

static OrtStatus *output(OrtKernelContext *context, size_t index, const int64_t *dims, size_t rank, OrtValue **out) {
    OrtValue *made = *out = &context->outputs[index];
    size_t count = 1, bytes = context->element_bytes[index];
    int empty = 0;
    for (size_t i = 0; i < rank; i++)
        empty |= !dims[i];
    for (size_t i = 0; i < rank; i++)
        if (!empty && __builtin_mul_overflow(count, (size_t)dims[i], &count)) count = MOST_BYTES;
    if (made->pages || (!empty && count > MOST_BYTES / bytes))
        return create_status(ORT_RUNTIME_EXCEPTION, "no memory for the output");
    made->rank = rank;
    memcpy(made->dims, dims, rank * sizeof *dims);
    map(made, empty ? 0 : count * bytes);
    return NULL;
}

/* A block of scratch memory lies as malloc would put it, which is on no cache line: SHIFT bytes behind it, up to where
 * its pages end, are poisoned. Its record stands apart from it. */
static OrtValue block;
enum { SHIFT = 48 };

static void *take_block(OrtAllocator *allocator, size_t bytes) {
    (void)allocator;
    if (block.pages || bytes > MOST_BYTES) return NULL;
    map(&block, bytes + SHIFT);
    ASAN_POISON_MEMORY_REGION(block.data + bytes, SHIFT);
    opened++;
    return block.data;
}

static void give_block(OrtAllocator *allocator, void *memory) {
    (void)allocator;
    if (memory != block.data) abort();
    unmap(&block);
    memset(&block, 0, sizeof block);
    opened--;
}

static OrtAllocator the_allocator = {ORT_VERSION, take_block, give_block};

static OrtStatus *open_allocator(const OrtKernelContext *context, const OrtMemoryInfo *memory, OrtAllocator **out) {
    (void)context, (void)memory;
    *out = &the_allocator;
    opened++;
    return NULL;
}

static void close_allocator(OrtAllocator *allocator) {
    (void)allocator;
    opened--;
}

static OrtStatus *run_tasks(const OrtKernelContext *context, void (*task)(void *, size_t), size_t total, size_t batches,
                            void *job) {
    (void)context, (void)batches;
    while (total--)
        task(job, total);
    return NULL;
}

#define SLOT(name, function) [slot_##name] = (void *)(function)
static void *const API[SLOTS] = {
    SLOT(CreateStatus, create_status),
    SLOT(CreateCustomOpDomain, create_domain),
    SLOT(CustomOpDomain_Add, add_operator),
    SLOT(AddCustomOpDomain, add_domain),
    SLOT(GetTensorMutableData, data_of),
    SLOT(GetDimensionsCount, rank_of),
    SLOT(GetDimensions, dims_of),
    SLOT(GetTensorTypeAndShape, open_info),
    SLOT(CreateCpuMemoryInfo, open_memory_info),
    SLOT(KernelInfoGetAttribute_float, float_attribute),
    SLOT(KernelInfoGetAttribute_int64, attribute),
    SLOT(KernelContext_GetInputCount, input_count),
    SLOT(KernelContext_GetInput, input),
    SLOT(KernelContext_GetOutput, output),
    SLOT(ReleaseMemoryInfo, close_memory_info),
    SLOT(ReleaseTensorTypeAndShapeInfo, close_info),
    SLOT(ReleaseAllocator, close_allocator),
    SLOT(KernelContext_GetAllocator, open_allocator),
    SLOT(KernelContext_ParallelFor, run_tasks),
};

static const OrtApi *get_api(uint32_t version) { return version == ORT_VERSION ? (const OrtApi *)API : NULL; }

static int read_bytes(void *out, size_t bytes) { return fread(out, 1, bytes, stdin) == bytes; }

static int64_t read_number(void) {
    int64_t value;
    if (!read_bytes(&value, sizeof value)) exit(4);
    return value;
}

static float read_float(void) {
    float value;
    if (!read_bytes(&value, sizeof value)) exit(4);
    return value;
}

static void read_input(OrtKernelContext *context, size_t index) {
    OrtValue *value = &context->inputs[index];
    context->present[index] = (int)read_number();
    if (!context->present[index]) return;
    value->rank = (size_t)read_number();
    for (size_t i = 0; i < value->rank; i++)
        value->dims[i] = read_number();
    map(value, (size_t)read_number());
    if (value->bytes && !read_bytes(value->data, value->bytes)) exit(4);
}

static void write_number(int64_t value) { fwrite(&value, sizeof value, 1, stdout); }

static void write_output(const OrtValue *made) {
    write_number((int64_t)made->rank);
    fwrite(made->dims, sizeof *made->dims, made->rank, stdout);
    write_number((int64_t)made->bytes);
    fwrite(made->data, 1, made->bytes, stdout);
}

/* An error, or how many outputs are float, and these. */
static void answer(const OrtStatus *status, const OrtKernelContext *context) {
    size_t count = 0;
    write_number(status ? status->code : 0);
    if (status) {
        write_number((int64_t)strlen(status->message));
        fputs(status->message, stdout);
    } else {
        while (count < MAX_OUTPUTS && context->element_bytes[count] == sizeof(float))
            count++;
        write_number((int64_t)count);
        for (size_t i = 0; i < count; i++)
            write_output(&context->outputs[i]);
    }
    fflush(stdout);
}

static const OrtCustomOp *find(const char *name) {
    for (size_t i = 0; i < operator_count; i++)
        if (!strcmp(operators[i]->GetName(operators[i]), name)) return operators[i];
    fprintf(stderr, "this processor cannot run %s\n", name);
    exit(3);
}

static OrtStatus *run(const OrtCustomOp *op, const OrtKernelInfo *info, OrtKernelContext *context) {
    void *kernel;
    TRY(op->CreateKernelV2(op, (const OrtApi *)API, info, &kernel));
    OrtStatus *status = op->KernelComputeV2(kernel, context);
    op->KernelDestroy(kernel);
    return status;
}

static size_t element_bytes(enum ElementType type) { return type == TYPE_FLOAT ? 4 : type == TYPE_FLOAT16 ? 2 : 1; }

static void one_case(const char *name) {
    const OrtCustomOp *op = find(name);
    static OrtKernelContext context;
    OrtKernelInfo info = {0};
    memset(&context, 0, sizeof context);
    for (size_t i = 0; i < MAX_ATTRIBUTES; i++) {
        info.names[i] = ((const Operator *)op)->attributes[i].name;
        info.values[i] = read_number();
    }
    for (size_t i = 0; i < MAX_FLOATS; i++) {
        info.float_names[i] = ((const Operator *)op)->floats[i].name;
        info.floats[i] = read_float();
    }
    context.count = (size_t)read_number();
    for (size_t i = 0; i < context.count; i++)
        read_input(&context, i);
    for (size_t i = 0; i < op->GetOutputTypeCount(op); i++)
        context.element_bytes[i] = element_bytes(op->GetOutputType(op, i));
    OrtStatus *status = run(op, &info, &context);
    answer(status, &context);
    free(status);
    for (size_t i = 0; i < context.count; i++)
        if (context.present[i]) unmap(&context.inputs[i]);
    for (size_t i = 0; i < MAX_OUTPUTS; i++)
        if (context.outputs[i].pages) unmap(&context.outputs[i]);
    if (opened) {
        fprintf(stderr, "%s kept %d of what it opened\n", name, opened);
        exit(5);
    }
}

/* The argument, if there is one, names the instruction set. */
int main(int count, char **arguments) {
    const OrtApiBase base = {get_api, NULL};
    char name[MOST_NAME];
    read_and_write_bytes();
    if (count > 1 && !lensmith_choose(arguments[1])) {
        fprintf(stderr, "this processor lacks %s\n", arguments[1]);
        return 3;
    }
    if (RegisterCustomOps(NULL, &base)) return 3;
    while (read_bytes(name, sizeof name))
        one_case(name);
    return 0;
}
