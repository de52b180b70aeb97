/* Products of the same input with packed weights: check their tensors and run the part for few or for many rows. */
#include "matmul_int.h"
#include "instruction_set.h"
#include "product_operators.h"

enum { SIGNED_BLOCK = 2 * CHUNK }; /* of activations */

/* Products of the same x. Their inputs are x, those of its prologue, weights and scales of each, then zero points and
 * bias of each. */
typedef struct Joined {
    Product parts[MAX_PRODUCTS];
    size_t count, columns; /* of outputs in a task */
    void (*task)(void *product, size_t index);
} Joined;

static OrtStatus *check_sizes(const Kernel *kernel, const Tensor *in, size_t needed, size_t optional,
                              const Product *p) {
    const Tensor *x = &in[0];
    if (!x->rank || x->dims[x->rank - 1] != (int64_t)p->k)
        return expect_shape(kernel, in, 0, 2, (int64_t[]){ANY, (int64_t)p->k});
    if (p->bits == 8 && p->zeros) return invalid(kernel, "weights of 8 bits have no zero_points");
    TRY(expect_rows(kernel, in, needed, p->n, row_bytes(p, p->bits)));
    TRY(expect_rows(kernel, in, needed + 1, p->n, p->blocks));
    TRY(expect_rows(kernel, in, optional, p->n, zero_bytes(p)));
    return expect_rows(kernel, in, optional + 1, p->n, 1);
}

/* Where the weights are among the inputs. */
static size_t first_weights(const Operator *operator) { return operator->required - 2 * operator->products; }

/* Their sizes are those of the weights. */
static OrtStatus *describe_signed(const Kernel *kernel, const Tensor *in, Product *p) {
    const size_t weights = first_weights(kernel->operator), scales = weights + 1, bias = weights + 2;
    const int64_t n = in[weights].dims[0], k = in[weights].dims[1];
    TRY(expect_shape(kernel, in, weights, 2, (int64_t[]){ANY, ANY}));
    if (n < 1 || n > INT32_MAX || k < 1 || k > INT32_MAX) return invalid(kernel, "the input B has no elements");
    if (!in[0].rank || in[0].dims[in[0].rank - 1] != k) return expect_shape(kernel, in, 0, 2, (int64_t[]){ANY, k});
    TRY(expect_shape(kernel, in, scales, 1, &n));
    TRY(expect_shape(kernel, in, bias, 1, &n));
    *p = (Product){.x = in[0].data, .weights = in[weights].data, .scales = in[scales].data, .bias = in[bias].data};
    p->n = (size_t)n, p->k = (size_t)k, p->block = SIGNED_BLOCK, p->bits = 8, p->middle = 128, p->is_signed = 1;
    p->m = elements(&in[0]) / p->k;
    p->blocks = divide_up(p->k, SIGNED_BLOCK);
    p->chunks = p->blocks * SIGNED_BLOCK / CHUNK;
    return NULL;
}

/* The product at `index` of those that are joined. */
static OrtStatus *describe(const Kernel *kernel, const Tensor *in, size_t index, Product *p) {
    const size_t k = (size_t)kernel->attributes[0], block = (size_t)kernel->attributes[1 + kernel->operator->products];
    const size_t needed = first_weights(kernel->operator) + 2 * index, optional = kernel->operator->required + 2 * index;
    if (block & (block - 1)) return invalid(kernel, "block_size is %zu, expected a power of two", block);
    *p = (Product){.x = in[0].data, .weights = in[needed].data, .scales = in[needed + 1].data};
    p->zeros = in[optional].data, p->bias = in[optional + 1].data;
    p->n = (size_t)kernel->attributes[1 + index], p->k = k, p->block = block;
    p->bits = kernel->operator->bits, p->middle = 1 << (p->bits - 1);
    p->m = elements(&in[0]) / k;
    p->blocks = divide_up(k, block);
    p->chunks = divide_up(p->blocks * block, CHUNK);
    return check_sizes(kernel, in, needed, optional, p);
}

/* Its inputs are of one shape with x, and behind that a row. */
static OrtStatus *describe_prologue(const Kernel *kernel, const Tensor *in, Product *p) {
    const size_t end = first_weights(kernel->operator);
    const int64_t k = (int64_t)p->k;
    p->before = (Prologue){.kind = kernel->operator->prologue, .number = kernel->floats[0]};
    if (end > 1) TRY(expect_shape(kernel, in, 1, in[0].rank, in[0].dims));
    for (size_t i = 2; i < end; i++)
        TRY(expect_shape(kernel, in, i, 1, &k));
    if (end > 1) p->before.other = in[1].data;
    if (end > 2) p->before.weight = in[2].data;
    if (end > 3) p->before.bias = in[3].data;
    return NULL;
}

static OrtStatus *describe_all(const Kernel *kernel, const Tensor *in, Joined *all) {
    all->count = kernel->operator->products;
    if (!kernel->operator->bits) TRY(describe_signed(kernel, in, &all->parts[0]));
    for (size_t i = 0; i < all->count && kernel->operator->bits; i++) {
        TRY(describe(kernel, in, i, &all->parts[i]));
        if (!all->parts[i].zeros != !all->parts[0].zeros) /* the sums of rounded values hold the middle or not */
            return invalid(kernel, "some products have zero_points and some have none, expected all or none");
    }
    return describe_prologue(kernel, in, &all->parts[0]);
}

static OrtStatus *make_outputs(const Kernel *kernel, OrtKernelContext *context, const Tensor *x, Joined *all) {
    for (size_t i = 0; i < all->count; i++) {
        Tensor out = *x;
        out.dims[out.rank - 1] = (int64_t)all->parts[i].n;
        TRY(make_output(kernel, context, i, &out));
        all->parts[i].y = out.data;
    }
    if (kernel->operator->outputs == all->count) return NULL;
    Tensor sum = *x;
    TRY(make_output(kernel, context, all->count, &sum));
    all->parts[0].before.sum = sum.data;
    return NULL;
}

static size_t scratch_bytes(const Product *p) {
    return room_for(p->m * p->chunks * CHUNK) + 2 * room_for(p->m * row_blocks(p) * sizeof(float));
}

/* x is rounded once for all. */
static void share_rounded(Joined *all, Scratch *scratch) {
    Product *p = &all->parts[0];
    p->rounded = take(scratch, p->m * p->chunks * CHUNK);
    p->row_scales = take(scratch, p->m * row_blocks(p) * sizeof(float));
    p->row_sums = take(scratch, p->m * row_blocks(p) * sizeof(int32_t));
    for (size_t i = 1; i < all->count; i++) {
        Product *other = &all->parts[i];
        other->rounded = p->rounded, other->row_scales = p->row_scales, other->row_sums = p->row_sums;
    }
}

static size_t tasks(const Joined *all, size_t index) { return divide_up(all->parts[index].n, all->columns); }

static void task_of_all(void *joined, size_t index) {
    Joined *all = joined;
    size_t i = 0;
    for (; index >= tasks(all, i); i++)
        index -= tasks(all, i);
    all->task(&all->parts[i], index);
}

static OrtStatus *run(const Kernel *kernel, OrtKernelContext *context, Joined *all) {
    const InstructionSet *set = instructions();
    Product *p = &all->parts[0];
    const int few = p->m <= FEW_ROWS && p->bits != 8;
    const int alone = few && (p->m == 1 || !p->before.kind); /* handing it to threads would take longer */
    all->task = few ? set->few_rows : set->panel, all->columns = few ? FEW_ROWS_COLUMNS : PANEL_COLUMNS;
    if (!alone) TRY(parallel_for(kernel, context, p->m, set->round_row, p));
    for (size_t row = 0; alone && row < p->m; row++)
        set->round_row(p, row);
    size_t count = 0;
    for (size_t i = 0; i < all->count; i++)
        count += tasks(all, i);
    return parallel_for(kernel, context, count, task_of_all, all);
}

OrtStatus *multiply(const Kernel *kernel, OrtKernelContext *context) {
    Tensor in[MAX_INPUTS];
    Joined all;
    Scratch scratch;
    TRY(get_inputs(kernel, context, in));
    TRY(describe_all(kernel, in, &all));
    TRY(make_outputs(kernel, context, &in[0], &all));
    if (!all.parts[0].m) return NULL;
    TRY(open_scratch(kernel, context, scratch_bytes(&all.parts[0]), &scratch));
    share_rounded(&all, &scratch);
    OrtStatus *status = run(kernel, context, &all);
    close_scratch(kernel, &scratch);
    return status;
}
