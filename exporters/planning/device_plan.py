"""What a build takes on a device and how long its answers take there; whether that fits, and what would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...runtimes.generation.intake import DEFAULT_CONTEXT
from ...targets.profile import TargetProfile, load_target, target_names
from ..job import Job
from .device_memory import MemoryNeed, memory_need
from .image_rungs import Rung, image_rungs
from .matrix_kinds import Matrices, matrices_of
from .prediction import QUESTION_TOKENS, predict, tokens_per_s
from .proposals import (
    ANSWER_TOKENS,
    Budget,
    Proposal,
    misses,
    nearest,
    proposal,
    propose,
)
from .variants import Variant, variant_of, variants

LENGTHS = (1024, 8192, 32_768, 262_144)  # tokens of conversations whose pace is told


@dataclass(frozen=True)
class ImageFigures:
    """Of a question about one image."""

    image_tokens: int
    vision_s: float
    prefill_s: float
    first_token_s: float
    memory_bytes: int  # at the peak


@dataclass(frozen=True)
class DevicePlan:
    """Of the build that was asked for, and of others."""

    target: str
    usable_bytes: int  # of the device, or as wished
    memory: MemoryNeed  # with the largest image and a full context
    images: Mapping[str, ImageFigures]  # by "width x height"
    decode_tokens_per_s: Mapping[int, float]  # behind so many tokens
    asked: Proposal  # what was asked for, at its limits
    misses: tuple[str, ...]  # what of the wishes it does not keep to
    proposals: tuple[Proposal, ...]  # what keeps to them, the best first
    nearest: Proposal | None  # where none does
    nearest_misses: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the build that was asked for keeps to all wishes."""
        return not self.misses


def plan_device(job: Job, target: TargetProfile, image_tokens: Mapping[str, int], wishes: Budget) -> DevicePlan:
    """The figures of a job on a target that runs it."""
    variant, budget, matrices = variant_of(job, target), wishes.on(target), matrices_of(job)
    rungs, context = image_rungs(job.sections), _context(job)
    largest = rungs[-1]
    asked = proposal(variant, largest, context)
    others = [each for each in variants(matrices, job.spec, target) if _runs(each, job)]
    found = propose(others, rungs, budget)
    close = None if found else nearest(others, rungs, budget)
    return DevicePlan(
        target=target.name,
        usable_bytes=round(wishes.memory_bytes or target.device.usable_bytes),
        memory=memory_need(variant, tokens=context, image_tokens=largest.image_tokens, context=context),
        images={size: _figures(variant, tokens, context) for size, tokens in image_tokens.items()},
        decode_tokens_per_s=_paces(variant),
        asked=asked,
        misses=tuple(misses(asked, budget)),
        proposals=tuple(found),
        nearest=close and close[0],
        nearest_misses=tuple(close[1]) if close else (),
    )


def _context(job: Job) -> int:
    """Tokens of a full context: as chosen, or what a model is loaded with, and room for the largest image."""
    if job.spec.decoder is None:
        return job.spec.context
    if job.asked.context is not None or job.target.gpu is not None:
        return job.spec.context
    least = image_rungs(job.sections)[-1].image_tokens + QUESTION_TOKENS + ANSWER_TOKENS
    return min(job.spec.context, max(DEFAULT_CONTEXT, least))


def _figures(variant: Variant, image_tokens: int, context: int) -> ImageFigures:
    timed = predict(variant, image_tokens)
    tokens = image_tokens + QUESTION_TOKENS
    need = memory_need(variant, tokens=tokens, image_tokens=image_tokens, context=context)
    return ImageFigures(image_tokens, timed.vision_s, timed.prefill_s, timed.first_token_s, round(need.peak))


def _paces(variant: Variant) -> dict[int, float]:
    spec = variant.spec
    if spec.decoder is None:
        return {}
    lengths = sorted({min(length, spec.context) for length in LENGTHS})
    return {length: tokens_per_s(variant, length) for length in lengths}


def plan_targets(job: Job, wishes: Budget) -> dict[str, Proposal | list[str]]:
    """By name of each target the best build there, or what the nearest one misses."""
    whole = matrices_of(job)
    return {name: _best(whole, job, load_target(name), wishes) for name in target_names()}


def _best(matrices: Matrices, job: Job, target: TargetProfile, wishes: Budget) -> Proposal | list[str]:
    rungs: tuple[Rung, ...] = image_rungs(job.sections)
    choices = [each for each in variants(matrices, job.spec, target) if _runs(each, job)]
    budget = wishes.on(target)
    found = propose(choices, rungs, budget)
    if found:
        return found[0]
    close = nearest(choices, rungs, budget)
    return close[1] if close else ["none of its formats takes this model"]


def _runs(variant: Variant, job: Job) -> bool:
    """Whether a format takes a family at all, and a target its linear attention."""
    if variant.format == "gguf" and (job.family.gguf is None or job.spec.decoder is None):
        return False
    decoder = job.spec.decoder
    return not (decoder and decoder.delta_net and "float32" in variant.target.lacks)
