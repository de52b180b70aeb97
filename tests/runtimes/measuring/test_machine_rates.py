"""What is timed computes what it should, and rates are operations by seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lensmith.runtimes.engines.native import wanted_kernels
from lensmith.runtimes.engines.onnx.sessions import session
from lensmith.runtimes.measuring import machine_rates
from lensmith.runtimes.measuring.one_operator import Operator, graph_of

SIDES = [pytest.param(True, marks=pytest.mark.skipif(not wanted_kernels(), reason="no kernels here")), False]


@pytest.mark.parametrize("native", SIDES)
@pytest.mark.parametrize("bits", [4, 8])
def test_products_are_those_of_the_integers(bits: int, native: bool) -> None:
    """Around 8 or 128, times the scale of each block, with inputs that are rounded to 8 bits."""
    operator = machine_rates._product(bits, 3, 256, 16, native=native)
    x = np.random.default_rng(0).standard_normal((1, 3, 256), np.float32)
    (y,) = session(Path(), 1, graph=graph_of(operator), native=native).run(None, {"x": x})
    values, scales = operator.weights["values"], operator.weights["scales"]
    assert values is not None
    assert scales is not None
    flat = values.reshape(16, -1)
    integers = np.stack([flat & 15, flat >> 4], axis=-1).reshape(16, -1) if bits == 4 else flat
    weights = (integers.astype(np.float32) - 2 ** (bits - 1)) * np.repeat(scales.astype(np.float32), 128, axis=1)
    expected = x[0] @ weights.T
    assert np.abs(y[0] - expected).max() < 0.02 * np.abs(expected).max()


def test_floats_and_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_rates, "ROWS", 2)
    operator = machine_rates._floats(False)
    x = np.random.default_rng(0).standard_normal((1, 2, machine_rates.COLUMNS), np.float32)
    (y,) = session(Path(), 1, graph=graph_of(operator), native=False).run(None, {"x": x})
    weights = operator.weights["w"]
    assert weights is not None
    assert np.allclose(y, x @ weights.T, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(machine_rates, "PATCHES", 8)
    attention = machine_rates._attention(False)
    feed = {name: np.random.default_rng(1).standard_normal(shape, np.float32)
            for name, shape in attention.inputs.items()}  # fmt: skip
    (y,) = session(Path(), 1, graph=graph_of(attention), native=False).run(None, feed)
    q, k, v = (feed[name].reshape(8, 16, 64).swapaxes(0, 1) for name in "qkv")
    scores = np.exp(q @ k.swapaxes(1, 2) / 8)
    expected = (scores / scores.sum(-1, keepdims=True)) @ v
    assert np.allclose(y.reshape(8, 16, 64).swapaxes(0, 1), expected, atol=1e-4)


def test_rates_are_operations_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("ROWS", 4), ("COLUMNS", 128), ("OUTPUTS", 8), ("READ_COLUMNS", 256), ("READ_OUTPUTS", 10)):
        monkeypatch.setattr(machine_rates, name, size)
    seen: list[tuple[Operator, int]] = []

    def seconds(operator: Operator, threads: int) -> float:
        seen.append((operator, threads))
        return 0.5

    monkeypatch.setattr(machine_rates, "_seconds", seconds)
    reading, rates = machine_rates.measured_rates(3)
    assert reading == 2 * (10 * 128 + 2 * 10 * 2)  # 4 bits and a scale of 16 for each block
    assert rates == {name: 2 * operations for name, (operations, _) in machine_rates.KINDS.items()}
    assert {threads for _, threads in seen} == {3}
    assert [operator.inputs.get("x", (1, 1))[1] for operator, _ in seen][-1] == 1  # a token alone
