/* The operators MatMulInt4, 3 and 2: check their tensors and run the part for few or for many rows. */
#include "matmul_int.h"
#include "operator.h"

static size_t behind_first(const Tensor *tensor) {
    size_t size = 1;
    for (size_t i = 1; i < tensor->rank; i++)
        size *= (size_t)tensor->dims[i];
    return size;
}

static OrtStatus *describe(const Kernel *kernel, const Tensor *in, Product *p) {
    const int64_t k = kernel->attributes[0], n = kernel->attributes[1], block = kernel->attributes[2];
    const Tensor *x = &in[0], *weights = &in[1];
    if (block != 16 && block != 32 && block != 64 && block != 128)
        return invalid(kernel, "MatMulInt: block_size is not 16, 32, 64 or 128");
    if (!x->rank || x->dims[x->rank - 1] != k) return invalid(kernel, "MatMulInt: the last dimension of A is not K");
    *p = (Product){.x = x->data, .weights = weights->data, .scales = in[2].data, .zeros = in[3].data};
    p->bias = in[4].data, p->n = (size_t)n, p->k = (size_t)k, p->block = (size_t)block, p->m = 1;
    p->bits = kernel->operator->bits, p->middle = 1 << (p->bits - 1);
    for (size_t i = 0; i + 1 < x->rank; i++)
        p->m *= (size_t)x->dims[i];
    p->blocks = divide_up(p->k, p->block);
    p->chunks = divide_up(p->k, CHUNK);
    if (weights->rank < 2 || weights->dims[0] != n || behind_first(weights) != row_bytes(p, p->bits))
        return invalid(kernel, "MatMulInt: B has not the N rows of packed weights that K and block_size imply");
    return NULL;
}

static OrtStatus *run(const Kernel *kernel, OrtKernelContext *context, Product *p, Scratch *scratch, int few) {
    p->rounded = take(scratch, p->m * p->chunks * CHUNK);
    p->row_scales = take(scratch, p->m * row_blocks(p) * sizeof(float));
    p->row_sums = take(scratch, p->m * row_blocks(p) * sizeof(int32_t));
    if (!few) {
        TRY(parallel_for(kernel, context, p->m, round_row, p));
        return parallel_for(kernel, context, divide_up(p->n, PANEL_COLUMNS), panel_task, p);
    }
    p->lane_scales = take(scratch, p->m * p->chunks * LANES * sizeof(float));
    p->lane_sums = take(scratch, p->m * p->chunks * LANES * sizeof(int32_t));
    for (size_t row = 0; row < p->m; row++) {
        round_row(p, row);
        spread_row(p, row);
    }
    return parallel_for(kernel, context, divide_up(p->n, FEW_ROWS_COLUMNS), few_rows_task, p);
}

static size_t scratch_bytes(const Product *p, int few) {
    const size_t by_block = 2 * room_for(p->m * row_blocks(p) * sizeof(float));
    const size_t by_lane = 2 * room_for(p->m * p->chunks * LANES * sizeof(float));
    return room_for(p->m * p->chunks * CHUNK) + by_block + (few ? by_lane : 0);
}

static OrtStatus *compute(const Kernel *kernel, OrtKernelContext *context) {
    Tensor in[MAX_INPUTS], out;
    Product p;
    Scratch scratch;
    TRY(get_inputs(kernel, context, in));
    TRY(describe(kernel, in, &p));
    out = in[0];
    out.dims[out.rank - 1] = (int64_t)p.n;
    TRY(make_output(kernel, context, &out));
    if (!p.m || !p.n) return NULL;
    p.y = out.data;
    const int few = p.m <= FEW_ROWS;
    TRY(open_scratch(kernel, context, scratch_bytes(&p, few), &scratch));
    OrtStatus *status = run(kernel, context, &p, &scratch, few);
    close_scratch(kernel, &scratch);
    return status;
}

static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c");
}

#define MATMUL_INT(BITS)                                                                                               \
    Operator matmul_int##BITS = {                                                                                      \
        .name = "MatMulInt" #BITS,                                                                                     \
        .supported = supported,                                                                                        \
        .compute = compute,                                                                                            \
        .required = 3,                                                                                                 \
        .inputs = 5,                                                                                                   \
        .types = {TYPE_FLOAT, TYPE_UINT8, TYPE_FLOAT16, TYPE_UINT8, TYPE_FLOAT},                                       \
        .attributes = {"K", "N", "block_size"},                                                                        \
        .bits = BITS,                                                                                                  \
    }

MATMUL_INT(4);
MATMUL_INT(3);
MATMUL_INT(2);
