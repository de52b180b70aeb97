"""How far compressed weights take a model from its float32 self, on samples that calibration never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...calibration.rounding import Groups
from ..blocks import Source
from .head import Predictions, head_blocks, predict
from .model import FloatModel, Tables, features_of
from .samples import BEHIND, IMAGE, KINDS, TEXT, Picture, Sample
from .stages import Stages
from .streams import Effective, Floats, Runner, Stream, Values

ROWS = 8192  # positions that are compared in all; more tell no more
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidate:
    """A way to store the weights: what each matrix, the token table and the output head become."""

    matrices: Callable[[Runner], Effective]
    tables: Tables
    head: Callable[[Source], Groups | None]


@dataclass(frozen=True)
class Judgement:
    """Means over held-out positions. `kl` and `top1` by kind of token; `accuracy` by task, of whole right answers."""

    kl: Mapping[str, float]
    top1: Mapping[str, float]
    positions: Mapping[str, int]
    perplexity: float
    accuracy: Mapping[str, float]

    @property
    def mean_kl(self) -> float:
        """Over the kinds, each counting the same."""
        return float(np.mean(list(self.kl.values())))


def judge(
    model: FloatModel,
    samples: Sequence[Sample],
    pictures: Mapping[str, Picture],
    candidates: Mapping[str, Candidate],
    progress: Progress = lambda *_: None,
) -> dict[str, Judgement]:
    """The judgement of each candidate, and of the float32 model itself under "float"."""
    keys = sorted({key for sample in samples for key in sample.pictures})
    start = model.pictures([pictures[key] for key in keys])
    seen = {name: Stream(start) for name in ("float", *candidates)} if keys else {}
    total = len(model.decoder_stages.stages) + len(model.vision_stages.stages)
    steps = _Steps(progress, total)
    if seen:
        _walk(model, model.vision_stages, seen, candidates, steps)
    streams = {
        name: Stream(model.questions(samples, features_of(seen[name], keys) if seen else {}))
        for name in ("float", *candidates)
    }
    _walk(model, model.decoder_stages, streams, candidates, steps)
    rows = [_positions(sample, max(1, ROWS // len(samples))) for sample in samples]
    following = np.concatenate([np.append(s.ids[1:], -1)[r] for s, r in zip(samples, rows, strict=True)])
    hidden = {name: _gather(stream.samples, model.last, rows) for name, stream in streams.items()}
    made: dict[str, Callable[[Source], Groups | None]] = {"float": lambda _: None}
    made |= {name: candidate.head for name, candidate in candidates.items()}
    out = {}
    for name, head in made.items():
        blocks = (head_blocks(model.checkpoint, model.head, groups) for groups in (None, head(model.head)))
        found = predict(hidden["float"], hidden[name], *blocks, following)
        out[name] = _judgement(samples, rows, found)
    return out


class _Steps:
    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def advance(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)


def _walk(
    model: FloatModel,
    stages: Stages,
    streams: Mapping[str, Stream],
    candidates: Mapping[str, Candidate],
    steps: _Steps,
) -> None:
    tables: dict[str, Tables] = {"float": model.rows, **{name: c.tables for name, c in candidates.items()}}
    for runner in model.runners(stages, {name: (stream, tables[name]) for name, stream in streams.items()}):
        for name, stream in streams.items():
            stream.advance(runner, candidates[name].matrices(runner) if name in candidates else lambda _: None)
        steps.advance()


def _positions(sample: Sample, most: int) -> NDArray[np.int64]:
    """Evenly spread positions of a sample, and all that predict its answer."""
    length = len(sample.ids) - 1
    spread = np.linspace(0, length - 1, min(length, most)).astype(np.int64)
    return np.union1d(spread, np.arange(length - sample.answer, length)).astype(np.int64)


def _gather(samples: Sequence[Values], name: str, rows: Sequence[NDArray[np.int64]]) -> Floats:
    return np.concatenate([values[name][0][chosen] for values, chosen in zip(samples, rows, strict=True)])


def _judgement(samples: Sequence[Sample], rows: Sequence[NDArray[np.int64]], found: Predictions) -> Judgement:
    kinds = np.concatenate([sample.kinds[chosen] for sample, chosen in zip(samples, rows, strict=True)])
    same = found.top == found.reference_top
    parts = {KINDS[kind]: kinds == kind for kind in (TEXT, IMAGE, BEHIND) if (kinds == kind).any()}
    right: dict[str, list[bool]] = {}
    answered, at = np.zeros(len(kinds), bool), 0
    for sample, chosen in zip(samples, rows, strict=True):
        if sample.answer:
            place = slice(at + len(chosen) - sample.answer, at + len(chosen))
            answered[place] = True
            right.setdefault(sample.task, []).append(bool((found.top[place] == sample.ids[-sample.answer :]).all()))
        at += len(chosen)
    counted = answered if answered.any() else kinds != IMAGE
    return Judgement(
        kl={name: float(found.kl[part].mean()) for name, part in parts.items()},
        top1={name: float(same[part].mean()) for name, part in parts.items()},
        positions={name: int(part.sum()) for name, part in parts.items()},
        perplexity=float(np.exp(min(found.loss[counted].mean(), 700.0))),
        accuracy={task: float(np.mean(values)) for task, values in right.items()},
    )


def to_json(judgement: Judgement) -> dict[str, Any]:
    """As plain data."""
    return vars(judgement)
