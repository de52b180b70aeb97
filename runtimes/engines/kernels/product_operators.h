/* Operators of products: every kind of weights with every prologue, and some products of one input at once. */
#ifndef LENSMITH_PRODUCT_OPERATORS_H
#define LENSMITH_PRODUCT_OPERATORS_H

#include "operator.h"

enum { MAX_PRODUCTS = 4 };

Operator *product_operator(size_t index); /* NULL behind the last */
OrtStatus *multiply(const Kernel *kernel, OrtKernelContext *context);

#endif
