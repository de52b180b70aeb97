"""Runs the pictures and conversations of golden traces through a bundle: every output, in the order of computing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np

from ..bundle.manifest import DRAFT_HEAD, VISION_ENCODER
from ..engines.contract import Floats, Step, Vision
from ..generation.encoder import Encoder
from ..generation.model import Model
from ..prompt.positions import text_positions
from ..prompt.requests import Request
from .traces import (
    DRAFTED,
    CaseTrace,
    Traces,
)

NOTHING: Floats = np.zeros((0, 0), np.float32)
Kind = Literal["image_features", "deepstack_features", "logits", "draft_logits"]


@dataclass(frozen=True)
class Fed:
    """Something that goes into a graph, and whether it is what was recorded."""

    case: str  # the file of a picture, or the name of a conversation
    name: str
    figure: str
    same: bool


@dataclass(frozen=True)
class Output:
    """What a graph made of one picture, or of a conversation at one step of its answer; valid until the next one.

    A draft head guesses at a step what the decoder says at the next.
    """

    case: str
    kind: Kind
    index: int  # of the tap of DeepStack, or of the step
    values: Floats  # features [tokens, hidden] or logits [vocab]

    @property
    def name(self) -> str:
        """As people read it: "vision_encoder: deepstack_features[1]"."""
        if self.kind in ("logits", "draft_logits"):
            return f"{self.graph}: logits at step {self.index}"
        return f"vision_encoder: {self.kind}" + (f"[{self.index}]" if self.kind == "deepstack_features" else "")

    @property
    def graph(self) -> str:
        """The graph that made it."""
        return {"logits": "decoder", "draft_logits": DRAFT_HEAD}.get(self.kind, VISION_ENCODER)


def outputs(model: Model | Encoder, traces: Traces, vision: Vision | None = None) -> Iterator[Fed | Output]:
    """What the graphs get and give; each step of an answer gets the recorded token, so that errors do not add up.

    `vision` encodes the pictures in place of the model's own encoder.
    """
    for image in traces.images:
        is_video = model.manifest.takes_videos and image.grid[0] > 1  # still images are one temporal patch each
        media = model if isinstance(model, Encoder) else model.media
        patches, grid = media.cut(model.bundle.file(image.file), video=is_video, max_pixels=image.max_pixels)
        same = grid == image.grid and hashlib.sha256(patches.data).hexdigest() == image.patches_sha256
        yield Fed(image.file, "image patches", "patches_differ", same)
        made = (vision or model.vision)(patches, grid)
        taps = [[] if each.deepstack is None else [*each.deepstack] for each in (made, image.features)]
        for tap, (values, _) in enumerate(zip_longest(*taps, fillvalue=NOTHING)):  # missing ones are as wrong as others
            yield Output(image.file, "deepstack_features", tap, values)
        yield Output(image.file, "image_features", 0, made.features)
    if isinstance(model, Model):
        for case in traces.cases:
            yield from _of_case(model, case)


def _of_case(model: Model, case: CaseTrace) -> Iterator[Fed | Output]:
    request = prepare(model, case)
    same = [int(token) for token in request.prompt.ids] == case.token_ids
    yield Fed(case.name, "token ids", "token_ids_differ", same)
    if not same:
        return  # logits of another prompt say nothing
    head = model.open_draft_head() if DRAFT_HEAD in model.manifest.graphs else None
    with model.conversation(request) as conversation:
        yield Output(case.name, "logits", 0, conversation.prefill(request, share=False, head=head)[-1])
        for step, token in enumerate(case.answer[:-1], start=1):
            ids, positions = np.array([token], np.int64), text_positions(1, request.next_position + step - 1)
            drafting = head is not None and step <= DRAFTED
            if head is not None and drafting:
                guess = head.append(Step(ids, positions, hidden_states=conversation.hidden_states[-1:]))
                yield Output(case.name, "draft_logits", step, guess[-1])
            logits = conversation.run(Step(ids, positions, num_hidden_states=int(drafting)))
            yield Output(case.name, "logits", step, logits[-1])
        conversation.rewind(len(case.token_ids))


def prepare(model: Model, case: CaseTrace) -> Request:
    """Run all turns but the last, so that the last one reuses the cache, as in a real conversation."""
    files = {name: model.bundle.file(name) for name in model.manifest.files}
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
