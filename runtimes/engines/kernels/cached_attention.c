/* The operators CachedAttention and CachedAttentionInt8: causal attention of new tokens over a cache of float16 or int8,
 * which they enter first. */
#include "cached_attention.h"
#include "instruction_set.h"
#include "operator.h"

#include <inttypes.h>
#include <string.h>

enum { QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, PAST_LENGTHS, KEY_SCALES, VALUE_SCALES };

static OrtStatus *check_sizes(const Kernel *kernel, const Tensor *in) {
    const int64_t heads = kernel->attributes[0], kv_heads = kernel->attributes[1];
    const int64_t *q = in[QUERY].dims, *past = in[PAST_KEY].dims;
    TRY(expect_shape(kernel, in, PAST_KEY, 4, (int64_t[]){ANY, kv_heads, ANY, ANY}));
    TRY(expect_shape(kernel, in, PAST_VALUE, 4, past));
    const int64_t batch = past[0], width = past[3];
    if (heads % kv_heads) return invalid(kernel, "%" PRId64 " heads do not share %" PRId64, heads, kv_heads);
    if (width < WORDS || width % WORDS || width > MAX_WIDTH)
        return invalid(kernel, "a head has %" PRId64 " values, expected 16, 32, ... or %d", width, MAX_WIDTH);
    TRY(expect_shape(kernel, in, QUERY, 3, (int64_t[]){batch, ANY, heads * width}));
    TRY(expect_shape(kernel, in, KEY, 3, (int64_t[]){batch, q[1], kv_heads * width}));
    TRY(expect_shape(kernel, in, VALUE, 3, (int64_t[]){batch, q[1], kv_heads * width}));
    TRY(expect_shape(kernel, in, KEY_SCALES, 4, (int64_t[]){1, kv_heads, 1, width}));
    TRY(expect_shape(kernel, in, VALUE_SCALES, 4, (int64_t[]){1, kv_heads, 1, width}));
    return expect_shape(kernel, in, PAST_LENGTHS, 1, (int64_t[]){batch});
}

/* Every new key must have its place. */
static OrtStatus *check_lengths(const Kernel *kernel, const CachedAttention *a, size_t *longest) {
    *longest = 0;
    for (size_t row = 0; row < a->batch; row++) {
        const int64_t past = a->past[row], capacity = (int64_t)a->capacity, queries = (int64_t)a->queries;
        if (past < 0 || queries > capacity || past > capacity - queries)
            return invalid(kernel, "the cache has room for %" PRId64 " keys, not for %" PRId64 " and %" PRId64 " new ones",
                           capacity, past, queries);
        if ((size_t)past + a->queries > *longest) *longest = (size_t)past + a->queries;
    }
    return NULL;
}

static OrtStatus *describe(const Kernel *kernel, const Tensor *in, CachedAttention *a) {
    size_t longest;
    TRY(check_sizes(kernel, in));
    *a = (CachedAttention){.q = in[QUERY].data, .k = in[KEY].data, .v = in[VALUE].data, .past = in[PAST_LENGTHS].data};
    a->key_scales = in[KEY_SCALES].data, a->value_scales = in[VALUE_SCALES].data;
    a->kv_heads = (size_t)kernel->attributes[1], a->group = (size_t)kernel->attributes[0] / a->kv_heads;
    a->batch = (size_t)in[PAST_KEY].dims[0], a->capacity = (size_t)in[PAST_KEY].dims[2];
    a->width = (size_t)in[PAST_KEY].dims[3], a->queries = (size_t)in[QUERY].dims[1];
    if (!elements(&in[QUERY])) return NULL;
    TRY(check_lengths(kernel, a, &longest));
    a->rows = a->queries * a->group;
    a->block_rows = BLOCK_VALUES / a->width < BLOCK_ROWS ? BLOCK_VALUES / a->width : BLOCK_ROWS;
    a->ranges = divide_up(longest, RANGE_KEYS);
    return NULL;
}

/* Present caches are the past ones where the caller bound both to one buffer, and copies elsewhere. */
static OrtStatus *present(const Kernel *kernel, OrtKernelContext *context, const Tensor *in, size_t index, size_t each,
                          char **data) {
    Tensor out = in[index];
    TRY(make_output(kernel, context, index - PAST_KEY + 1, &out));
    const size_t bytes = elements(&out) * each;
    if (bytes && out.data != in[index].data) memcpy(out.data, in[index].data, bytes);
    *data = out.data;
    return NULL;
}

/* A few rows: ranges of keys are tasks, so that many threads have something to do. */
static OrtStatus *run_few(const Kernel *kernel, OrtKernelContext *context, CachedAttention *a) {
    const InstructionSet *set = instructions();
    const size_t heads = a->batch * a->kv_heads;
    Scratch scratch;
    TRY(open_scratch(kernel, context, room_for(heads * a->ranges * partial_size(a) * sizeof(float)), &scratch));
    a->partial = take(&scratch, heads * a->ranges * partial_size(a) * sizeof(float));
    OrtStatus *status = parallel_for(kernel, context, heads * a->ranges, set->cached_range, a);
    for (size_t head = 0; !status && head < heads; head++)
        set->cached_merge(a, head); /* handing it to threads would take longer */
    close_scratch(kernel, &scratch);
    return status;
}

static OrtStatus *run(const Kernel *kernel, OrtKernelContext *context, CachedAttention *a) {
    const InstructionSet *set = instructions();
    const size_t heads = a->batch * a->kv_heads;
    if (a->rows <= a->block_rows) {
        for (size_t head = 0; head < heads; head++)
            set->cached_append(a, head);
        return run_few(kernel, context, a);
    }
    TRY(parallel_for(kernel, context, heads, set->cached_append, a));
    return parallel_for(kernel, context, heads * divide_up(a->rows, a->block_rows), set->cached_block, a);
}

static OrtStatus *compute(const Kernel *kernel, OrtKernelContext *context) {
    Tensor in[MAX_INPUTS], out;
    CachedAttention a;
    TRY(get_inputs(kernel, context, in));
    TRY(describe(kernel, in, &a));
    out = in[QUERY];
    TRY(make_output(kernel, context, 0, &out));
    TRY(present(kernel, context, in, PAST_KEY, cached_bytes(&a), &a.keys));
    TRY(present(kernel, context, in, PAST_VALUE, cached_bytes(&a), &a.values));
    a.out = out.data;
    return elements(&out) ? run(kernel, context, &a) : NULL;
}

#define CACHED_ATTENTION(TYPE)                                                                                         \
    {"query", TYPE_FLOAT}, {"key", TYPE_FLOAT}, {"value", TYPE_FLOAT}, {"past_key", TYPE}, {"past_value", TYPE},       \
        {"past_lengths", TYPE_INT32}
#define HEADS {{"num_heads", 1, 1 << 14}, {"kv_num_heads", 1, 1 << 14}}

Operator cached_attention = {
    .name = "CachedAttention",
    .compute = compute,
    .required = 6,
    .inputs = 6,
    .outputs = 3,
    .named = {CACHED_ATTENTION(TYPE_FLOAT16)},
    .made = {TYPE_FLOAT, TYPE_FLOAT16, TYPE_FLOAT16},
    .attributes = HEADS,
};

Operator cached_attention_int8 = {
    .name = "CachedAttentionInt8",
    .compute = compute,
    .required = 8,
    .inputs = 8,
    .outputs = 3,
    .named = {CACHED_ATTENTION(TYPE_INT8), {"key_scales", TYPE_FLOAT}, {"value_scales", TYPE_FLOAT}},
    .made = {TYPE_FLOAT, TYPE_INT8, TYPE_INT8},
    .attributes = HEADS,
};
