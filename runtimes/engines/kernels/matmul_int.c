/* The operators MatMulInt8, 4, 3 and 2: check their tensors and run the part for few or for many rows. */
#include "matmul_int.h"
#include "instruction_set.h"
#include "operator.h"

enum { SIGNED_BLOCK = 2 * CHUNK }; /* of activations */

static OrtStatus *check_sizes(const Kernel *kernel, const Tensor *in, const Product *p) {
    const Tensor *x = &in[0];
    if (!x->rank || x->dims[x->rank - 1] != (int64_t)p->k)
        return expect_shape(kernel, in, 0, 2, (int64_t[]){ANY, (int64_t)p->k});
    if (p->bits == 8 && p->zeros) return invalid(kernel, "weights of 8 bits have no zero_points");
    TRY(expect_rows(kernel, in, 1, p->n, row_bytes(p, p->bits)));
    TRY(expect_rows(kernel, in, 2, p->n, p->blocks));
    TRY(expect_rows(kernel, in, 3, p->n, zero_bytes(p)));
    return expect_rows(kernel, in, 4, p->n, 1);
}

/* Their sizes are those of the weights. */
static OrtStatus *describe_signed(const Kernel *kernel, const Tensor *in, Product *p) {
    const int64_t n = in[1].dims[0], k = in[1].dims[1];
    TRY(expect_shape(kernel, in, 1, 2, (int64_t[]){ANY, ANY}));
    if (n < 1 || n > INT32_MAX || k < 1 || k > INT32_MAX) return invalid(kernel, "the input B has no elements");
    if (!in[0].rank || in[0].dims[in[0].rank - 1] != k) return expect_shape(kernel, in, 0, 2, (int64_t[]){ANY, k});
    TRY(expect_shape(kernel, in, 2, 1, &n));
    TRY(expect_shape(kernel, in, 3, 1, &n));
    *p = (Product){.x = in[0].data, .weights = in[1].data, .scales = in[2].data, .bias = in[3].data};
    p->n = (size_t)n, p->k = (size_t)k, p->block = SIGNED_BLOCK, p->bits = 8, p->middle = 128, p->is_signed = 1;
    p->m = elements(&in[0]) / p->k;
    p->blocks = divide_up(p->k, SIGNED_BLOCK);
    p->chunks = p->blocks * SIGNED_BLOCK / CHUNK;
    return NULL;
}

static OrtStatus *describe(const Kernel *kernel, const Tensor *in, Product *p) {
    const size_t k = (size_t)kernel->attributes[0], block = (size_t)kernel->attributes[2];
    if (block & (block - 1)) return invalid(kernel, "block_size is %zu, expected a power of two", block);
    *p = (Product){.x = in[0].data, .weights = in[1].data, .scales = in[2].data, .zeros = in[3].data};
    p->bias = in[4].data, p->n = (size_t)kernel->attributes[1], p->k = k, p->block = block;
    p->bits = kernel->operator->bits, p->middle = 1 << (p->bits - 1);
    p->m = elements(&in[0]) / k;
    p->blocks = divide_up(k, block);
    p->chunks = divide_up(p->blocks * block, CHUNK);
    return check_sizes(kernel, in, p);
}

static size_t scratch_bytes(const Product *p) {
    return room_for(p->m * p->chunks * CHUNK) + 2 * room_for(p->m * row_blocks(p) * sizeof(float));
}

static OrtStatus *run(const Kernel *kernel, OrtKernelContext *context, Product *p, Scratch *scratch) {
    const InstructionSet *set = instructions();
    p->rounded = take(scratch, p->m * p->chunks * CHUNK);
    p->row_scales = take(scratch, p->m * row_blocks(p) * sizeof(float));
    p->row_sums = take(scratch, p->m * row_blocks(p) * sizeof(int32_t));
    if (p->m > FEW_ROWS || p->bits == 8) {
        TRY(parallel_for(kernel, context, p->m, set->round_row, p));
        return parallel_for(kernel, context, divide_up(p->n, PANEL_COLUMNS), set->panel, p);
    }
    for (size_t row = 0; row < p->m; row++)
        set->round_row(p, row); /* handing it to threads would take longer */
    return parallel_for(kernel, context, divide_up(p->n, FEW_ROWS_COLUMNS), set->few_rows, p);
}

static OrtStatus *compute(const Kernel *kernel, OrtKernelContext *context) {
    Tensor in[MAX_INPUTS], out;
    Product p;
    Scratch scratch;
    TRY(get_inputs(kernel, context, in));
    TRY(kernel->operator->bits ? describe(kernel, in, &p) : describe_signed(kernel, in, &p));
    out = in[0];
    out.dims[out.rank - 1] = (int64_t)p.n;
    TRY(make_output(kernel, context, 0, &out));
    if (!p.m) return NULL;
    p.y = out.data;
    TRY(open_scratch(kernel, context, scratch_bytes(&p), &scratch));
    OrtStatus *status = run(kernel, context, &p, &scratch);
    close_scratch(kernel, &scratch);
    return status;
}

enum { MOST = INT32_MAX }; /* of inputs and of outputs: their product and its bytes fit into 64 bits */

#define MATMUL_INT(BITS, BLOCK)                                                                                         \
    Operator matmul_int##BITS = {                                                                                      \
        .name = "MatMulInt" #BITS,                                                                                     \
        .compute = compute,                                                                                            \
        .required = 3,                                                                                                 \
        .inputs = 5,                                                                                                   \
        .outputs = 1,                                                                                                  \
        .named = {{"A", TYPE_FLOAT},                                                                                   \
                  {"B", TYPE_UINT8},                                                                                   \
                  {"scales", TYPE_FLOAT16},                                                                            \
                  {"zero_points", TYPE_UINT8},                                                                         \
                  {"bias", TYPE_FLOAT}},                                                                               \
        .made = {TYPE_FLOAT},                                                                                          \
        .attributes = {{"K", 1, MOST}, {"N", 1, MOST}, {"block_size", 16, BLOCK}},                                     \
        .bits = BITS,                                                                                                  \
    }

MATMUL_INT(8, 2 * CHUNK);
MATMUL_INT(4, CHUNK);
MATMUL_INT(3, CHUNK);
MATMUL_INT(2, CHUNK);

Operator matmul_int8_rows = {
    .name = "MatMulInt8Rows",
    .compute = compute,
    .required = 3,
    .inputs = 4,
    .outputs = 1,
    .named = {{"A", TYPE_FLOAT}, {"B", TYPE_INT8}, {"scales", TYPE_FLOAT16}, {"bias", TYPE_FLOAT}},
    .made = {TYPE_FLOAT},
};
