"""The next token from logits: transformers' processors, in its order, in numpy.

Repetition penalty, then, when sampling, temperature, top-k, top-p, min-p (GenerationMixin._get_logits_processor).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...targets.errors import InputError
from ..values import number, truth, whole

Logits: TypeAlias = npt.NDArray[np.float32]
TokenIds: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens: greedily, unless a temperature above 0 or one of the filters asks for sampling.

    `temperature` 0 or `do_sample` False mean greedy decoding, `do_sample` True alone sampling at temperature 1. `top_k`
    0, `top_p` 1 and `min_p` 0 switch a filter off. Both fields are set when the options are made. Raises InputError for
    values out of range, and for those that greedy decoding would not read.
    """

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        found = {name: check(f"sampling option {name}", value) for name, check in CHECKS.items()
                 if (value := getattr(self, name)) is not None}  # fmt: skip
        given = {**NEUTRAL, **found}
        asking = {
            name: value for name, value in given.items() if name in ASKING and value and value != NEUTRAL.get(name)
        }
        greedy = given.get("do_sample") is False or given.get("temperature") == 0
        if greedy and asking:
            raise _unread(*next(iter(asking.items())), "temperature 0 or do_sample False;")
        if "seed" in given and not greedy and not asking:
            raise _unread("seed", given["seed"], "greedy decoding, the default; give a temperature too, or")
        temperature = given.get("temperature", 1.0) if asking else 0.0
        for name, value in {**given, "do_sample": bool(asking), "temperature": temperature}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_generation_config(
        cls, config: Mapping[str, Any], *, seed: int | None = None, do_sample: bool | None = None
    ) -> SamplingOptions:
        """The options of a generation_config.json; a missing value is transformers' default (top_k is 50).

        `do_sample` True takes its values for sampling even where it asks for greedy decoding itself.
        """
        defaults: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, **OFF}
        chosen = {name: usual if config.get(name) is None else config[name] for name, usual in defaults.items()}
        cold = chosen["temperature"] == 0  # a usual way to write greedy decoding
        if do_sample or (do_sample is None and chosen["do_sample"] and not cold):
            return cls(**{**chosen, "do_sample": True, "temperature": chosen["temperature"] or 1.0}, seed=seed)
        return cls(do_sample=False, repetition_penalty=chosen["repetition_penalty"], seed=seed)


OFF: Mapping[str, Any] = {"top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
NEUTRAL: Mapping[str, Any] = {"top_k": 0, **OFF}
ASKING = ("do_sample", "temperature", "top_k", "top_p", "min_p")  # for sampling, but for those that are neutral
CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "do_sample": truth,
    "temperature": lambda name, value: number(name, value, 0, 100),
    "top_k": lambda name, value: whole(name, value, 0, 1 << 31),
    "top_p": lambda name, value: number(name, value, 0, 1, above=True),
    "min_p": lambda name, value: number(name, value, 0, 1),
    "repetition_penalty": lambda name, value: number(name, value, 0, 100, above=True),
    "seed": lambda name, value: whole(name, value, 0, (1 << 64) - 1),
}


def _unread(name: str, value: Any, by: str) -> InputError:
    return InputError(f"sampling option {name} is {value!r}, which has no effect with {by} leave it out")


class Sampler:
    """Chooses the next token; two samplers with the same options and seed choose the same from the same logits."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._random = np.random.default_rng(options.seed)
        self._numbers = deque[float]()  # of the next tokens, from 0 to 1, as far as they were looked at

    def __call__(self, logits: Logits, history: TokenIds | Sequence[int] = ()) -> int:
        """The id chosen from `logits` [vocab], given the ids so far (prompt and answer) in `history` [n].

        Raises InputError for logits that are not one row of numbers.
        """
        scores = penalize(_checked(logits), history, self.options.repetition_penalty)
        if not self.options.do_sample:
            return int(scores.argmax())
        number = self._number(0)
        self._numbers.popleft()
        return self._drawn(scores, number)

    def foresee(self, logits: Logits, ahead: int) -> int:
        """The id that would be chosen from guessed `logits` [vocab] for the token that is `ahead` behind the next.

        It is drawn with the random number of that token: where the true logits are near the guessed ones, so are the
        ranges of numbers that stand for each token, and mostly the same one is chosen in the end.
        """
        return self._drawn(logits, self._number(ahead)) if self.options.do_sample else int(logits.argmax())

    def _number(self, ahead: int) -> float:
        while len(self._numbers) <= ahead:
            self._numbers.append(self._random.random())
        return self._numbers[ahead]

    def _drawn(self, scores: Logits, number: float) -> int:
        ids, probabilities = distribution(scores, self.options)
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        drawn = np.searchsorted(cumulative, number * cumulative[-1], side="right")
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
    scores = scores / np.float32(options.temperature or 1.0)
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
