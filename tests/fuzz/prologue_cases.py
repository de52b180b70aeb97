"""Prologues of products for the fuzzer: what they take, and in float64 what they make of it."""

from __future__ import annotations

from dataclasses import replace
from math import erf

import numpy as np

from tests.fuzz.driver import Array, Case, Tensor

TAKEN = {"SkipRmsNorm": 2, "SkipLayerNorm": 3, "Gelu": 0, "FastGelu": 0, "QuickGelu": 0, "GatedQuickGelu": 1,
         "GatedSigmoid": 1}  # fmt: skip
NORMS = ("SkipRmsNorm", "SkipLayerNorm")
LIMITS = {**dict.fromkeys(NORMS, (0, 1)), **dict.fromkeys(("QuickGelu", "GatedQuickGelu"), (-100, 100))}


def prologue_of(case: Case) -> str:
    """Its name, or nothing."""
    return next((name for name in TAKEN if case.operator.startswith(name)), "")


def with_prologue(draw: np.random.Generator, name: str, product: Case) -> Case:
    """The right case of a product behind a prologue of the same input."""
    first, *rest = product.inputs
    assert first is not None
    shapes = (first.dims, first.dims[-1:], first.dims[-1:])[: TAKEN[name]]
    taken = [Tensor.of(draw.normal(size=shape).astype(np.float32)) for shape in shapes]
    number = {"epsilon": draw.choice([0, 1e-6, 0.3]), "alpha": draw.choice([1, 1.702])}
    floats = (float(number["epsilon" if name in NORMS else "alpha"]),) if name in LIMITS else ()
    return Case(name + product.operator, product.attributes, (first, *taken, *rest), floats)


def without_prologue(case: Case) -> Case:
    """The product of the same input, not touched."""
    name = prologue_of(case)
    end = 1 + TAKEN.get(name, 0)
    return Case(case.operator.removeprefix(name), case.attributes, (*case.inputs[:1], *case.inputs[end:]))


def is_right_prologue(case: Case) -> bool:
    """Whether all that it takes is there and has the sizes of the input."""
    name = prologue_of(case)
    x, taken = case.inputs[0] if case.inputs else None, case.inputs[1 : 1 + TAKEN.get(name, 0)]
    if x is None or not x.dims or len(taken) != TAKEN.get(name, 0):
        return False
    shapes = (x.dims, x.dims[-1:], x.dims[-1:])
    least, most = LIMITS.get(name, (0, 0))
    return (
        all(tensor is not None and tensor.dims == shape for tensor, shape in zip(taken, shapes, strict=False))
        and all(least <= np.float32(number) <= most for number in case.floats[: name in LIMITS])
    )  # fmt: skip


def prepared(case: Case) -> tuple[Case, Array | None]:
    """The product of what the prologue makes of its input, and the sum that a norm gives."""
    plain, name = without_prologue(case), prologue_of(case)
    x, *taken = (tensor.shaped.astype(np.float64) for tensor in case.inputs[: 1 + TAKEN[name]] if tensor is not None)
    number, total = float(np.float32(case.floats[0])) if case.floats else 0.0, None
    if name in NORMS:
        total = x.astype(np.float32) + taken[0].astype(np.float32)
        x = _normed(total.astype(np.float64), number, *taken[1:])
    elif name == "Gelu":
        x = x * (1 + np.vectorize(erf, [float])(x / 2**0.5)) / 2
    elif name == "FastGelu":
        x = x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
    elif name == "GatedSigmoid":
        x = x * _sigmoid(taken[0])
    elif name == "GatedQuickGelu":
        x = x * taken[0] * _sigmoid(number * taken[0])
    else:
        x = x * _sigmoid(number * x)
    return replace(plain, inputs=(Tensor.of(x.astype(np.float32)), *plain.inputs[1:])), total


def _sigmoid(x: Array) -> Array:
    made: Array = 1 / (1 + np.exp(-x))
    return made


def _normed(x: Array, epsilon: float, weight: Array, *bias: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True) if bias else x
    with np.errstate(invalid="ignore", divide="ignore"):
        normed: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * weight
    return normed + bias[0] if bias else normed
