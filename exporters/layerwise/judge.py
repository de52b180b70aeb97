"""How far compressed weights take a model from its float32 self, on samples that calibration never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...runtimes.engine import ImageFeatures
from .candidates import Candidate, unchanged
from .head import Predictions, head_blocks, predict
from .model import FloatModel, features_of
from .samples import BEHIND, IMAGE, KINDS, TEXT, Picture, Sample
from .stages import Stages
from .streams import Floats, Runner, Stream, Values

ROWS = 8192  # positions that are compared in all; more tell no more
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Judgement:
    """Means over held-out positions. `kl` and `top1` by kind of token; `accuracy` by task, of whole right answers.

    `drift` is the relative mean square error of the inputs of each matrix, which all layers in front add up to.
    """

    kl: Mapping[str, float]
    top1: Mapping[str, float]
    positions: Mapping[str, int]
    perplexity: float
    accuracy: Mapping[str, float]
    drift: Mapping[str, float] = field(default_factory=dict)

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
    race = _Race(model, {"float": unchanged(model), **candidates}, progress)
    features = race.see(sorted({key for sample in samples for key in sample.pictures}), pictures)
    streams = {name: Stream(model.questions(samples, seen)) for name, seen in features.items()}
    drifts = race.walk(model.decoder_stages, streams)
    rows = [_positions(sample, max(1, ROWS // len(samples))) for sample in samples]
    following = np.concatenate([np.append(s.ids[1:], -1)[r] for s, r in zip(samples, rows, strict=True)])
    hidden = {name: _gather(stream.samples, model.last, rows) for name, stream in streams.items()}
    out = {}
    for name, candidate in race.candidates.items():
        plain, other = (head_blocks(model.checkpoint, model.head, g) for g in (None, candidate.head(model.head)))
        found = predict(hidden["float"], hidden[name], plain, other, following)
        out[name] = replace(_judgement(samples, rows, found), drift=drifts[name])
    return out


class _Race:
    """Candidates side by side through the stages, the float32 model first."""

    def __init__(self, model: FloatModel, candidates: Mapping[str, Candidate], progress: Progress) -> None:
        self.model, self.candidates, self.progress = model, candidates, progress
        self.done, self.total = 0, len(model.decoder_stages.stages) + len(model.vision_stages.stages)

    def see(self, keys: Sequence[str], pictures: Mapping[str, Picture]) -> dict[str, dict[str, ImageFeatures]]:
        """The features of all pictures by key, for each candidate."""
        streams = {name: Stream(self.model.pictures([pictures[key] for key in keys])) for name in self.candidates}
        if keys:
            self.walk(self.model.vision_stages, streams)
        return {name: features_of(stream, keys) for name, stream in streams.items()}

    def walk(self, stages: Stages, streams: Mapping[str, Stream]) -> dict[str, dict[str, float]]:
        """Take all streams through; how far each is off at the input of each matrix, see `Judgement.drift`."""
        named = {name: (stream, self.candidates[name].tables) for name, stream in streams.items()}
        drifts: dict[str, dict[str, float]] = {name: {} for name in streams}
        for runner in self.model.runners(stages, named):
            for name, stream in streams.items():
                drifts[name] |= _drift(runner, streams["float"], stream)
            for name, stream in streams.items():
                stream.advance(runner, self.candidates[name].matrices(runner))
            self.done += 1
            self.progress(self.done, self.total)
        return drifts


def _drift(runner: Runner, plain: Stream, other: Stream) -> dict[str, float]:
    found = {}
    for product in runner.stage.products:
        pairs = [(a[product.input], b[product.input]) for a, b in zip(plain.samples, other.samples, strict=True)]
        lost = sum(float(np.square(a - b).sum(dtype=np.float64)) for a, b in pairs)
        found[product.source.name] = lost / max(sum(float(np.square(a).sum(dtype=np.float64)) for a, _ in pairs), 1e-30)
    return found


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
