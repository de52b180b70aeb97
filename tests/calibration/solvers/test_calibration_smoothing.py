"""AWQ's scales and weights for shifted inputs, against explicit samples."""

from __future__ import annotations

import numpy as np
import pytest
from lensmith.calibration.solvers.levels import IntegerGrid
from lensmith.calibration.solvers.methods import METHODS
from lensmith.calibration.solvers.retarget import Drift
from lensmith.calibration.solvers.smoothing import ROWS, search_scales
from lensmith.exporters.storage.rounding import dequantize, quantize
from numpy.typing import NDArray

from tests.helpers.layers import make_inputs, make_weight, moments

COLUMNS = 128
GRIDS = [
    IntegerGrid(bits, group, symmetric) for bits in (2, 3, 4) for group in (32, COLUMNS) for symmetric in (True, False)
]


def textbook_awq(
    weights: list[NDArray[np.float32]], x: NDArray[np.float32], grid: IntegerGrid
) -> tuple[NDArray[np.float64], list[float]]:
    """The search of AWQ's paper on the samples themselves, and the error of each ratio."""
    scales, errors = [], []
    for step in range(20):
        scale = np.abs(x).mean(axis=0).astype(np.float64) ** (step / 20)
        scale /= np.sqrt(scale.max() * scale.min())
        error = 0.0
        for weight in weights:
            scaled = (weight * scale).astype(np.float32)
            made = quantize(scaled, bits=grid.bits, group_size=grid.group_size, symmetric=grid.symmetric)
            outputs = x.astype(np.float64) @ weight.T
            error += float(np.square((x / scale) @ dequantize(made).T - outputs).sum() / np.square(outputs).sum())
        scales.append(scale)
        errors.append(error)
    return scales[int(np.argmin(errors))], errors


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.bits}-{grid.group_size}-{grid.symmetric}")
def test_awq_is_the_textbooks(grid: IntegerGrid) -> None:
    weights = [make_weight(40, COLUMNS, 1), make_weight(24, COLUMNS, 2) * 30]
    x = make_inputs(300, COLUMNS)[0]
    scale, without, achieved = search_scales(weights, moments(x), METHODS["rtn"], grid)
    expected, errors = textbook_awq(weights, x, grid)
    # Single precision against double: sums of 300 tokens, and weights whose rounding a last bit decides.
    np.testing.assert_allclose(scale, expected, rtol=1e-5)
    assert without == pytest.approx(errors[0], rel=1e-3)
    assert achieved == pytest.approx(min(errors), rel=1e-2)
    assert achieved < 0.8 * without  # outlier channels are what AWQ is for


def test_no_scale_is_better_than_a_worse_one() -> None:
    x = np.random.default_rng(0).standard_normal((256, COLUMNS)).astype(np.float32)
    weight = np.random.default_rng(0).integers(-8, 8, (8, COLUMNS)).astype(np.float32)
    weight[:, ::32] = -8  # exact in every group as it is: any scale spoils it
    scale, without, achieved = search_scales([weight], moments(x), METHODS["rtn"], IntegerGrid(4, 32))
    np.testing.assert_array_equal(scale, 1)
    assert without == achieved == 0


def test_many_rows_are_searched_on_a_part_and_measured_whole() -> None:
    weight = make_weight(3 * ROWS, COLUMNS)
    inputs = moments(make_inputs(300, COLUMNS)[0])
    scale, without, achieved = search_scales([weight], inputs, METHODS["rtn"], IntegerGrid(3, 64))
    whole = [search_scales([part], inputs, METHODS["rtn"], IntegerGrid(3, 64)) for part in np.split(weight, 6)]
    assert min(error for _, _, error in whole) <= achieved <= max(error for _, _, error in whole)
    assert achieved < without
    assert scale.shape == (COLUMNS,)


def test_tied_inputs_share_a_scale() -> None:
    inputs = moments(make_inputs(300, COLUMNS)[0])
    tied = np.tile(np.arange(32), 4)  # four query heads of one kv head
    scale, without, achieved = search_scales(
        [make_weight(32, COLUMNS)], inputs, METHODS["rtn"], IntegerGrid(3, 32), tied=tied
    )
    np.testing.assert_array_equal(scale, np.tile(scale[:32], 4))
    assert len(np.unique(scale)) > 1
    assert achieved < without


def test_dead_inputs_keep_their_weights() -> None:
    x = make_inputs(300, COLUMNS)[0]
    x[:, :40] = 0
    scale, without, achieved = search_scales([make_weight(32, COLUMNS)], moments(x), METHODS["mse"], IntegerGrid(3, 64))
    np.testing.assert_array_equal(scale[:40], 1)
    assert achieved <= without
    silent, none, same = search_scales([make_weight(32, COLUMNS)], moments(x * 0), METHODS["rtn"], IntegerGrid(3, 64))
    np.testing.assert_array_equal(silent, 1)
    assert none == same == 0


def test_retargeted_weights_are_the_least_squares_fit() -> None:
    x = make_inputs(400, COLUMNS)[0]
    seen = x + 0.3 * make_inputs(400, COLUMNS, 7)[0]
    weight = make_weight(16, COLUMNS)
    found = Drift(moments(seen).second, (x.T @ seen) / np.float32(len(x)), 0).retarget(weight)
    expected = np.linalg.lstsq(seen.astype(np.float64), x.astype(np.float64) @ weight.T, rcond=None)[0].T
    lost = np.square(seen @ found.T - x @ weight.T).sum()
    assert lost <= np.square(seen @ expected.T - x @ weight.T).sum() * (1 + 1e-4)  # moments are kept in float32
    assert lost < np.square(seen @ weight.T - x @ weight.T).sum()


def test_retarget_leaves_weights_whose_inputs_did_not_change() -> None:
    second, weight = moments(make_inputs(50, COLUMNS)[0]).second, make_weight(4, COLUMNS)
    np.testing.assert_array_equal(Drift(second, second, 0.01).retarget(weight), weight)


def test_damping_holds_weights_where_they_are() -> None:
    x = make_inputs(50, COLUMNS)[0]  # fewer tokens than columns
    seen = x + 0.1 * make_inputs(50, COLUMNS, 7)[0]
    weight, cross = make_weight(4, COLUMNS), (x.T @ seen) / np.float32(50)
    drifts = [Drift(moments(seen).second, cross, damping) for damping in (1e-2, 1e4)]
    moved = [np.abs(drift.retarget(weight) - weight).max() for drift in drifts]
    assert moved[1] < 1e-3 * moved[0]


def test_inputs_that_calibration_never_saw_leave_weights_finite() -> None:
    second = np.zeros((4, 4), np.float32)
    assert np.isfinite(Drift(second, np.eye(4, dtype=np.float32), 0).retarget(np.ones((1, 4), np.float32))).all()
