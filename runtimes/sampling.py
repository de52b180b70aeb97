"""The next token from logits: transformers' processors, in its order, in numpy.

Repetition penalty, then, when sampling, temperature, top-k, top-p, min-p (GenerationMixin._get_logits_processor).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..targets.errors import InputError

Logits: TypeAlias = npt.NDArray[np.float32]
TokenIds: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens, by default greedily; `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(_real(self.temperature) and self.temperature > 0, "temperature", self.temperature,
                 "a number above 0; for greedy decoding set do_sample to false")  # fmt: skip
        _require(isinstance(self.top_k, int) and self.top_k >= 0, "top_k", self.top_k, "an integer of at least 0")
        _require(_real(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0 and at most 1")
        _require(_real(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "a number from 0 to 1")
        _require(_real(self.repetition_penalty) and self.repetition_penalty > 0, "repetition_penalty",
                 self.repetition_penalty, "a number above 0")  # fmt: skip
        _require(self.seed is None or (isinstance(self.seed, int) and self.seed >= 0), "seed", self.seed,
                 "an integer of at least 0")  # fmt: skip

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any], *, seed: int | None = None) -> SamplingOptions:
        """The options of a generation_config.json; a missing value is transformers' default (top_k is 50)."""
        defaults = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0,
                    "repetition_penalty": 1.0}  # fmt: skip
        given = {name: config[name] for name in defaults if config.get(name) is not None}
        chosen = {**defaults, **given}
        if chosen["temperature"] == 0:  # a usual way to write greedy decoding
            chosen |= {"do_sample": False, "temperature": 1.0}
        return cls(**chosen, seed=seed)


class Sampler:
    """Chooses the next token; two samplers with the same options and seed choose the same from the same logits."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._random = np.random.default_rng(options.seed)

    def __call__(self, logits: Logits, history: TokenIds | Sequence[int] = ()) -> int:
        """The id chosen from `logits` [vocab], given the ids so far (prompt and answer) in `history` [n].

        Raises InputError for logits that are not one row of numbers.
        """
        scores = penalize(_checked(logits), history, self.options.repetition_penalty)
        if not self.options.do_sample:
            return int(scores.argmax())
        ids, probabilities = distribution(scores, self.options)
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])


def penalize(logits: Logits, history: TokenIds | Sequence[int], penalty: float) -> Logits:
    """Divide positive and multiply negative logits of tokens in `history` by `penalty` (a copy; 1 changes nothing)."""
    if penalty == 1.0 or len(history) == 0:
        return logits
    seen = np.asarray(history, np.int64)
    scores, chosen = logits.copy(), logits[seen]
    scores[seen] = np.where(chosen < 0, chosen * np.float32(penalty), chosen / np.float32(penalty))
    return scores


def distribution(scores: Logits, options: SamplingOptions) -> tuple[TokenIds, Logits]:
    """Ids left by temperature, top-k, top-p and min-p in rising order [n], and their probabilities [n]."""
    scores = scores / np.float32(options.temperature)
    ids = _top_k(scores, options.top_k)
    ids = _top_p(scores, ids, options.top_p)
    probabilities = _softmax(scores[ids])
    kept = probabilities >= np.float32(options.min_p) * probabilities.max()
    ids = ids[kept]
    return ids, _softmax(scores[ids])


def _top_k(scores: Logits, top_k: int) -> TokenIds:
    """Ids of the `top_k` best scores and of all that tie with the last of them; 0 keeps every finite score."""
    if not 0 < top_k < len(scores):
        return np.flatnonzero(scores > -np.inf)
    threshold = np.partition(scores, -top_k)[-top_k]
    return np.flatnonzero((scores >= threshold) & (scores > -np.inf))


def _top_p(scores: Logits, ids: TokenIds, top_p: float) -> TokenIds:
    """The fewest best ids whose probability reaches `top_p`; of equal scores the higher id counts as better."""
    if top_p >= 1.0:
        return ids
    probabilities = _softmax(scores[ids])
    best = _best(probabilities, top_p)
    order = best[np.lexsort((best, scores[ids[best]]))][::-1]
    before = np.cumsum(probabilities[order], dtype=np.float64) - probabilities[order]
    return np.sort(ids[order[: max(1, int(np.count_nonzero(before < top_p)))]])


def _best(probabilities: Logits, mass: float) -> TokenIds:
    """Indices of the highest probabilities, ties included, that hold at least `mass`: a short list is cheap to sort."""
    count = 64
    while count < len(probabilities):
        threshold = np.partition(probabilities, -count)[-count]
        best = np.flatnonzero(probabilities >= threshold)
        if probabilities[best].sum(dtype=np.float64) >= mass + 1e-4:
            return best
        count *= 16
    return np.arange(len(probabilities))


def _softmax(scores: Logits) -> Logits:
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum(dtype=np.float64), np.float32)


def _checked(logits: Logits) -> Logits:
    if logits.ndim != 1 or logits.dtype != np.float32 or not len(logits):
        raise InputError(f"logits are {logits.dtype} {list(logits.shape)}; expected float32 [vocab]")
    highest = logits.max()
    if not np.isfinite(highest):  # NaN wins every comparison, so this sees it too
        raise InputError(f"the highest logit is {highest}; the model overflowed, run `lensmith verify` on the bundle")
    return logits


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise InputError(f"sampling option {name} is {found!r}; expected {expected}")
