"""Statistics of inputs: what is gathered part by part is the mean of all tokens, each with its weight."""

from __future__ import annotations

import numpy as np
import pytest
from lensmith.calibration.solvers.inputs import Inputs
from lensmith.calibration.solvers.moments import Means, Moments
from numpy.typing import NDArray

Floats = NDArray[np.float32]
COLUMNS = 5


def tokens(count: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(0.3, 1, (count, COLUMNS)).astype(np.float32)


def gathered(x: Floats, weights: Floats | None = None, other: Floats | None = None) -> Means:
    """Three tokens at a time, none at last."""
    moments = Moments(COLUMNS, second_stream=other is not None)
    weights = np.ones(len(x), np.float32) if weights is None else weights
    for start in range(0, len(x) + 3, 3):
        part = slice(start, start + 3)
        moments.add(x[part], weights[part], None if other is None else other[part])
    return moments.means()


def test_tokens_count_by_their_weights() -> None:
    x, weights = tokens(20, 1), np.random.default_rng(0).uniform(0, 3, 20).astype(np.float32)
    weights[4:9] = 0
    found = gathered(x, weights)
    np.testing.assert_allclose(found.second, (x.T * weights) @ x / weights.sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.magnitude, weights @ np.abs(x) / weights.sum(), rtol=1e-5)
    assert found.cross is None
    np.testing.assert_array_equal(found.second, found.second.T)


def test_only_the_ratio_of_weights_counts() -> None:
    x, weights = tokens(20, 1), np.linspace(1, 3, 20).astype(np.float32)
    small, large = gathered(x, 1e-6 * weights), gathered(x, 1e3 * weights)
    np.testing.assert_allclose(small.second, large.second, rtol=1e-5)
    np.testing.assert_allclose(small.magnitude, large.magnitude, rtol=1e-5)


def test_nothing_was_seen() -> None:
    found = gathered(tokens(0, 1))
    assert not found.second.any()
    assert not found.magnitude.any()
    assert not gathered(tokens(4, 1), np.zeros(4, np.float32)).second.any()


def test_a_second_stream() -> None:
    """The errors of what is before count: products of the rounded stream, and of the whole one with it."""
    x, y, weights = tokens(20, 1), tokens(20, 2), np.linspace(0, 2, 20).astype(np.float32)
    found = gathered(x, weights, y)
    assert found.cross is not None
    np.testing.assert_allclose(found.second, (y.T * weights) @ y / weights.sum(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.cross, (x.T * weights) @ y / weights.sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.magnitude, weights @ np.abs(x) / weights.sum(), rtol=1e-5)


def test_divided_inputs_are_those_of_divided_tokens() -> None:
    x, scale = tokens(30, 1), np.array([0.5, 2, 3, 0.1, 8], np.float32)
    whole, part = (gathered(some) for some in (x, x / scale))
    divided = Inputs(whole.second, whole.magnitude).divided(scale)
    np.testing.assert_allclose(divided.second, part.second, rtol=1e-5)
    np.testing.assert_allclose(divided.magnitude, part.magnitude, rtol=1e-5)


def test_columns_that_were_never_seen_count_little_but_something() -> None:
    x = tokens(30, 1)
    x[:, 2] = 0
    seen = gathered(x)
    importance = Inputs(seen.second, seen.magnitude).importance
    np.testing.assert_allclose(np.delete(importance, 2), np.delete((x**2).mean(axis=0), 2), rtol=1e-5)
    assert importance[2] == pytest.approx(1e-6 * (x**2).mean(), rel=1e-4)
    np.testing.assert_array_equal(Inputs(np.zeros((2, 2), np.float32), np.zeros(2, np.float32)).importance, 1)
