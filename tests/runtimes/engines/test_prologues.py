"""Prologues of products: what norms and activations make of an input before it is rounded, without writing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.formats.onnx.native_operators import FUNCTIONS
from lensmith.exporters.formats.onnx.product_functions import PROLOGUES
from lensmith.runtimes.graph_limits import graph_operators

from tests.fuzz.driver import Case, Tensor
from tests.fuzz.prologue_cases import NORMS, TAKEN, prepared, with_prologue
from tests.helpers.native import Array, need, session
from tests.runtimes.engines import test_instruction_sets
from tests.runtimes.engines.test_instruction_sets import bits, sets_here
from tests.runtimes.engines.test_native import EXACT, Product, activations, signed_parts

quickest_again = test_instruction_sets.quickest_again
KINDS = ("MatMulInt4", "MatMulInt8", "MatMulInt8Rows")
OUTPUTS = 30


class Behind:
    """Random products of one kind behind a prologue, and a right case of it."""

    def __init__(self, name: str, kind: str, x: Array) -> None:
        need(name + kind)
        inputs, draw = x.shape[1], np.random.default_rng(x.shape[1])
        self.name, self.kind = name, kind
        product = Product(inputs, OUTPUTS, 128, bits=4 if kind == "MatMulInt4" else 8, bias=True)
        rows = kind == "MatMulInt8Rows"
        self.parts: Mapping[str, Array] = signed_parts(inputs, OUTPUTS) if rows else product.weights
        self.sizes = {} if rows else product.attributes
        self.case = with_prologue(draw, name, Case(kind, (), (Tensor.of(x),)))
        self.numbers = {PROLOGUES[name].number: self.case.floats[0]} if self.case.floats else {}
        self.taken = {
            key: tensor.values
            for key, tensor in zip(("A", *PROLOGUES[name].inputs), self.case.inputs, strict=True)
            if tensor is not None
        }

    def run(self, rows: slice = slice(None), *, native: bool = True, threads: int = 2) -> Array:
        """What some rows of the case give."""
        feed = {key: part[rows] if part.ndim > 1 else part for key, part in self.taken.items()}
        numbers: Mapping[str, Any] = {**self.sizes, **self.numbers}
        return session(self.name + self.kind, feed, self.parts, native=native, threads=threads, **numbers)()

    def product_of(self, x: Array) -> Array:
        sizes: Mapping[str, Any] = self.sizes
        return session(self.kind, {"A": x}, self.parts, **sizes)()


def far(found: Array, wanted: Array) -> Array:
    """How far rows are from what they should be, of their lengths."""
    distance: Array = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return distance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TAKEN)
def test_prologue_means_what_float64_says(name: str, kind: str) -> None:
    """Float32 moves an input to another of 127 levels once in some hundred thousand, which is far for a row."""
    made = Behind(name, kind, activations(12, 4096))
    x = prepared(made.case)[0].inputs[0]
    assert x is not None
    distances = far(made.run(), made.product_of(x.values))
    assert np.median(distances) < EXACT
    assert distances.max() < 2e-3


@pytest.mark.parametrize("name", TAKEN)
def test_bits_are_those_of_every_set_and_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, inputs in (("MatMulInt4", 1000), ("MatMulInt4", 77), ("MatMulInt8Rows", 384)):
        x = activations(70, inputs)
        x[5, 3], x[6] = 1e4, 0
        made = Behind(name, kind, x)
        whole = bits(made.run())
        for instructions in sets_here(monkeypatch):
            for rows in (slice(6, 7), slice(4, 11), slice(0, 70)):
                np.testing.assert_array_equal(bits(made.run(rows)), whole[rows], err_msg=instructions)
            np.testing.assert_array_equal(bits(made.run(threads=1)), whole, err_msg=instructions)


@pytest.mark.parametrize(("kind", "bound"), [("MatMulInt4", 0.02), ("MatMulInt8Rows", 0.1)])
@pytest.mark.parametrize("name", TAKEN)
def test_function_means_the_same(name: str, kind: str, bound: float) -> None:
    """ONNX Runtime rounds activations as well, at places of its own; those of MatMulInt8Rows in a whole tensor."""
    made = Behind(name, kind, activations(7, 256))
    assert far(made.run(), made.run(native=False)).max() < bound


@pytest.mark.parametrize("name", [name for name in TAKEN if name not in NORMS])
@pytest.mark.parametrize("value", [-1e30, -200, -89, 89, 200, 1e30])
def test_activations_of_far_numbers(name: str, value: float) -> None:
    made = Behind(name, "MatMulInt8", np.full((1, 256), value, np.float32))
    if "gate" in made.taken:
        made.taken["gate"][:] = value
    limit = 0.0 if value < 0 else value * (value if name == "GatedQuickGelu" else 1)
    wanted = made.product_of(np.full((1, 256), min(limit, 3e38), np.float32))
    if limit < 3e38:
        np.testing.assert_allclose(made.run(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NORMS)
def test_norm_of_nothing_is_nothing(name: str) -> None:
    made = Behind(name, "MatMulInt4", np.zeros((2, 256), np.float32))
    made.taken["skip"][:], made.numbers = 0, {"epsilon": 1e-6}
    beta = made.taken.get("beta", np.zeros(256, np.float32))
    np.testing.assert_array_equal(made.run(), made.product_of(np.tile(beta, (2, 1))))


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_no_number_spoils_its_row_alone(name: str) -> None:
    x = activations(3, 256)
    right = Behind(name, "MatMulInt4", x.copy()).run()
    x[1, 200] = np.nan
    found = Behind(name, "MatMulInt4", x).run()
    assert not np.isfinite(found[1]).any()
    np.testing.assert_array_equal(found[[0, 2]], right[[0, 2]])


WRONG = {
    "skip": ("SkipRmsNorm", np.ones((2, 256), np.float32), "the input skip has the shape [2, 256], expected [3, 256]"),
    "weight": ("SkipRmsNorm", np.ones(255, np.float32), "the input weight has the shape [255], expected [256]"),
    "beta": ("SkipLayerNorm", np.ones((1, 256), np.float32), "the input beta has the shape [1, 256], expected [256]"),
    "gate": ("GatedSigmoid", np.ones((3, 1), np.float32), "the input gate has the shape [3, 1], expected [3, 256]"),
}


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("kind", ["MatMulInt4", "MatMulInt8Rows"])
def test_sizes_that_do_not_fit_are_refused(key: str, kind: str) -> None:
    name, part, expected = WRONG[key]
    made = Behind(name, kind, activations(3, 256))
    made.taken[key] = part
    with pytest.raises(Exception, match=f"{name}{kind}: ") as caught:
        made.run()
    assert expected in str(caught.value)


@pytest.mark.parametrize("epsilon", [-1e-6, 2.0, np.inf, np.nan])
def test_epsilon_has_bounds(epsilon: float) -> None:
    made = Behind("SkipRmsNorm", "MatMulInt4", activations(1, 256))
    made.numbers = {"epsilon": epsilon}
    with pytest.raises(Exception, match="SkipRmsNormMatMulInt4: epsilon is"):
        made.run()


def test_what_bundles_may_use_is_what_has_a_function() -> None:
    """The lists of the exporter and of the runtime's check, which imports none of it."""
    named = graph_operators.OPERATORS["lensmith"]
    assert named == FUNCTIONS.keys()
    for name, (prologue, product) in graph_operators.FUSED.items():
        own = PROLOGUES[name.removesuffix(product)]
        assert (len(own.inputs), own.adds) == prologue
