/* The operator AttentionBf16: full attention of float tensors, rounded to bfloat16 inside. */
#include "attention.h"
#include "instruction_set.h"
#include "operator.h"

#include <inttypes.h>

static OrtStatus *check_sizes(const Kernel *kernel, const Tensor *in) {
    const int64_t *q = in[0].dims, *k = in[1].dims, heads = kernel->attributes[0];
    TRY(expect_shape(kernel, in, 0, 3, (int64_t[]){ANY, ANY, ANY}));
    TRY(expect_shape(kernel, in, 1, 3, (int64_t[]){q[0], ANY, q[2]}));
    TRY(expect_shape(kernel, in, 2, 3, (int64_t[]){q[0], k[1], q[2]}));
    if (q[2] < 2 || q[2] % heads || q[2] / heads % 2 || q[2] / heads > MAX_WIDTH)
        return invalid(kernel, "%" PRId64 " values do not make %" PRId64 " heads of 2, 4, ... or %d values", q[2], heads,
                       MAX_WIDTH);
    if (elements(&in[0]) && !elements(&in[1])) return invalid(kernel, "the input key has no elements, unlike query");
    return NULL;
}

static OrtStatus *describe(const Kernel *kernel, const Tensor *in, Attention *a) {
    const int64_t heads = kernel->attributes[0], size = in[0].dims[2];
    TRY(check_sizes(kernel, in));
    *a = (Attention){.q = in[0].data, .k = in[1].data, .v = in[2].data};
    a->batch = (size_t)in[0].dims[0], a->queries = (size_t)in[0].dims[1], a->keys = (size_t)in[1].dims[1];
    a->heads = (size_t)heads, a->width = (size_t)(size / heads);
    a->tiles = divide_up(a->keys, TILE_KEYS);
    a->vectors = divide_up(a->width, WORDS);
    return NULL;
}

static OrtStatus *run(const Kernel *kernel, OrtKernelContext *context, Attention *a) {
    const size_t pairs = a->batch * a->heads, tiles = pairs * a->tiles;
    const size_t k_bytes = tiles * k_tile_words(a) * 4, v_bytes = tiles * v_tile_words(a) * 4;
    Scratch scratch;
    TRY(open_scratch(kernel, context, room_for(k_bytes) + room_for(v_bytes), &scratch));
    a->packed_k = take(&scratch, k_bytes);
    a->packed_v = take(&scratch, v_bytes);
    OrtStatus *status = parallel_for(kernel, context, tiles, instructions()->pack_tile, a);
    if (!status)
        status = parallel_for(kernel, context, pairs * divide_up(a->queries, QUERY_BLOCK), instructions()->query_block, a);
    close_scratch(kernel, &scratch);
    return status;
}

static OrtStatus *compute(const Kernel *kernel, OrtKernelContext *context) {
    Tensor in[MAX_INPUTS], out;
    Attention a;
    TRY(get_inputs(kernel, context, in));
    TRY(describe(kernel, in, &a));
    out = in[0];
    TRY(make_output(kernel, context, 0, &out));
    a.out = out.data;
    return elements(&out) ? run(kernel, context, &a) : NULL;
}

Operator attention_bf16 = {
    .name = "AttentionBf16",
    .compute = compute,
    .required = 3,
    .inputs = 3,
    .outputs = 1,
    .named = {{"query", TYPE_FLOAT}, {"key", TYPE_FLOAT}, {"value", TYPE_FLOAT}},
    .made = {TYPE_FLOAT},
    .attributes = {{"num_heads", 1, INT32_MAX}},
};
