"""Quantizes the matrices of one stage from the statistics of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...exporters.checkpoint.lazy_tensors import LazyTensor
from ...exporters.storage.rounding import Groups
from ...exporters.storage.scheme import Scheme
from ..solvers.inputs import Inputs
from ..solvers.levels import IntegerGrid
from ..solvers.methods import METHODS
from ..solvers.moments import Means
from ..solvers.output_error import output_error
from ..solvers.retarget import Drift
from ..solvers.smoothing import search_scales
from .candidates import joined, rows_of, some_rows
from .matrix_outcomes import Outcome
from .smoothed_pairs import Smoothing
from .store import CalibratedTensor, Store
from .trial import Errors, Unseen, no_worse

Floats = NDArray[np.float32]
HEAD_ROWS = 16384  # of a table in memory at a time
HEAD_STEP = 8  # of the rows of a table, one in so many is tried on unseen inputs
LOOKED_UP = 1.0
ERROR_ROWS = 256  # of a matrix whose errors are reported
# See `Inputs`. With 20 questions of its tasks and 10 built-in samples, on kinds that it never saw, `qwen3_vl` at 4 bits
# comes from 0.216 nats (rounded to nearest) to 0.035 with the prior, to 0.099 without: there `descent` is worse than
# rounding on answers, and gives way to `mse`. A part of the mean, not the median, would drown all but outlier channels.
# What the quantized layers in front give is fitted to with the same prior: so `llava` at 3 bits comes from 0.34 nats on
# answers of kinds that it never saw to 0.15, without any fit to 0.24. With the moments' correlations shrunk by half
# instead it is 0.25, with a prior four times as large 0.28.
PRIOR = 1.0
DAMPING = 0.01  # of the second moments' mean diagonal, as in GPTQ


@dataclass(frozen=True)
class Recipe:
    """A way to calibrate: the method that rounds, whether to smooth before, what its inputs are taken from, and the
    methods that are tried instead where it is worse than a search of scales or rounding to nearest."""

    method: str  # of calibration's METHODS
    smooth: bool = False
    quantized_inputs: bool = False  # round against the inputs that the quantized layers in front will give
    weaker: tuple[str, ...] = ()


RECIPES = {
    "mse": Recipe("mse"),
    "awq": Recipe("mse", smooth=True),
    "gptq": Recipe("gptq", quantized_inputs=True),
    "descent": Recipe("descent", quantized_inputs=True, weaker=("gptq",)),
}


def grid_of(scheme: Scheme) -> IntegerGrid:
    """The integers of a scheme."""
    return IntegerGrid(scheme.bits, scheme.group_size, scheme.symmetric)


@dataclass(frozen=True)
class Matrices:
    """Matrices that share an input, the statistics of it, and inputs to try on what was made of them."""

    weights: Mapping[str, Floats]
    schemes: Mapping[str, Scheme]
    means: Means
    unseen: Unseen = field(default_factory=lambda: Unseen(()))

    @cached_property
    def inputs(self) -> Inputs:
        return Inputs(self.means.second, self.means.magnitude, PRIOR)

    @cached_property
    def quantized(self) -> dict[str, Floats]:
        """The matrices that are rounded to integers at all."""
        return {name: weight for name, weight in self.weights.items() if self.schemes[name].quantized}

    @cached_property
    def targets(self) -> dict[str, Floats]:
        """What to round: the weights, below 8 bits fitted to the inputs that the quantized layers in front give."""
        if self.means.cross is None:
            return self.quantized
        damping = DAMPING + self.inputs.damping
        drift = Drift(self.means.second, self.means.cross, damping)  # as large as the moments, and not kept
        low = {name: self.schemes[name].bits < 8 for name in self.quantized}
        return {name: drift.retarget(rows) if low[name] else rows for name, rows in self.quantized.items()}

    def errors(self, made: Mapping[str, CalibratedTensor]) -> Errors:
        """How far the outputs are off on unseen inputs."""
        return self.unseen.errors(self.quantized, {name: own.effective() for name, own in made.items()})


@dataclass(frozen=True)
class Rounded:
    """What became of matrices that share an input, by which method, and the factors of smoothing."""

    method: str
    made: Mapping[str, CalibratedTensor]
    factor: Floats | None = None


def quantize_group(matrices: Matrices, smoothing: Smoothing | None, recipe: Recipe) -> tuple[Rounded, Rounded, Rounded]:
    """Matrices that share an input: rounded to nearest, with searched scales, and by a recipe.

    On inputs that calibration did not see, each is no worse than the one before it, on any of the groups; else a weaker
    method takes its place, at last the one before.
    """
    factor = None
    if smoothing is not None and recipe.smooth:
        factor = _factor(matrices.quantized, matrices.inputs, matrices.schemes, smoothing)
    nearest, searched = (Rounded(name, _rounded(matrices, matrices.quantized, name)) for name in ("rtn", "mse"))
    limit, found = matrices.errors(nearest.made), matrices.errors(searched.made)
    if not no_worse(found, limit):
        searched = nearest
    limit = {group: min(error, limit[group]) for group, error in found.items()}
    for method in (recipe.method, *recipe.weaker) if recipe.method != "mse" or factor is not None else ():
        tried = _rounded(matrices, matrices.targets, method, factor)
        if no_worse(matrices.errors(tried), limit):
            return nearest, searched, Rounded(method, tried, factor)
    return nearest, searched, searched


def _rounded(
    matrices: Matrices, targets: Mapping[str, Floats], method: str, factor: Floats | None = None
) -> dict[str, CalibratedTensor]:
    """All matrices by one method: rows are independent, and those of one grid share most of the work."""
    alike: dict[IntegerGrid, list[str]] = {}
    for name in targets:
        alike.setdefault(grid_of(matrices.schemes[name]), []).append(name)
    made = {}
    for grid, names in alike.items():
        target, known = np.concatenate([targets[name] for name in names]), matrices.inputs
        if factor is not None:
            target, known = target * factor, known.divided(factor)
        groups = METHODS[method if grid.bits < 8 else "rtn"](target, known, grid)  # 8 bits lose nothing to search for
        ends = np.cumsum([len(targets[name]) for name in names]).tolist()
        for name, end in zip(names, ends, strict=True):
            made[name] = CalibratedTensor(rows_of(groups, slice(end - len(targets[name]), end)), columns=factor)
    return made


def outcomes(matrices: Matrices, rounded: Rounded, nearest: Rounded) -> Iterator[Outcome]:
    """The errors next to what the method aimed at, and those of rounding to nearest, on some of the rows."""
    magnitude, second = matrices.inputs.magnitude, matrices.inputs.second
    spread = float(magnitude.max() / max(float(np.median(magnitude)), 1e-12))
    aims = matrices.quantized if rounded.method in ("rtn", "mse") else matrices.targets
    for name, target in aims.items():
        some = slice(None, None, -(-len(target) // ERROR_ROWS))
        errors = [output_error(target[some], _some(one.made[name], some), second) for one in (rounded, nearest)]
        yield Outcome(name, errors[0], errors[1], spread, rounded.method)


def _some(made: CalibratedTensor, rows: slice) -> Floats:
    assert made.groups is not None
    return CalibratedTensor(rows_of(made.groups, rows), columns=made.columns).effective()


def put(store: Store, matrices: Matrices, smoothing: Smoothing | None, rounded: Rounded) -> None:
    """Store matrices, and the factors of smoothing of others that share their input and of what makes it."""
    for name, own in rounded.made.items():
        store.put(name, own)
    if smoothing is None or rounded.factor is None:
        return
    for name in matrices.weights.keys() - matrices.quantized.keys():
        store.put(name, CalibratedTensor(columns=rounded.factor))
    _divide_producers(smoothing, rounded.factor, store)


def _divide_producers(smoothing: Smoothing, factor: Floats, store: Store) -> None:
    """Divide what makes the inputs by the factors of the columns."""
    rows = factor
    if smoothing.tied is not None:
        rows = np.ones(smoothing.tied.max() + 1, np.float32)
        rows[smoothing.tied] = factor  # the same for all inputs that one row makes
    for name in smoothing.producers:
        store.divide_rows(name, rows)


def _factor(
    weights: Mapping[str, Floats], inputs: Inputs, schemes: Mapping[str, Scheme], smoothing: Smoothing
) -> Floats | None:
    """The factors of the columns; None where none is better."""
    parts: list[Floats] = []
    for name in weights:
        halves = smoothing.halves.get(name)
        parts += [weights[name]] if halves is None else [weights[name][rows] for rows in halves]
    grid = grid_of(schemes[next(iter(weights))])
    scale, before, after = search_scales(parts, inputs, METHODS["rtn"], grid, tied=smoothing.tied)
    return scale if after < before else None


def quantize_table(
    tensor: LazyTensor, scheme: Scheme, inputs: Inputs | None, method: str, unseen: Unseen
) -> tuple[CalibratedTensor, CalibratedTensor]:
    """A table of tokens in blocks of rows: with searched scales, and by a method; `inputs` are those of the output
    head, if it is one. Of a block, too, what is worse on unseen inputs is not taken.

    Rows that are looked up, too, get an error of their own that the layers carry on: what the head sees is mixed with
    `LOOKED_UP` times its mean energy in all directions. On the trained models this halves the table's KL divergence
    next to searched scales, where the head's inputs alone make looked-up rows worse.
    """
    known = inputs or Inputs(np.eye(tensor.shape[1], dtype=np.float32), np.ones(tensor.shape[1], np.float32))
    ladder = ["rtn"]
    if scheme.bits < 8:
        ladder += ["mse"] if inputs is None or method == "mse" else ["mse", method]
    blocks: tuple[list[Groups], list[Groups]] = ([], [])
    for start in range(0, tensor.shape[0], HEAD_ROWS):
        rows = tensor.rows(start, min(start + HEAD_ROWS, tensor.shape[0]))
        made = [METHODS[name](rows, known, grid_of(scheme)) for name in ladder]
        blocks[0].append(made[_climb(rows, made[:2], unseen)])
        blocks[1].append(made[_climb(rows, made, unseen)])
    searched, best = (CalibratedTensor(joined(part)) for part in blocks)
    return searched, best


def _climb(rows: Floats, made: Sequence[Groups], unseen: Unseen) -> int:
    """The highest rung that is no worse than any below."""
    some = slice(None, None, HEAD_STEP)
    errors = [unseen.errors({"": rows[some]}, {"": some_rows(groups, some)}) for groups in made]
    fit = (rung for rung, own in enumerate(errors) if all(no_worse(own, below) for below in errors[:rung]))
    return max(fit)


def head_inputs(means: Means, *, looked_up: bool) -> Inputs:
    """The statistics to quantize an output head with; the means are used up."""
    second = means.second
    if looked_up:
        second[np.diag_indices_from(second)] += LOOKED_UP * second.diagonal().mean()
    return Inputs(second, means.magnitude, PRIOR)
