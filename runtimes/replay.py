"""Runs the golden traces of a bundle through its graphs and measures every output against PyTorch's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .conversation import Conversation
from .encoder import Encoder
from .engine import Floats, ImageFeatures
from .model import Model
from .positions import text_positions
from .requests import Request
from .traces import CaseTrace, Doubles, ImageTrace, Traces, log_sum

AGREEMENTS = ("top1_agreement", "greedy_agreement")  # the larger the better; of all others the smaller
TIE = 1e-4  # of two logits, relative to them: closer than float32 kernels of different engines agree


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
    rows = [row for image in traces.images for row in _replay_image(model, image)]
    if isinstance(model, Encoder):
        return rows
    return rows + [row for case in traces.cases for row in _replay_case(model, case)]


def relative_error(found: Floats, expected: Floats) -> float:
    """The largest difference, relative to the largest expected magnitude; infinite for another shape or NaN."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    largest = float(np.abs(expected).max(initial=0))
    return float(np.abs(found - expected).max(initial=0)) / (largest or 1.0)


def divergence(expected: Doubles, found: Doubles) -> float:
    """Kullback-Leibler divergence in nats of `found` from `expected`, both log probabilities [outcomes]."""
    return max(0.0, float((np.exp(expected) * (expected - found)).sum()))


def _replay_image(model: Model | Encoder, image: ImageTrace) -> Iterator[Row]:
    is_video = image.grid[0] > 1  # the still images are one temporal patch each
    media = model if isinstance(model, Encoder) else model.media
    patches, grid = media.cut(model.bundle.file(image.file), video=is_video)
    same = grid == image.grid and hashlib.sha256(patches.data).hexdigest() == image.patches_sha256
    yield Row(image.file, "image patches", "patches_differ", float(not same))
    found, expected = model.vision(patches, grid), image.features
    yield from _compare_taps(image.file, found, expected)
    error = relative_error(found.features, expected.features)
    yield Row(image.file, "vision_encoder: image_features", "image_features_error", error)


def _compare_taps(case: str, found: ImageFeatures, expected: ImageFeatures) -> Iterator[Row]:
    for tap, values in enumerate(() if expected.deepstack is None else expected.deepstack):
        have = found.deepstack is not None and tap < len(found.deepstack)
        error = relative_error(found.deepstack[tap], values) if have and found.deepstack is not None else float("inf")
        output = f"vision_encoder: deepstack_features[{tap}]"
        yield Row(case, output, f"deepstack_features_error[{tap}]", error)


def _replay_case(model: Model, case: CaseTrace) -> Iterator[Row]:
    request = _prepare(model, case)
    same = [int(token) for token in request.prompt.ids] == case.token_ids
    yield Row(case.name, "token ids", "token_ids_differ", float(not same))
    if not same:
        return  # logits of another prompt say nothing
    with model.conversation(request) as conversation:
        yield from _replay_in(conversation, case, request)


def _replay_in(conversation: Conversation, case: CaseTrace, request: Request) -> Iterator[Row]:
    logits = conversation.prefill(request)[-1]
    yield Row(case.name, "decoder: logits at step 0", "logits_error", relative_error(logits, case.logits))
    kl = divergence(_log_probabilities(case.logits), _log_probabilities(logits))
    yield Row(case.name, "decoder: logits at step 0", "logits_kl", kl)
    top1 = float(logits.argmax() == case.logits.argmax())
    yield Row(case.name, "decoder: logits at step 0", "top1_agreement", top1)
    yield from _replay_answer(conversation, case, request, logits)


def _prepare(model: Model, case: CaseTrace) -> Request:
    """Run all turns but the last, so that the last one reuses the cache, as in a real conversation."""
    files = {name: model.bundle.file(name) for name in model.bundle.manifest["files"]}
    messages = [with_sources(message, files) for message in case.messages]
    turns = [end for end, message in enumerate(messages, start=1) if message["role"] == "user"]
    for end in turns[:-1]:
        model.prefill(model.prepare(messages[:end]))
    return model.prepare(messages)


def with_sources(message: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its images and videos, named as the files of a bundle are, replaced by their `sources`."""
    blocks = [
        {**block, **{kind: sources[block[kind]] for kind in ("image", "video") if kind in block}}
        for block in message["content"]
    ]
    return {**message, "content": blocks}


def _replay_answer(conversation: Conversation, case: CaseTrace, request: Request, logits: Floats) -> Iterator[Row]:
    """Follow the recorded answer: each step gets PyTorch's token, so that one other choice does not hide the rest."""
    agreed = 0
    for step, token in enumerate(case.answer):
        if step:
            previous = np.array(case.answer[step - 1 : step], np.int64)
            logits = conversation.run(previous, text_positions(1, request.next_position + step - 1))[-1]
            yield from _compare_step(case, step, logits)
        agreed += bool(logits.argmax() == token) or _is_tie(case, step)
    conversation.rewind(len(case.token_ids))
    yield Row(case.name, "decoder: greedy tokens", "greedy_agreement", agreed / len(case.answer))


def _compare_step(case: CaseTrace, step: int, logits: Floats) -> Iterator[Row]:
    """The recorded head of the distribution, with all other tokens as one more outcome."""
    output, ids, expected = f"decoder: logits at step {step}", case.top_ids[step], case.top_logits[step]
    yield Row(case.name, output, "step_logits_error", relative_error(logits[ids], expected))
    recorded = _with_rest(expected - case.log_sums[step])
    kl = divergence(recorded, _with_rest(logits[ids] - log_sum(logits[None])[0]))
    yield Row(case.name, output, "step_logits_kl", kl)


def _is_tie(case: CaseTrace, step: int) -> bool:
    """Whether PyTorch's two best tokens are closer than the error that float32 may have."""
    first, second = case.top_logits[step][:2]
    return bool(first - second <= TIE * abs(first))


def _with_rest(log_probabilities: Doubles) -> Doubles:
    """The probability of all other tokens behind those of some."""
    rest = max(1.0 - float(np.exp(log_probabilities).sum()), 1e-9)
    return np.append(log_probabilities, np.log(rest))


def _log_probabilities(logits: Floats) -> Doubles:
    values: Doubles = logits - log_sum(logits[None])[0]
    return values
