/* The operator NormRotary: queries and keys of new tokens, each head normed and turned by the token's position. */
#include "norm_rotary.h"
#include "instruction_set.h"
#include "operator.h"

#include <inttypes.h>

enum { QUERY, KEY, QUERY_WEIGHT, KEY_WEIGHT, POSITIONS, COSINE, SINE };
enum { ROWS_OF_A_STEP = 8 }; /* handing so many to threads would take longer */

/* Values of a head that are turned: all where the attribute is 0. */
static int64_t turned_values(const Kernel *kernel, int64_t width) {
    return kernel->attributes[2] ? kernel->attributes[2] : width;
}

static OrtStatus *check_sizes(const Kernel *kernel, const Tensor *in) {
    const int64_t heads = kernel->attributes[0], kv_heads = kernel->attributes[1], *q = in[QUERY].dims;
    TRY(expect_shape(kernel, in, QUERY_WEIGHT, 1, (int64_t[]){ANY}));
    const int64_t width = in[QUERY_WEIGHT].dims[0], turned = turned_values(kernel, width);
    if (width < 1 || width > INT32_MAX || turned > width || turned % 2)
        return invalid(kernel, "%" PRId64 " of a head's %" PRId64 " values are turned, expected an even number that it has",
                       turned, width);
    TRY(expect_shape(kernel, in, KEY_WEIGHT, 1, (int64_t[]){width}));
    TRY(expect_shape(kernel, in, QUERY, 3, (int64_t[]){ANY, ANY, heads * width}));
    TRY(expect_shape(kernel, in, KEY, 3, (int64_t[]){q[0], q[1], kv_heads * width}));
    TRY(expect_shape(kernel, in, POSITIONS, 2, q));
    TRY(expect_shape(kernel, in, COSINE, 2, (int64_t[]){ANY, turned / 2}));
    return expect_shape(kernel, in, SINE, 2, in[COSINE].dims);
}

/* Every token has its row of the tables. */
static OrtStatus *check_positions(const Kernel *kernel, const NormRotary *n, int64_t known) {
    for (size_t row = 0; row < n->rows; row++)
        if (n->positions[row] < 0 || n->positions[row] >= known)
            return invalid(kernel, "a token has the position %" PRId64 ", of the %" PRId64 " of the inputs cos and sin",
                           n->positions[row], known);
    return NULL;
}

static OrtStatus *describe(const Kernel *kernel, const Tensor *in, NormRotary *n) {
    TRY(check_sizes(kernel, in));
    *n = (NormRotary){.positions = in[POSITIONS].data, .cosine = in[COSINE].data, .sine = in[SINE].data};
    n->query = (Heads){in[QUERY].data, in[QUERY_WEIGHT].data, NULL, (size_t)kernel->attributes[0]};
    n->key = (Heads){in[KEY].data, in[KEY_WEIGHT].data, NULL, (size_t)kernel->attributes[1]};
    n->rows = elements(&in[POSITIONS]);
    n->width = (size_t)in[QUERY_WEIGHT].dims[0];
    n->turned = (size_t)in[COSINE].dims[1];
    n->epsilon = kernel->floats[0];
    return check_positions(kernel, n, in[COSINE].dims[0]);
}

static OrtStatus *run(const Kernel *kernel, OrtKernelContext *context, NormRotary *n) {
    Task *const norm_rotary_row = instructions()->norm_rotary_row;
    if (n->rows > ROWS_OF_A_STEP) return parallel_for(kernel, context, n->rows, norm_rotary_row, n);
    for (size_t row = 0; row < n->rows; row++)
        norm_rotary_row(n, row);
    return NULL;
}

static OrtStatus *compute(const Kernel *kernel, OrtKernelContext *context) {
    Tensor in[MAX_INPUTS], query, key;
    NormRotary n;
    TRY(get_inputs(kernel, context, in));
    TRY(describe(kernel, in, &n));
    query = in[QUERY], key = in[KEY];
    TRY(make_output(kernel, context, 0, &query));
    TRY(make_output(kernel, context, 1, &key));
    n.query.out = query.data, n.key.out = key.data;
    return run(kernel, context, &n);
}

Operator norm_rotary = {
    .name = "NormRotary",
    .compute = compute,
    .required = 7,
    .inputs = 7,
    .outputs = 2,
    .named = {{"query", TYPE_FLOAT}, {"key", TYPE_FLOAT}, {"query_weight", TYPE_FLOAT}, {"key_weight", TYPE_FLOAT},
              {"positions", TYPE_INT64}, {"cos", TYPE_FLOAT}, {"sin", TYPE_FLOAT}},
    .made = {TYPE_FLOAT, TYPE_FLOAT},
    .attributes = {{"num_heads", 1, 1 << 14}, {"kv_num_heads", 1, 1 << 14}, {"rotary_embedding_dim", 0, 1 << 14}},
    .floats = {{"epsilon", 0.0f, 1.0f}},
};
