"""Measures the outputs of a bundle against PyTorch's golden traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..engines.contract import Floats
from ..generation.encoder import Encoder
from ..generation.model import Model
from .outputs import Fed, Output, outputs
from .traces import (
    CaseTrace,
    Doubles,
    ImageTrace,
    Tops,
    Traces,
    log_sum,
)

AGREEMENTS = ("top1_agreement", "greedy_agreement")  # the larger the better; of all others the smaller
INPUTS = "_differ"  # the end of figures of what goes into the graphs
TIE = 1e-4  # of two logits, relative to them: closer than float32 kernels of different engines agree


@dataclass(frozen=True)
class Exactness:
    """How far graphs in float32 may be from PyTorch."""

    error: float  # the largest, relative to the largest magnitude of the output
    kl: float  # nats; grows with the square of the error of the logits
    agreement: float  # share of equal tokens, ties aside


# Random-weight and trained models stay near 1e-5 and below (test_parity.py); the rest is room for other kernels
# and orders of summation. The smallest mistake tried, another approximation of GELU, is off by 2e-4; wrong positions
# are off by 0.7. llama.cpp takes its GELU from a table in float16.
EXACT, LLAMA_CPP = Exactness(1e-4, 1e-6, 1.0), Exactness(4e-3, 2e-4, 0.9)


@dataclass(frozen=True)
class Row:
    """One figure of one output for one image or conversation, and whether it is within its limit."""

    case: str
    output: str  # "vision_encoder: deepstack_features[1]"
    figure: str  # a key of the manifest's evidence.golden.figures
    value: float
    limit: float | None = None  # None: measured only
    passed: bool = True


def summarize(rows: list[Row]) -> dict[str, float]:
    """The worst value of each figure, rounded, by name."""
    worst: dict[str, float] = {}
    for row in rows:
        pick = min if row.figure in AGREEMENTS else max
        worst[row.figure] = pick(row.value, worst.get(row.figure, row.value))
    return {name: float(f"{value:.3g}") for name, value in worst.items()}


def replay(model: Model | Encoder, traces: Traces) -> list[Row]:
    """Every figure of every output, in the order in which the graphs compute."""
    against = AgainstPyTorch(traces)
    return [row for output in outputs(model, traces) for row in against.rows(output)]


def judged(row: Row, limits: Exactness | None) -> Row:
    """A figure with its limit: of inputs always, of outputs where there are limits."""
    if row.figure.endswith(INPUTS):
        limit = 0.0
    elif limits is None:
        return row
    elif row.figure in AGREEMENTS:
        return replace(row, limit=limits.agreement, passed=row.value >= limits.agreement)
    else:
        limit = limits.kl if row.figure.endswith("_kl") else limits.error
    return replace(row, limit=limit, passed=bool(row.value <= limit))


def relative_error(found: Floats, expected: Floats) -> float:
    """The largest difference, relative to the largest expected magnitude; infinite for another shape or NaN."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    largest = float(np.abs(expected).max(initial=0))
    return float(np.abs(found - expected).max(initial=0)) / (largest or 1.0)


def divergence(expected: Doubles, found: Doubles) -> float:
    """Kullback-Leibler divergence in nats of `found` from `expected`, both log probabilities [outcomes].

    Infinite where either is not finite.
    """
    nats = float((np.exp(expected) * (expected - found)).sum())
    return max(0.0, nats) if np.isfinite(nats) else float("inf")


class AgainstPyTorch:
    """Gives the figures of one output after another."""

    def __init__(self, traces: Traces) -> None:
        self._images = {image.file: image for image in traces.images}
        self._cases = {case.name: case for case in traces.cases}
        self._agreed: Counter[str] = Counter()

    def rows(self, output: Fed | Output) -> Iterator[Row]:
        """The figures of an output; behind the last step of an answer also how many tokens agree."""
        if isinstance(output, Fed):
            yield Row(output.case, output.name, output.figure, float(not output.same))
        elif output.kind == "logits":
            yield from self._of_logits(output, self._cases[output.case])
        elif output.kind == "draft_logits":
            drafts = self._cases[output.case].drafts
            if drafts is not None:
                yield from _of_tops(output, drafts, output.index - 1, "draft_logits")
        else:
            yield _of_features(output, self._images[output.case])

    def _of_logits(self, output: Output, case: CaseTrace) -> Iterator[Row]:
        logits, step = output.values, output.index
        agrees = int(logits.argmax()) in _likeliest(case, step)
        self._agreed[case.name] += agrees
        yield from _of_tops(output, case.tops, step, "step_logits") if step else _of_prompt(output, case)
        if not step:
            yield Row(case.name, output.name, "top1_agreement", float(agrees))
        if step == len(case.answer) - 1:
            share = self._agreed.pop(case.name) / len(case.answer)
            yield Row(case.name, "decoder: greedy tokens", "greedy_agreement", share)


def _of_features(output: Output, image: ImageTrace) -> Row:
    taps = image.features.deepstack
    if output.kind == "image_features":
        error = relative_error(output.values, image.features.features)
        return Row(output.case, output.name, "image_features_error", error)
    has = taps is not None and output.index < len(taps)
    error = relative_error(output.values, taps[output.index]) if has and taps is not None else float("inf")
    return Row(output.case, output.name, f"deepstack_features_error[{output.index}]", error)


def _of_prompt(output: Output, case: CaseTrace) -> Iterator[Row]:
    """Of the whole distribution behind a prompt."""
    yield Row(case.name, output.name, "logits_error", relative_error(output.values, case.logits))
    kl = divergence(_log_probabilities(case.logits), _log_probabilities(output.values))
    yield Row(case.name, output.name, "logits_kl", kl)


def _of_tops(output: Output, tops: Tops, row: int, figure: str) -> Iterator[Row]:
    """Of the recorded head of the distribution, with all other tokens as one more outcome."""
    logits, ids, expected = output.values, tops.ids[row], tops.logits[row]
    yield Row(output.case, output.name, f"{figure}_error", relative_error(logits[ids], expected))
    recorded = _with_rest(expected.astype(np.float64) - tops.log_sums[row])
    kl = divergence(recorded, _with_rest(logits[ids].astype(np.float64) - log_sum(logits[None])[0]))
    yield Row(output.case, output.name, f"{figure}_kl", kl)


def _likeliest(case: CaseTrace, step: int) -> list[int]:
    """PyTorch's token, and those that are closer to it than the error that float32 may have."""
    logits = case.tops.logits[step]
    tied = case.tops.ids[step][logits[0] - logits <= TIE * abs(logits[0])]
    return [case.answer[step], *map(int, tied)]


def _with_rest(log_probabilities: Doubles) -> Doubles:
    """The probability of all other tokens behind those of some."""
    rest = max(1.0 - float(np.exp(log_probabilities).sum()), 1e-9)
    return np.append(log_probabilities, np.log(rest))


def _log_probabilities(logits: Floats) -> Doubles:
    """In float64, which numpy 1 would not make of float32 less a scalar."""
    values: Doubles = logits.astype(np.float64) - log_sum(logits[None])[0]
    return values
