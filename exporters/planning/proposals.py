"""Which precision, context and limit of pixels meet a budget of memory and time: proposed, the best first.

Best is what keeps most of the answers: first builds of four bits and more, which need no calibration; among them those
that see larger images; then more bits; then a longer context. An image is worth more than bits, since what its pixels
do not show no precision brings back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...targets.profile import TargetProfile
from .device_memory import memory_need
from .image_rungs import Rung
from .prediction import QUESTION_TOKENS, predict, tokens_per_s
from .variants import Variant

ANSWER_TOKENS = 256  # that a conversation must have room for behind its question
MOST = 6  # proposals
LEAST_CONTEXT = 1024


@dataclass(frozen=True)
class Budget:
    """What a build must keep to; None: whatever it is, and of memory what the device has to give."""

    memory_bytes: float | None = None
    context: int | None = None  # tokens that must fit
    max_pixels: int | None = None  # of images that must be taken as they are
    first_token_s: float | None = None
    decode_tokens_per_s: float | None = None

    def on(self, target: TargetProfile) -> Budget:
        """The same with the memory of a target where none is said."""
        return replace(self, memory_bytes=self.memory_bytes or target.device.usable_bytes)


ANYTHING = Budget()


@dataclass(frozen=True)
class Proposal:
    """One build with its limits, and what is predicted of it."""

    target: str
    format: str
    precision: str
    group_size: int
    max_pixels: int
    image_tokens: int
    context: int
    bundle_bytes: int
    memory_bytes: int  # at the peak, with a full context and the largest image
    vision_s: float
    prefill_s: float
    first_token_s: float
    decode_tokens_per_s: float
    calibrate: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def propose(variants: Iterable[Variant], rungs: Sequence[Rung], budget: Budget) -> list[Proposal]:
    """Builds that meet the budget, the best first; none where no build does."""
    found = [(rank, made) for variant in variants if (best := _best(variant, rungs, budget)) for rank, made in [best]]
    return [made for _, made in sorted(found, key=lambda pair: pair[0], reverse=True)][:MOST]


def _best(variant: Variant, rungs: Sequence[Rung], budget: Budget) -> tuple[tuple[Any, ...], Proposal] | None:
    """The largest images, and with them the longest context, that a variant has within the budget."""
    for place, rung in reversed(list(enumerate(_wanted(rungs, budget)))):
        for context in _contexts(variant, rung, budget):
            made = proposal(variant, rung, context)
            if not misses(made, budget):
                return (not variant.calibrate, place, int(variant.bits), -made.first_token_s, context), made
    return None


def _wanted(rungs: Sequence[Rung], budget: Budget) -> Sequence[Rung]:
    """Limits that may be proposed: where images of a size must be taken as they are, that alone."""
    if budget.max_pixels is None or len(rungs) == 1:
        return rungs
    area = rungs[0].max_pixels / max(1, rungs[0].image_tokens)
    return [Rung(budget.max_pixels, int(budget.max_pixels / area))]


def _contexts(variant: Variant, rung: Rung, budget: Budget) -> Iterator[int]:
    """Lengths to try, the longest first; an encoder alone has its patches."""
    spec = variant.spec
    if spec.decoder is None:
        yield rung.image_tokens
        return
    least = rung.image_tokens + QUESTION_TOKENS + ANSWER_TOKENS
    if budget.context is not None:
        yield from [budget.context] if least <= budget.context else []
        return
    gpu = variant.target.gpu  # whose steps read all of the cache, however little of it is used
    context = spec.context if gpu is None else min(spec.context, gpu.context)
    while context >= min(max(least, LEAST_CONTEXT), spec.context):
        yield context
        context //= 2


def proposal(variant: Variant, rung: Rung, context: int) -> Proposal:
    """A variant with limits, and what is predicted of it."""
    timed, gpu = predict(variant, rung.image_tokens), variant.target.gpu
    memory = memory_need(variant, tokens=context, image_tokens=rung.image_tokens, context=context)
    behind = rung.image_tokens + QUESTION_TOKENS + ANSWER_TOKENS // 2
    return Proposal(
        target=variant.target.name,
        format=variant.format,
        precision=variant.precision,
        group_size=variant.group_size,
        max_pixels=rung.max_pixels,
        image_tokens=rung.image_tokens,
        context=context,
        bundle_bytes=round(variant.weight_bytes),
        memory_bytes=round(memory.peak),
        vision_s=timed.vision_s,
        prefill_s=timed.prefill_s,
        first_token_s=timed.first_token_s,
        decode_tokens_per_s=tokens_per_s(variant, context if gpu else behind),  # an engine reads all of its cache
        calibrate=variant.calibrate,
    )


def misses(made: Proposal, budget: Budget) -> list[str]:
    """In one sentence each, what of a budget a build does not keep to."""
    said = []
    if budget.memory_bytes is not None and made.memory_bytes > budget.memory_bytes:
        said.append(f"it takes {made.memory_bytes / 1e9:.2f} GB of memory, and {budget.memory_bytes / 1e9:.2f} GB "
                    "are there")  # fmt: skip
    if budget.first_token_s is not None and made.first_token_s > budget.first_token_s:
        said.append(f"its first token comes after {made.first_token_s:.1f} s, and {budget.first_token_s:g} s are "
                    "wanted")  # fmt: skip
    wished = budget.decode_tokens_per_s
    if wished is not None and made.decode_tokens_per_s and made.decode_tokens_per_s < wished:
        said.append(f"it decodes {made.decode_tokens_per_s:.1f} tokens a second, and {wished:g} are wanted")
    return said


def nearest(variants: Iterable[Variant], rungs: Sequence[Rung], budget: Budget) -> tuple[Proposal, list[str]] | None:
    """Where no build meets a budget: the one that misses least of it, and what it misses."""
    rung = _wanted(rungs, budget)[0]
    context = budget.context or rung.image_tokens + QUESTION_TOKENS + ANSWER_TOKENS
    made = [proposal(variant, rung, context) for variant in variants]
    missed = [(misses(each, budget), each) for each in made]
    if not missed:
        return None
    sentences, best = min(missed, key=lambda pair: (len(pair[0]), pair[1].calibrate, pair[1].memory_bytes))
    return best, sentences
