"""Statistics of inputs: what is gathered part by part is the mean of all tokens, each kind with its share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from lensmith.calibration.inputs import Inputs
from lensmith.calibration.moments import Moments, mean
from numpy.typing import NDArray

Floats = NDArray[np.float32]
COLUMNS = 5


def tokens(count: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(0.3, 1, (count, COLUMNS)).astype(np.float32)


def gathered(kinds: Sequence[Floats], others: Sequence[Floats] | None = None) -> list[Moments]:
    """Each kind in parts of three tokens, an empty one among them."""
    made = []
    for index, x in enumerate(kinds):
        moments = Moments(COLUMNS, second_stream=others is not None)
        for start in range(0, len(x) + 3, 3):
            part = slice(start, start + 3)
            moments.add(x[part], None if others is None else others[index][part])
        made.append(moments)
    return made


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.25, 0.75), (3.0, 1.0), (1.0, 0.0)])
def test_kinds_count_by_their_shares(shares: tuple[float, float]) -> None:
    kinds = [tokens(7, 1), tokens(20, 2)]
    found = mean(gathered(kinds), shares)
    weights = [share / sum(shares) for share in shares]
    second = sum(weight * x.T @ x / len(x) for weight, x in zip(weights, kinds, strict=True))
    magnitude = sum(weight * np.abs(x).mean(axis=0) for weight, x in zip(weights, kinds, strict=True))
    np.testing.assert_allclose(found.second, second, rtol=1e-5)
    np.testing.assert_allclose(found.magnitude, magnitude, rtol=1e-5)
    assert found.cross is None


def test_three_kinds() -> None:
    kinds = [tokens(4, 1), tokens(9, 2), tokens(5, 3)]
    found = mean(gathered(kinds), (1, 2, 5))
    expected = sum(share / 8 * x.T @ x / len(x) for share, x in zip((1, 2, 5), kinds, strict=True))
    np.testing.assert_allclose(found.second, expected, rtol=1e-5, atol=1e-6)


def test_a_kind_without_tokens_leaves_its_share_to_the_others() -> None:
    x = tokens(7, 1)
    found = mean(gathered([x[:0], x]), (0.9, 0.1))
    np.testing.assert_allclose(found.second, x.T @ x / len(x), rtol=1e-5)
    np.testing.assert_allclose(found.magnitude, np.abs(x).mean(axis=0), rtol=1e-5)


def test_nothing_was_seen() -> None:
    found = mean(gathered([tokens(0, 1), tokens(0, 2)]), (0.5, 0.5))
    assert not found.second.any()
    assert not found.magnitude.any()


def test_a_second_stream() -> None:
    """The errors of what is before count: products of the rounded stream, and of the whole one with it."""
    kinds, rounded = [tokens(7, 1), tokens(20, 2)], [tokens(7, 3), tokens(20, 4)]
    found = mean(gathered(kinds, rounded), (0.25, 0.75))
    weights = (0.25, 0.75)
    second = sum(w * y.T @ y / len(y) for w, y in zip(weights, rounded, strict=True))
    cross = sum(w * x.T @ y / len(x) for w, x, y in zip(weights, kinds, rounded, strict=True))
    magnitude = sum(w * np.abs(x).mean(axis=0) for w, x in zip(weights, kinds, strict=True))
    assert found.cross is not None
    np.testing.assert_allclose(found.second, second, rtol=1e-5)
    np.testing.assert_allclose(found.cross, cross, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.magnitude, magnitude, rtol=1e-5)


def test_divided_inputs_are_those_of_divided_tokens() -> None:
    x, scale = tokens(30, 1), np.array([0.5, 2, 3, 0.1, 8], np.float32)
    whole, part = (mean(gathered([some]), [1.0]) for some in (x, x / scale))
    divided = Inputs(whole.second, whole.magnitude).divided(scale)
    np.testing.assert_allclose(divided.second, part.second, rtol=1e-5)
    np.testing.assert_allclose(divided.magnitude, part.magnitude, rtol=1e-5)


def test_columns_that_were_never_seen_count_little_but_something() -> None:
    x = tokens(30, 1)
    x[:, 2] = 0
    seen = mean(gathered([x]), [1.0])
    importance = Inputs(seen.second, seen.magnitude).importance
    np.testing.assert_allclose(np.delete(importance, 2), np.delete((x**2).mean(axis=0), 2), rtol=1e-5)
    assert importance[2] == pytest.approx(1e-6 * (x**2).mean(), rel=1e-4)
    np.testing.assert_array_equal(Inputs(np.zeros((2, 2), np.float32), np.zeros(2, np.float32)).importance, 1)
