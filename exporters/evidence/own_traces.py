"""What a finished bundle gives by itself, kept for `lensmith verify` where PyTorch takes no part in an export.

One picture and one short conversation go through the bundle as it is loaded on a device, in one model and little time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.engines.arithmetic import arithmetic
from ...runtimes.engines.contract import Floats, ImageFeatures, Vision
from ...runtimes.engines.run_wishes import usable_device
from ...runtimes.evidence.built import (
    RECORD,
    SAMPLES,
    Built,
    Run,
    settings_of,
    spread,
    write_built,
)
from ...runtimes.evidence.outputs import (
    Fed,
    Output,
    outputs,
    with_sources,
)
from ...runtimes.evidence.traces import (
    OWN,
    CaseTrace,
    ImageTrace,
    Traces,
    tops_of,
)
from ...runtimes.generation.encoder import Encoder
from ...runtimes.generation.loading import open_loaded
from ...runtimes.generation.model import Model
from ...runtimes.media.images import Grid, Patches
from ...targets.errors import InputError
from .golden_media import FILES, sources
from .nudging import noise_of, nudged_vision
from .self_replay import Way, replayed

STEPS = 4  # tokens behind the prompt
LARGEST = 4_000_000_000  # bytes of a bundle that is loaded for this, as a machine that builds it may be a small one
PICTURE = FILES[0]


def record_own(conversations: Mapping[str, Any], writer: BundleWriter, manifest: Mapping[str, Any]) -> Traces:
    """Load the bundle in `writer`, and add its traces and the record of their bits and of their spread.

    `conversations` are by name, the first that the bundle takes is asked. Raises InputError for a bundle that is too
    large to be loaded on the side, or has no room for any, and MissingExtra without its engine.
    """
    bundle = writer.preview(manifest)
    size = sum(bundle.file(name).stat().st_size for name in writer.names)
    if size > LARGEST:
        raise InputError(f"its graphs have {size / 1e9:.1f} GB, and are not loaded beside the export")
    pictures = {PICTURE: sources()[PICTURE]} if bundle.manifest.takes_images else {}
    for name, data in pictures.items():
        writer.add(name).write_bytes(data)
    wishes: dict[str, Any] = {"device": usable_device(bundle.manifest)}
    model = open_loaded(writer.preview(manifest), **wishes)
    asked = _asked(model, pictures, conversations) if isinstance(model, Model) else ()
    blank = Traces(OWN, tuple(_cut(model, name) for name in pictures), asked)
    kept = _Kept(blank)
    base = Run(kept.noted(_made(model, blank, _once(model.vision))))
    built = Built(
        {line: base.digests for line in [arithmetic(bundle, **wishes)] if line is not None},
        base.samples,
        spread(base, [Run(_nudged(model, blank, noise_of(bundle)))]),
        settings_of(writer.preview(manifest)),
    )
    write_built(built, writer.add(RECORD), writer.add(SAMPLES))
    return kept.traces()


def _cut(model: Model | Encoder, name: str) -> ImageTrace:
    """A picture whose features are not known yet."""
    patches, grid = (model if isinstance(model, Encoder) else model.media).cut(model.bundle.file(name), video=False)
    return ImageTrace(name, grid, hashlib.sha256(patches.data).hexdigest(), ImageFeatures(np.zeros((0, 0), np.float32)))


def _asked(model: Model, pictures: Mapping[str, Any], conversations: Mapping[str, Any]) -> tuple[CaseTrace, ...]:
    """A conversation with some words of its own prompt as its answer, whose logits are not known yet."""
    limit = model.manifest.limits.context
    for name, messages in conversations.items():
        with suppress(InputError):  # of a prompt that is too long
            request = model.prepare([with_sources(message, pictures) for message in messages])
            ids = [int(token) for token in request.prompt.ids]
            if len(ids) + STEPS <= limit:
                nothing: Floats = np.zeros((1, 1), np.float32)
                return (CaseTrace(name, messages, ids, nothing[0], ids[:STEPS], tops_of(nothing)),)
    raise InputError(f"a context of {limit} tokens holds none of its conversations")


def _nudged(model: Model | Encoder, traces: Traces, noise: float) -> Iterator[Fed | Output]:
    """Everything once more with noise in the pixels, which goes on into the decoder; in its norms if there are none."""
    if not traces.images:
        yield from replayed(model.bundle, traces, Way(noise=noise))
        return
    if isinstance(model, Model):
        model.forget()
    yield from _made(model, traces, _once(nudged_vision(model.vision, noise)))


def _made(model: Model | Encoder, traces: Traces, vision: Vision) -> Iterator[Fed | Output]:
    if isinstance(model, Model):
        model.media.vision = vision  # for conversations
    yield from outputs(model, traces, vision)


def _once(vision: Vision) -> Vision:
    """An encoder that computes the one picture once, alone and in the conversation."""
    known: list[ImageFeatures] = []

    def encode(patches: Patches, grid: Grid) -> ImageFeatures:
        if not known:
            known.append(vision(patches, grid))
        return known[0]

    return encode


class _Kept:
    """Fills in what was not known."""

    def __init__(self, blank: Traces) -> None:
        self._blank, self._logits = blank, list[Floats]()
        self._features, self._taps = np.zeros((0, 0), np.float32), list[Floats]()

    def noted(self, made: Iterator[Fed | Output]) -> Iterator[Fed | Output]:
        for output in made:
            if isinstance(output, Output) and output.kind != "draft_logits":
                self._keep(output.kind, output.values.copy())
            yield output

    def _keep(self, kind: str, values: Floats) -> None:
        if kind == "image_features":
            self._features = values
        else:
            (self._logits if kind == "logits" else self._taps).append(values)

    def traces(self) -> Traces:
        features = ImageFeatures(self._features, np.stack(self._taps) if self._taps else None)
        images = tuple(ImageTrace(i.file, i.grid, i.patches_sha256, features) for i in self._blank.images)
        cases = tuple(
            CaseTrace(c.name, c.messages, c.token_ids, self._logits[0], c.answer, tops_of(np.stack(self._logits)))
            for c in self._blank.cases
        )
        return Traces(self._blank.reference, images, cases)
