/* What the operators of products are called and take: "MatMulInt4", "SkipRmsNormThreeMatMulInt4". */
#include "product_operators.h"
#include "matmul_int.h"

#include <stdio.h>

enum { MOST = INT32_MAX }; /* of inputs and of outputs: their product and its bytes fit into 64 bits */

/* What products take before their weights, and whether some of one input may follow. */
typedef struct Form {
    const char *name;
    size_t inputs, outputs;
    Input named[3];
    FloatAttribute number;
    int joins;
} Form;

static const Form FORMS[PROLOGUES] = {
    [NO_PROLOGUE] = {"", .joins = 1},
    [SKIP_RMS_NORM] = {"SkipRmsNorm", 2, 1, {{"skip", TYPE_FLOAT}, {"weight", TYPE_FLOAT}}, {"epsilon", 0, 1}, 1},
    [SKIP_LAYER_NORM] = {"SkipLayerNorm", 3, 1, {{"skip", TYPE_FLOAT}, {"weight", TYPE_FLOAT}, {"beta", TYPE_FLOAT}},
                         {"epsilon", 0, 1}, 1},
    [GELU] = {"Gelu"},
    [FAST_GELU] = {"FastGelu"},
    [QUICK_GELU] = {"QuickGelu", .number = {"alpha", -100, 100}},
    [GATED_QUICK_GELU] = {"GatedQuickGelu", 1, .named = {{"gate", TYPE_FLOAT}}, .number = {"alpha", -100, 100}},
    [GATED_SIGMOID] = {"GatedSigmoid", 1, .named = {{"gate", TYPE_FLOAT}}},
};

static const int BITS[] = {8, 4, 3, 2};
static const char *const COUNTS[] = {"", "", "Two", "Three", "Four"};
static const char *const N[] = {"N", "N1", "N2", "N3", "N4"};
/* Of a product alone, and of each of some. */
static const char *const B[] = {"B", "B1", "B2", "B3", "B4"};
static const char *const SCALES[] = {"scales", "scales1", "scales2", "scales3", "scales4"};
static const char *const ZEROS[] = {"zero_points", "zero_points1", "zero_points2", "zero_points3", "zero_points4"};
static const char *const BIAS[] = {"bias", "bias1", "bias2", "bias3", "bias4"};

static void add_input(Operator *made, const char *name, enum ElementType type) {
    made->named[made->inputs++] = (Input){name, type};
}

/* x and what its prologue takes. */
static Operator begin_operator(enum PrologueKind kind, int bits, size_t count) {
    const Form *form = &FORMS[kind];
    Operator made = {.compute = multiply, .bits = bits, .prologue = kind, .products = count};
    made.outputs = count + form->outputs;
    for (size_t i = 0; i < made.outputs; i++)
        made.made[i] = TYPE_FLOAT;
    made.floats[0] = form->number;
    add_input(&made, "A", TYPE_FLOAT);
    for (size_t i = 0; i < form->inputs; i++)
        add_input(&made, form->named[i].name, form->named[i].type);
    return made;
}

static Operator packed(enum PrologueKind kind, int bits, size_t count) {
    Operator made = begin_operator(kind, bits, count);
    const size_t first = count > 1;
    snprintf(made.spelled, sizeof made.spelled, "%s%sMatMulInt%d", FORMS[kind].name, COUNTS[count], bits);
    made.attributes[0] = (Attribute){"K", 1, MOST};
    for (size_t i = 0; i < count; i++) {
        made.attributes[1 + i] = (Attribute){N[first + i], 1, MOST};
        add_input(&made, B[first + i], TYPE_UINT8);
        add_input(&made, SCALES[first + i], TYPE_FLOAT16);
    }
    made.attributes[1 + count] = (Attribute){"block_size", 16, bits == 8 ? 2 * CHUNK : CHUNK};
    made.required = made.inputs;
    for (size_t i = 0; i < count; i++) {
        add_input(&made, ZEROS[first + i], TYPE_UINT8);
        add_input(&made, BIAS[first + i], TYPE_FLOAT);
    }
    return made;
}

static Operator with_signed_rows(enum PrologueKind kind) {
    Operator made = begin_operator(kind, 0, 1);
    snprintf(made.spelled, sizeof made.spelled, "%sMatMulInt8Rows", FORMS[kind].name);
    add_input(&made, "B", TYPE_INT8);
    add_input(&made, "scales", TYPE_FLOAT16);
    made.required = made.inputs;
    add_input(&made, "bias", TYPE_FLOAT);
    return made;
}

static Operator operators[PROLOGUES * (1 + sizeof BITS / sizeof *BITS * MAX_PRODUCTS)];

static size_t operator_count;

/* When the library is loaded. */
__attribute__((constructor)) static void make_operators(void) {
    for (enum PrologueKind kind = 0; kind < PROLOGUES; kind++) {
        operators[operator_count++] = with_signed_rows(kind);
        for (size_t i = 0; i < sizeof BITS / sizeof *BITS; i++)
            for (size_t count = 1; count <= (FORMS[kind].joins ? MAX_PRODUCTS : 1); count++)
                operators[operator_count++] = packed(kind, BITS[i], count);
    }
    for (size_t i = 0; i < operator_count; i++)
        operators[i].name = operators[i].spelled;
}

Operator *product_operator(size_t index) { return index < operator_count ? &operators[index] : NULL; }
