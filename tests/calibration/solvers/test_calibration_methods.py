"""The methods of calibration: textbook references, what each guarantees, and inputs at the edge."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.calibration.solvers import descent as descent_module
from lensmith.calibration.solvers.cholesky import cholesky, damped_cholesky, solve_right
from lensmith.calibration.solvers.descent import DescentOptions, descent
from lensmith.calibration.solvers.gptq import GptqOptions, feedback, gptq
from lensmith.calibration.solvers.inputs import Inputs
from lensmith.calibration.solvers.levels import IntegerGrid, Levels
from lensmith.calibration.solvers.methods import METHODS
from lensmith.calibration.solvers.output_error import output_error, row_energies
from lensmith.calibration.solvers.search import fit, search
from lensmith.exporters.storage.rounding import Groups, dequantize, quantize
from numpy.typing import NDArray

from tests.helpers.layers import make_inputs, make_weight, moments

COLUMNS = 256
GRIDS = [IntegerGrid(bits, group, symmetric) for bits in (2, 3, 4, 8) for group in (32, 64, 128, COLUMNS)
         for symmetric in (True, False)]  # fmt: skip
grids = st.sampled_from(GRIDS)
seeds = st.integers(0, 2**32 - 1)


def name(grid: IntegerGrid) -> str:
    return f"{grid.bits}-bits-{grid.group_size}-{'sym' if grid.symmetric else 'asym'}"


def statistics(seed: int, tokens: int = 512, columns: int = COLUMNS) -> Inputs:
    return moments(make_inputs(tokens, columns, seed)[0])


def group_errors(weight: NDArray[np.float32], made: Groups, importance: NDArray[np.float32]) -> NDArray[np.float64]:
    """Weighted squared error of each group, in float64."""
    lost = (dequantize(made).astype(np.float64) - weight) ** 2 * importance
    errors: NDArray[np.float64] = lost.reshape(*made.scales.shape, -1).sum(axis=-1)
    return errors


def textbook_gptq(
    weight: NDArray[np.float32], second: NDArray[np.float32], grid: IntegerGrid, damping: float, *, static: bool
) -> NDArray[np.int64]:
    """GPTQ as its paper has it, in float64: the inverse, its upper Cholesky factor U, and after each column k
    W[:, k:] -= (W_k - Q_k) / U_kk * U[k, k:]. The scales are fitted as ours are, which this does not check."""
    columns = weight.shape[1]
    moments_ = second.astype(np.float64)
    moments_ += np.eye(columns) * damping * np.diagonal(moments_).mean()
    order = np.argsort(-np.diagonal(second), kind="stable") if static else np.arange(columns)
    upper = np.linalg.cholesky(np.linalg.inv(moments_[np.ix_(order, order)])).T
    importance = np.empty(columns, np.float32)
    importance[order] = 1 / np.diagonal(upper) ** 2
    work = weight.astype(np.float64)[:, order]
    values = np.empty(weight.shape, np.int64)
    scales, zeros = fit(weight, importance, grid)
    for k, column in enumerate(order):
        group = column // grid.group_size
        if not static and column % grid.group_size == 0:
            here = slice(column, column + grid.group_size)
            found = fit(np.ascontiguousarray(work[:, here], np.float32), importance[here], grid)
            scales[:, group], zeros[:, group] = found[0][:, 0], found[1][:, 0]
        scale, zero = scales[:, group].astype(np.float64), zeros[:, group]
        values[:, column] = np.clip(np.rint(work[:, k] / scale + zero), 0, 2**grid.bits - 1)
        error = (work[:, k] - (values[:, column] - zero) * scale) / upper[k, k]
        work[:, k:] -= error[:, None] * upper[k, k:]
    return values


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_gptq_is_the_textbooks(grid: IntegerGrid, static: bool) -> None:
    weight, inputs = make_weight(24, COLUMNS), statistics(0)
    made = gptq(weight, inputs, grid, options=GptqOptions(damping=0.01, static_groups=static))
    expected = textbook_gptq(weight, inputs.second, grid, 0.01, static=static)
    # Every integer is the same with the BLAS this was written on. Elsewhere float32 sums may round a near tie the other
    # way, and later columns of that row answer to it: one row of 24 may differ.
    assert np.any(made.values != expected, axis=1).sum() <= 1


def textbook_descent(
    weight: NDArray[np.float32], second: NDArray[np.float32], grid: IntegerGrid, made: Groups
) -> list[NDArray[np.float64]]:
    """One sweep over `made` in float64, with the gradient of the error written out at every step.

    Returns integers, scales [groups, rows] and zero points [groups, rows].
    """
    moments_, wide = second.astype(np.float64), weight.astype(np.float64)
    values, scales = made.values.astype(np.float64), made.scales.astype(np.float64).T.copy()
    zeros = (
        np.full_like(scales, grid.middle) if made.zero_points is None else made.zero_points.astype(np.float64).T.copy()
    )
    size = grid.group_size

    def gradient() -> NDArray[np.float64]:
        restored = (values - zeros.T.repeat(size, axis=1)) * scales.T.repeat(size, axis=1)
        lost: NDArray[np.float64] = (wide - restored) @ moments_
        return lost

    for index in range(len(scales)):
        here = slice(index * size, (index + 1) * size)
        for column in range(here.start, here.stop):
            step = gradient()[:, column] / (scales[index] * moments_[column, column])
            values[:, column] = np.clip(np.rint(values[:, column] + step), 0, grid.top)
        within = moments_[here, here]
        if not grid.symmetric:
            step = gradient()[:, here].sum(axis=1) / (scales[index] * within.sum())
            zeros[index] = np.clip(np.rint(zeros[index] - step), 0, grid.top)
        steps = values[:, here] - zeros[index][:, None]
        slope, curve = (steps * gradient()[:, here]).sum(axis=1), np.einsum("rc,cd,rd->r", steps, within, steps)
        change = (scales[index] + slope / curve).astype(np.float16) - scales[index]
        scales[index] += np.where(change * (2 * slope - change * curve) > 0, change, 0)  # what the error loses
    return [values, scales, zeros]


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.bits < 8], ids=name)
def test_descent_is_the_textbooks(grid: IntegerGrid) -> None:
    weight, inputs = make_weight(24, COLUMNS), statistics(5)
    start = descent(weight, inputs, grid, options=DescentOptions(damping=0, sweeps=0))
    values, scales, zeros = textbook_descent(weight, inputs.second, grid, start)
    made = descent(weight, inputs, grid, options=DescentOptions(damping=0, sweeps=1))
    found = np.full_like(zeros, grid.middle) if made.zero_points is None else made.zero_points.T
    wrong = (
        np.any(made.values != values, axis=1) | np.any(scales != made.scales.T, axis=0) | np.any(found != zeros, axis=0)
    )
    assert wrong.sum() <= 2  # near ties that float32 sums decide otherwise, see above
    assert np.any(start.values != values)


@pytest.mark.parametrize("grid", [IntegerGrid(3, 64), IntegerGrid(3, 64, False), IntegerGrid(2, 32, False)], ids=name)
def test_descent_from_levels_that_lie_beside_the_weights(grid: IntegerGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers saturate at the top: zero points must move, and those of symmetric grids must not."""
    weight, inputs = make_weight(24, COLUMNS), statistics(8)
    start = quantize(weight, bits=grid.bits, group_size=grid.group_size, symmetric=grid.symmetric)
    zeros = np.full_like(start.scales, grid.middle) if start.zero_points is None else start.zero_points
    levels = Levels(*(np.ascontiguousarray(part.T, np.float32) for part in (start.values, start.scales, zeros)))
    monkeypatch.setattr(descent_module, "gptq_levels", lambda *_: levels)
    moved = weight + np.abs(weight).max(axis=1, keepdims=True)
    values, scales, expected = textbook_descent(moved, inputs.second, grid, start)
    made = descent(moved, inputs, grid, options=DescentOptions(damping=0, sweeps=1))
    found = np.full_like(expected, grid.middle) if made.zero_points is None else made.zero_points.T
    wrong = np.any(made.values != values, axis=1) | np.any(found != expected, axis=0)
    assert (wrong | np.any(scales != made.scales.T, axis=0)).sum() <= 2
    assert grid.symmetric or np.mean(expected != zeros.T) > 0.5


def test_descent_damps_by_a_part_of_the_mean_energy() -> None:
    weight, inputs, grid = make_weight(8, COLUMNS), statistics(6), IntegerGrid(3, 64)
    more = inputs.second + np.float32(0.5) * np.diagonal(inputs.second).mean() * np.eye(COLUMNS, dtype=np.float32)
    damped = textbook_descent(weight, more, grid, descent(weight, inputs, grid, options=DescentOptions(sweeps=0)))
    made = descent(weight, inputs, grid, options=DescentOptions(damping=0.5, sweeps=1))
    assert np.any(made.values != damped[0], axis=1).sum() <= 1


def test_inputs_without_energy_have_no_damping() -> None:
    """Those of tokens that are zero throughout."""
    nothing = Inputs(np.zeros((3, 3), np.float32), np.zeros(3, np.float32), prior=1.0)
    assert nothing.damping == 0
    assert np.array_equal(nothing.importance, np.ones(3))


@pytest.mark.parametrize("method", ["gptq", "descent"])
def test_a_prior_is_energy_that_every_input_has_besides(method: str) -> None:
    """As damping is, on top of it; the statistics themselves stay what they are."""
    weight, (x, _) = make_weight(24, 64), make_inputs(256, 64)
    plain = moments(x)
    share = 0.003 + float(np.median(plain.energy) / plain.energy.mean())
    options = {"gptq": GptqOptions(share), "descent": DescentOptions(GptqOptions(share), share)}[method]
    run = {"gptq": gptq, "descent": descent}[method]
    made = METHODS[method](weight, Inputs(plain.second, plain.magnitude, 1.0), IntegerGrid(3, 32))
    np.testing.assert_array_equal(made.values, run(weight, plain, IntegerGrid(3, 32), options=options).values)  # type: ignore[operator]
    np.testing.assert_array_equal(plain.second, moments(x).second)
    assert (made.values != METHODS[method](weight, plain, IntegerGrid(3, 32)).values).any()


@pytest.mark.parametrize("method", ["gptq", "descent"])
def test_a_prior_keeps_weights_that_few_data_would_move(method: str) -> None:
    """What eight tokens say of 128 inputs costs others outputs; with many tokens they are still worth their while."""
    weight = make_weight(64, 128)
    foreign = np.eye(128, dtype=np.float32)
    few, many = moments(make_inputs(8, 128)[0]), moments(make_inputs(4096, 128)[0])
    held_out = moments(make_inputs(4096, 128)[1])

    def error(seen: Inputs, measured: NDArray[np.float32], prior: float, method: str = method) -> float:
        made = METHODS[method](weight, Inputs(seen.second, seen.magnitude, prior), IntegerGrid(3, 32))
        return output_error(weight, made, measured)

    assert error(few, foreign, 1.0) < 0.9 * error(few, foreign, 0.0)
    assert error(many, held_out.second, 1.0) < 0.8 * error(many, held_out.second, 1.0, "mse")


def test_descent_ends_when_it_has_settled() -> None:
    """Sweep by sweep it stops where fewer integers move than `settled` says, and not before."""
    weight, inputs, grid = make_weight(8, COLUMNS), statistics(7), IntegerGrid(3, 64)
    sweeps = [descent(weight, inputs, grid, options=DescentOptions(sweeps=n, settled=0)) for n in range(9)]
    moved = [float(np.mean(one.values != other.values)) for one, other in pairwise(sweeps)]
    assert moved[0] > 0.01 > moved[3]
    enough = next(index for index, part in enumerate(moved) if part <= 0.01) + 1
    made = descent(weight, inputs, grid, options=DescentOptions(settled=0.01))
    np.testing.assert_array_equal(dequantize(made), dequantize(sweeps[enough]))
    assert np.any(dequantize(made) != dequantize(sweeps[enough + 1]))


@settings(deadline=None, max_examples=40)
@given(seeds, grids)
def test_searched_scales_are_never_worse_than_min_max(seed: int, grid: IntegerGrid) -> None:
    weight, inputs = make_weight(6, COLUMNS, seed), statistics(seed, 64)
    plain = quantize(weight, bits=grid.bits, group_size=grid.group_size, symmetric=grid.symmetric)
    before = group_errors(weight, plain, inputs.importance)
    after = group_errors(weight, search(weight, inputs, grid), inputs.importance)
    assert np.all(after <= before * (1 + 1e-5))  # candidates are compared by sums in float32


@settings(deadline=None, max_examples=25)
@given(seeds, grids)
def test_descent_never_rises(seed: int, grid: IntegerGrid) -> None:
    weight, inputs = make_weight(6, COLUMNS, seed), statistics(seed, 300)
    sweeps = [descent(weight, inputs, grid, options=DescentOptions(damping=0, sweeps=n, settled=0)) for n in range(4)]
    errors = [row_energies((dequantize(made) - weight), inputs.second) for made in sweeps]
    for before, after in pairwise(errors):
        # A step may be taken for a gain that float32 only believes in: 1e-4 of the error is far below any real gain.
        assert np.all(after <= before * (1 + 1e-4) + 1e-9)


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_methods_rank_as_they_promise(grid: IntegerGrid) -> None:
    weight, inputs = make_weight(64, COLUMNS), statistics(3, 1024)
    errors = [output_error(weight, METHODS[key](weight, inputs, grid), inputs.second)
              for key in ("rtn", "mse", "gptq", "descent")]  # fmt: skip
    assert errors == sorted(errors, reverse=True)
    if grid.bits < 8:
        assert errors[2] < 0.6 * errors[1]
        assert errors[3] < errors[2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_groups_are_well_formed(method: str, grid: IntegerGrid) -> None:
    weight = make_weight(5, COLUMNS)
    made = METHODS[method](weight, statistics(0, 64), grid)
    groups = COLUMNS // grid.group_size
    assert made.bits == grid.bits
    assert [made.values.dtype, made.scales.dtype] == [np.uint8, np.float16]
    assert [made.values.shape, made.scales.shape] == [weight.shape, (5, groups)]
    assert made.values.max() < 2**grid.bits
    if grid.symmetric:
        assert made.zero_points is None
    else:
        assert made.zero_points is not None
        assert made.zero_points.dtype == np.uint8
        assert made.zero_points.shape == (5, groups)
        assert made.zero_points.max() < 2**grid.bits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_edges(method: str, grid: IntegerGrid) -> None:
    """Rows of zeros and constants, columns that calibration never saw, one column a million times the others."""
    weight = make_weight(6, COLUMNS)
    weight[0] = 0
    weight[1] = 0.5
    weight[2] *= 4e4 * 2 ** (grid.bits - 1) / np.abs(weight[2]).max()  # scales near the end of float16
    x = make_inputs(128, COLUMNS)[0]
    x[:, 64:128] = 0
    x[:, 3] *= 1e6
    x[:, 200] = x[:, 201]  # a direction without energy
    made = dequantize(METHODS[method](weight, moments(x), grid))
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made[0], 0)
    # Columns that were never seen are rounded to nearest: within a step of each scale, or clipped as searched.
    limit = np.abs(weight).max(axis=1, keepdims=True) * 1.1
    assert np.all(np.abs(made - weight)[:, 64:128] <= limit)
    np.testing.assert_allclose(made[1, 64:128], 0.5, rtol=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_without_any_energy_the_weights_count_alike(method: str) -> None:
    weight = make_weight(4, 64)
    grid = IntegerGrid(4, 32)
    inputs = Inputs(np.zeros((64, 64), np.float32), np.zeros(64, np.float32))
    made = METHODS[method](weight, inputs, grid)
    nearest = search(weight, Inputs(np.eye(64, dtype=np.float32), np.ones(64, np.float32)), grid)
    if method != "rtn":
        np.testing.assert_array_equal(dequantize(made), dequantize(nearest))
    assert output_error(weight, made, inputs.second) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_weights_without_a_scale_are_refused(method: str, value: float) -> None:
    weight = make_weight(4, 64)
    weight[3, 3] = value
    with pytest.raises(ValueError, match="float16 scale"):
        METHODS[method](weight, statistics(0, 64, 64), IntegerGrid(4, 32))


def test_feedback_factors_the_moments() -> None:
    inputs, order = statistics(1), np.random.default_rng(0).permutation(COLUMNS)
    upper, energies = feedback(inputs.second, order, 0.01)
    damped = inputs.second + 0.01 * np.eye(COLUMNS) * inputs.energy.mean()
    found = (upper * energies[order]) @ upper.T
    np.testing.assert_allclose(found, damped[np.ix_(order, order)], atol=2e-6 * damped.max())  # of float32 factors
    assert not np.tril(upper, -1).any()


@pytest.mark.parametrize("size", [1, 255, 256, 700])
def test_blocked_cholesky_is_lapacks(size: int) -> None:
    moments_ = statistics(0, 2 * size + 8, size).second
    moments_ += 0.01 * np.eye(size, dtype=np.float32) * np.diagonal(moments_).mean()
    expected = np.linalg.cholesky(moments_.astype(np.float64))
    # Sums of float32 products, each rounded to 6e-8 of the row's length.
    np.testing.assert_allclose(cholesky(moments_), expected, rtol=0, atol=1e-6 * np.sqrt(moments_.max()))


@pytest.mark.parametrize("size", [1, 255, 256, 700])  # one block and several
def test_solving_from_the_right_is_the_inverse(size: int) -> None:
    moments_ = statistics(0, 2 * size + 8, size).second
    moments_ += 0.1 * np.eye(size, dtype=np.float32) * np.diagonal(moments_).mean()
    rows = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    found = solve_right(rows, cholesky(moments_))
    expected = rows @ np.linalg.inv(moments_.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_indefinite_moments_get_a_factor() -> None:
    matrix = np.diag(np.array([1, 1, -1e-3], np.float32))
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(matrix)
    lower = damped_cholesky(matrix)
    np.testing.assert_allclose(lower @ lower.T, matrix, atol=0.01)


@pytest.mark.parametrize(("bits", "size"), [(5, 32), (4, 0)])
def test_unknown_grids_are_refused(bits: int, size: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        IntegerGrid(bits, size)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide 64"):
        search(make_weight(2, 64), statistics(0, 64, 64), IntegerGrid(4, 48))


def test_statistics_are_checked() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Inputs(np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        Inputs(np.full((2, 2), np.nan, np.float32), np.zeros(2, np.float32))


def test_output_error_is_that_of_the_outputs() -> None:
    x, weight = make_inputs(500, 64)[0], make_weight(8, 64)
    made = quantize(weight, bits=3, group_size=32, symmetric=True)
    outputs, lost = x @ weight.T, x @ (dequantize(made) - weight).T
    expected = np.square(lost).sum(dtype=np.float64) / np.square(outputs).sum(dtype=np.float64)
    assert output_error(weight, made, moments(x).second) == pytest.approx(expected, rel=1e-4)  # sums in float32
    assert output_error(weight, weight, moments(x).second) == 0


@settings(deadline=None)
@given(seeds, grids, st.floats(1e-3, 1e3))
def test_round_to_nearest_errs_by_a_step_at_most(seed: int, grid: IntegerGrid, size: float) -> None:
    weight = make_weight(4, COLUMNS, seed) * np.float32(size)
    made = METHODS["rtn"](weight, statistics(0, 8), grid)
    step = np.abs(made.scales.astype(np.float64)).repeat(grid.group_size, axis=1)
    # One step where the level opposite to the exact extreme is clipped (symmetric), half a step elsewhere; float16
    # rounds the scale by 2^-11 of it (or half the smallest subnormal), which counts once for each level.
    assert np.all(np.abs(dequantize(made) - weight) <= step * (1 + grid.top * 2**-11) + grid.top * 3e-8)
