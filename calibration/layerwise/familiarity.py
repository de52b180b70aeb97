"""Whether the words of samples mean anything to a model: how likely it takes them to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .float_model import FloatModel
from .head import Predictions, head_blocks, predict
from .layer_pass import seen_by
from .prepared_samples import (
    BEHIND,
    TEXT,
    Picture,
    Sample,
)
from .streams import Floats

MOST = 8  # samples of each side that are looked at
UNTRAINED = 0.5  # of the loss of guessing: a model that is no surer of its own likeliest words knows none
EVERY = 8  # of the positions, one in so many tells how sure a model is
# Of the loss of guessing, that text may be above the text of built-in samples: a model that was taught answers alone
# takes any question to be unlikely, but those that it was taught no more so than others.
MARGIN = 0.5


@dataclass(frozen=True)
class Familiarity:
    """Mean losses of the float32 model in nats a token; None where there are no such tokens."""

    chance: float  # of guessing among all tokens: ln of their number
    sureness: float  # of the tokens that the model takes to be the likeliest
    answers: float | None  # given with the samples
    text: float | None  # of the samples
    known: float | None  # the text of built-in samples

    @property
    def strange(self) -> str | None:
        """What is foreign to the model, in words; None where nothing is."""
        if self.sureness > UNTRAINED * self.chance:
            return None
        if self.answers is not None and self.answers > self.chance:
            return self._said("answers", self.answers)
        if self.text is not None and self.text > self.chance and self.known is not None:
            return self._said("text", self.text) if self.text > self.known + MARGIN * self.chance else None
        return None

    def _said(self, what: str, loss: float) -> str:
        return (f"the model takes the {what} of the samples to be less likely than words drawn by chance ({loss:.1f} "
                f"nats a token; guessing costs {self.chance:.1f})")  # fmt: skip


def familiarity(
    model: FloatModel, samples: Sequence[Sample], others: Sequence[Sample], pictures: Mapping[str, Picture]
) -> Familiarity:
    """Of samples with the words of a user, next to others, which are built-in ones; some of each are looked at."""
    few, known = (part[:: -(-len(part) // MOST) or 1] for part in (samples, others))
    hidden = _hidden(model, [*few, *known], pictures)
    following = np.concatenate([sample.ids[1:] for sample in (*few, *known)])
    found = _predicted(model, hidden, following)
    losses = np.split(found.reference_loss, np.cumsum([len(s.ids) - 1 for s in (*few, *known)])[:-1])
    own, rest = losses[: len(few)], losses[len(few) :]
    sureness = _predicted(model, hidden[::EVERY], found.reference_top[::EVERY]).reference_loss.mean()
    chance = float(np.log(model.checkpoint.tensor(model.head.name).shape[0]))
    answers = _mean([loss[-s.answer :] for s, loss in zip(few, own, strict=True) if s.answer and not s.own])
    return Familiarity(chance, float(sureness), answers, _mean(_texts(few, own)), _mean(_texts(known, rest)))


def _hidden(model: FloatModel, samples: Sequence[Sample], pictures: Mapping[str, Picture]) -> Floats:
    """What the head gets at all positions but the last of each sample."""
    stream = model.stream(model.questions(samples, seen_by(model, samples, pictures)))
    for runner in model.runners(model.decoder_stages, {"float": (stream, model.rows)}):
        stream.advance(runner)
    return np.concatenate([values[model.last][0, :-1] for values in stream.samples])


def _predicted(model: FloatModel, hidden: Floats, following: NDArray[np.int64]) -> Predictions:
    blocks, same = (head_blocks(model.checkpoint, model.head, None) for _ in range(2))
    return predict(hidden, hidden, blocks, same, following)


def _texts(samples: Sequence[Sample], losses: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The losses of tokens in front of the answer that are not of images."""
    found = []
    for sample, loss in zip(samples, losses, strict=True):
        asked = len(sample.ids) - sample.answer
        found.append(loss[: asked - 1][np.isin(sample.kinds[1:asked], (TEXT, BEHIND))])
    return found


def _mean(losses: Sequence[NDArray[np.float64]]) -> float | None:
    every = np.concatenate(losses) if losses else np.zeros(0)
    return float(every.mean()) if len(every) else None
