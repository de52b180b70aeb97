"""How far compressed weights take a model from its float32 self, on samples that calibration never saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...exporters.progress import Steps
from ...runtimes.engines.contract import ImageFeatures
from .candidates import Candidate, unchanged
from .float_model import FloatModel, drafts_of, features_of
from .head import Predictions, head_blocks, predict
from .prepared_samples import (
    ANSWER,
    IMAGE,
    KINDS,
    Picture,
    Sample,
    keys_of,
)
from .stages import Stages, by_input
from .streams import (
    Floats,
    SampleStream,
    StageRunner,
    Values,
    relative_error,
)
from .trial import GROUPS

NEGLIGIBLE = 1e-4  # nats: below, differences of a few answers are noise, and change none of them
ROWS = 8192  # positions that are compared in all; more tell no more
Rows = NDArray[np.int64]  # positions of a sample


@dataclass(frozen=True)
class Drafts:
    """Of a draft head, at the positions that perplexity is measured at: `top1` is the share of the float32 head's own
    drafts, `accepted` that of drafts which are the token that the same weights would have chosen."""

    top1: float
    accepted: float
    positions: int


@dataclass(frozen=True)
class Judgement:
    """Means over held-out positions of kinds that were calibrated on.

    `kl` and `top1` by kind of token; `accuracy` by task, of whole right answers to samples that came with one. `groups`
    are KL divergences by group, over all samples: see GROUPS. `answers` are those of each sample, where its answer is
    predicted: they tell what a difference of two candidates is worth. `drift` is the relative mean square error of the
    inputs of each matrix, which all layers in front add up to.
    """

    kl: Mapping[str, float]
    top1: Mapping[str, float]
    positions: Mapping[str, int]
    perplexity: float
    accuracy: Mapping[str, float]
    groups: Mapping[str, float] = field(default_factory=dict)
    answers: tuple[float, ...] = ()  # 0 for a sample without an answer
    drift: Mapping[str, float] = field(default_factory=dict)
    drafts: Drafts | None = None  # None without a draft head

    @property
    def mean_kl(self) -> float:
        """Over the kinds, each counting the same."""
        return float(np.mean(list(self.kl.values())))


def judge(
    model: FloatModel,
    samples: Sequence[Sample],
    pictures: Mapping[str, Picture],
    candidates: Mapping[str, Candidate],
    progress: Steps = lambda *_: None,
) -> dict[str, Judgement]:
    """The judgement of each candidate, and of the float32 model itself under "float"."""
    race = _Race(model, {"float": unchanged(model), **candidates}, progress)
    features = race.see(keys_of(samples), pictures)
    starts = {name: model.questions(samples, seen) for name, seen in features.items()}
    streams = {name: model.stream(start) for name, start in starts.items()}
    drifts = race.walk(model.decoder_stages, streams)
    rows = [_positions(sample, max(1, ROWS // len(samples))) for sample in samples]
    found = _predictions(race, streams, model.decoder_stages, samples, rows)
    drafts = dict(_drafts(race, samples, starts, streams, rows, found)) if model.mtp else {}
    return {
        name: replace(_judgement(samples, rows, found[name]), drift=drifts[name], drafts=drafts.get(name))
        for name in race.candidates
    }


class _Race:
    """Candidates side by side through the stages, the float32 model first."""

    def __init__(self, model: FloatModel, candidates: Mapping[str, Candidate], progress: Steps) -> None:
        self.model, self.candidates, self.progress = model, candidates, progress
        self.done, self.total = 0, model.stage_count

    def see(self, keys: Sequence[str], pictures: Mapping[str, Picture]) -> dict[str, dict[str, ImageFeatures]]:
        """The features of all pictures by key, for each candidate."""
        streams = {
            name: self.model.stream(self.model.pictures([pictures[key] for key in keys])) for name in self.candidates
        }
        if keys:
            self.walk(self.model.vision_stages, streams)
        return {name: features_of(stream, keys) for name, stream in streams.items()}

    def walk(self, stages: Stages, streams: Mapping[str, SampleStream]) -> dict[str, dict[str, float]]:
        """Take all streams through; how far each is off at the input of each matrix, see `Judgement.drift`."""
        named = {name: (stream, self.candidates[name].tables) for name, stream in streams.items()}
        drifts: dict[str, dict[str, float]] = {name: {} for name in streams}
        for runner in self.model.runners(stages, named):
            for name, stream in streams.items():
                drifts[name] |= _drift(runner, streams["float"], stream)
            for name, stream in streams.items():
                self.candidates[name].advance(stream, runner)
            self.done += 1
            self.progress(self.done, self.total)
        return drifts


def _predictions(
    race: _Race, streams: Mapping[str, SampleStream], stages: Stages, samples: Sequence[Sample], rows: Sequence[Rows]
) -> dict[str, Predictions]:
    """What each candidate expects behind some positions, from the inputs of the head that its stream came to.

    A stream may be shorter than its sample: it lacks the first positions, and a draft is of one position further on.
    """
    assert stages.head is not None
    last, model = stages.head.input, race.model
    short = [len(s.ids) - v[last].shape[1] for s, v in zip(samples, streams["float"].samples, strict=True)]
    following = np.concatenate([np.append(s.ids[1:], -1)[r] for s, r in zip(samples, rows, strict=True)])
    places = [chosen - missing for chosen, missing in zip(rows, short, strict=True)]
    hidden = {name: _gather(stream.samples, last, places) for name, stream in streams.items()}
    found = {}
    for name, candidate in race.candidates.items():
        plain, other = (head_blocks(model.checkpoint, model.head, g) for g in (None, candidate.head(model.head)))
        found[name] = predict(hidden["float"], hidden[name], plain, other, following)
    return found


def _drafts(
    race: _Race,
    samples: Sequence[Sample],
    starts: Mapping[str, Sequence[Values]],
    streams: Mapping[str, SampleStream],
    rows: Sequence[Rows],
    chosen: Mapping[str, Predictions],
) -> Iterator[tuple[str, Drafts]]:
    """The drafts of each candidate behind its own decoder, whose predictions are `chosen`."""
    model = race.model
    inputs = {name: model.stream(drafts_of(model, samples, starts[name], stream)) for name, stream in streams.items()}
    race.walk(model.mtp_stages, inputs)
    later = [r[r > 0] for r in rows]
    found = _predictions(race, inputs, model.mtp_stages, samples, later)
    known = np.concatenate([r > 0 for r in rows])
    counted = _counted(samples, rows)[known]
    for name, drafts in found.items():
        same, accepted = drafts.top == drafts.reference_top, drafts.top == chosen[name].top[known]
        yield name, Drafts(float(same[counted].mean()), float(accepted[counted].mean()), int(counted.sum()))


def _drift(runner: StageRunner, plain: SampleStream, other: SampleStream) -> dict[str, float]:
    found: dict[str, float] = {}
    for value, products in by_input(runner.stage):
        error = relative_error((a[value], b[value]) for a, b in zip(plain.samples, other.samples, strict=True))
        found |= {product.source.name: error for product in products}
    return found


def _positions(sample: Sample, most: int) -> Rows:
    """Evenly spread positions of a sample, and all that predict its answer."""
    length = len(sample.ids) - 1
    spread = np.linspace(0, length - 1, min(length, most)).astype(np.int64)
    return np.union1d(spread, np.arange(length - sample.answer, length)).astype(np.int64)


def _gather(samples: Sequence[Values], name: str, rows: Sequence[Rows]) -> Floats:
    return np.concatenate([values[name][0][chosen] for values, chosen in zip(samples, rows, strict=True)])


def worse_groups(judged: Judgement, *simpler: Judgement) -> list[str]:
    """The groups on which weights are further from the float model than simpler ones, and by more than noise."""
    limits = {name: min(other.groups.get(name, 0.0) for other in simpler) for name in GROUPS}
    return [name for name in GROUPS if judged.groups.get(name, 0.0) > max(limits[name], NEGLIGIBLE)]


def _judgement(samples: Sequence[Sample], rows: Sequence[Rows], found: Predictions) -> Judgement:
    kinds, foreign = _of_positions(samples, rows)
    same, own, places = found.top == found.reference_top, ~foreign, _answers(samples, rows)
    parts = {name: own & (kinds == kind) for kind, name in enumerate(KINDS) if (own & (kinds == kind)).any()}
    right: dict[str, list[bool]] = {}
    for sample, place in zip(samples, places, strict=True):
        if sample.answer and not sample.own and not sample.foreign:
            right.setdefault(sample.task, []).append(bool((found.top[place] == sample.ids[-sample.answer :]).all()))
    counted = _counted(samples, rows)
    return Judgement(
        kl={name: float(found.kl[part].mean()) for name, part in parts.items()},
        top1={name: float(same[part].mean()) for name, part in parts.items()},
        positions={name: int(part.sum()) for name, part in parts.items()},
        perplexity=float(np.exp(min(found.loss[counted].mean(), 700.0))),
        accuracy={task: float(np.mean(values)) for task, values in right.items()},
        groups=dict(_groups(found.kl, kinds, foreign)),
        answers=tuple(float(found.kl[place].mean()) if place.start < place.stop else 0.0 for place in places),
    )


def _groups(
    kl: NDArray[np.float64], kinds: NDArray[np.int8], foreign: NDArray[np.bool_]
) -> Iterator[tuple[str, float]]:
    """The mean of each of GROUPS that has positions; kinds of tokens count the same, as in `mean_kl`."""
    chosen = (~foreign, foreign, kinds == ANSWER)
    for name, group in zip(GROUPS, chosen, strict=True):
        means = [kl[group & (kinds == kind)].mean() for kind in np.unique(kinds[group])]
        if means:
            yield name, float(np.mean(means))


def _of_positions(samples: Sequence[Sample], rows: Sequence[Rows]) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """The kind of token of each position, and whether its sample is of a foreign kind."""
    kinds = np.concatenate([sample.kinds[chosen] for sample, chosen in zip(samples, rows, strict=True)])
    return kinds, np.repeat([sample.foreign for sample in samples], [len(chosen) for chosen in rows])


def _answers(samples: Sequence[Sample], rows: Sequence[Rows]) -> list[slice]:
    """Where among all positions those are that predict the answer of each sample."""
    ends = np.cumsum([len(chosen) for chosen in rows]).tolist()
    return [slice(end - sample.answer, end) for sample, end in zip(samples, ends, strict=True)]


def _counted(samples: Sequence[Sample], rows: Sequence[Rows]) -> NDArray[np.bool_]:
    """The positions that predict given answers; without any, those of the model's own; else all but those of images.

    Those of foreign kinds do not count.
    """
    kinds, foreign = _of_positions(samples, rows)
    places = _answers(samples, rows)
    for own in (False, True):
        answered = np.zeros(len(kinds), bool)
        for sample, place in zip(samples, places, strict=True):
            answered[place] = sample.own is own and not sample.foreign
        if answered.any():
            return answered
    outside: NDArray[np.bool_] = (kinds != IMAGE) & ~foreign
    return outside
