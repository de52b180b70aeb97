"""What a finished bundle gives by itself, kept for `lensmith verify` where PyTorch takes no part in an export.

A picture as it is and a short conversation about one of few tokens go through the bundle as it is loaded on a device,
in little time. How far noise carries is measured on what is small.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.bundle.manifest import InputSections
from ...runtimes.bundle.opening import Bundle
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
from ...runtimes.media.images import Grid, ImageSpec, Patches
from ...runtimes.media.no_images import NoImages
from ...runtimes.media.pixels import image_spec
from ...runtimes.media.tiles import TileSpec
from ...targets.errors import InputError
from .golden_media import FILES, sources
from .nudging import NOISE, noise_of
from .self_replay import Way, replayed

# Of few tokens few activations lie near a half, and other kernels turn more of them over than the usual noise does.
OWN_NOISE = 2.0**-14
STEPS = 4  # tokens behind the prompt
LARGEST = 4_000_000_000  # bytes of a bundle that is loaded for this, as a machine that builds it may be a small one
FEW_TILES = 2  # along the longer side of the picture that is asked about, where images are cut into tiles
FEW = 16  # tokens of the picture that is asked about, where a model takes any size


def own_pictures(inputs: InputSections) -> dict[str, int | None]:
    """The files of a bundle's own traces and how many pixels each may have, None for the bundle's own limit.

    The conversation is about the first.
    """
    spec = image_spec(inputs)
    if isinstance(spec, NoImages):
        return {}
    if isinstance(spec, TileSpec) and spec.split:
        return {FILES[0]: min((FEW_TILES * spec.tile) ** 2, spec.longest_edge**2)}
    if not isinstance(spec, ImageSpec) or inputs.role == "encoder":
        return {FILES[0]: None}
    return {FILES[0]: min(FEW * spec.factor**2, spec.max_pixels), FILES[1]: None}


def within(messages: list[dict[str, Any]], pictures: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """A conversation with the limits of its pictures."""
    limits = {name: {"max_pixels": most} for name, most in pictures.items() if most is not None}
    return [
        {**message, "content": [{**block, **limits.get(block.get("image"), {})} for block in message["content"]]}
        for message in messages
    ]


def record_own(conversations: Mapping[str, Any], writer: BundleWriter, manifest: Mapping[str, Any]) -> Traces:
    """Load the bundle in `writer`, and add its traces and the record of their bits and of their spread.

    `conversations` are by name, and asked up to the first short one that the bundle takes. Raises InputError for a
    bundle that is too large to be loaded on the side, or has no room for any, and MissingExtra without its engine.
    """
    bundle = writer.preview(manifest)
    size = sum(bundle.file(name).stat().st_size for name in writer.names)
    if size > LARGEST:
        raise InputError(f"its graphs have {size / 1e9:.1f} GB, and are not loaded beside the export")
    pictures, files = own_pictures(bundle.manifest), sources()
    for name in pictures:
        writer.add(name).write_bytes(files[name])
    bundle = writer.preview(manifest)
    wishes: dict[str, Any] = {"device": usable_device(bundle.manifest)}
    traces, base = _recorded(open_loaded(bundle, **wishes), pictures, conversations)
    small = replace(traces, images=traces.images[:1], cases=traces.cases[-1:])  # what is soon computed once more
    built = Built(
        {line: base.digests for line in [arithmetic(bundle, **wishes)] if line is not None},
        base.samples,
        spread(base, [Run(replayed(bundle, small, Way(noise=own_noise(bundle))))]),
        settings_of(bundle),
    )
    write_built(built, writer.add(RECORD), writer.add(SAMPLES))
    return traces


def own_noise(bundle: Bundle) -> float:
    """How much noise a bundle gets here: more than usual where activations are rounded to integers."""
    usual = noise_of(bundle)
    return OWN_NOISE if usual == NOISE else usual


def _recorded(
    model: Model | Encoder, pictures: Mapping[str, int | None], conversations: Mapping[str, Any]
) -> tuple[Traces, Run]:
    """What a loaded bundle gives, each picture encoded once."""
    vision = _once(model.vision)
    if isinstance(model, Model):
        model.media.vision = vision  # for conversations
    images = tuple(_cut(model, name, most) for name, most in pictures.items())
    kept = _Kept(Traces(OWN, images, _asked(model, pictures, conversations) if isinstance(model, Model) else ()))
    base = Run(kept.noted(outputs(model, kept.blank, vision)))
    return kept.traces(), base


def _cut(model: Model | Encoder, name: str, max_pixels: int | None) -> ImageTrace:
    """A picture whose features are not known yet."""
    media, nothing = model if isinstance(model, Encoder) else model.media, np.zeros((0, 0), np.float32)
    patches, grid = media.cut(model.bundle.file(name), max_pixels=max_pixels)
    return ImageTrace(name, grid, hashlib.sha256(patches.data).hexdigest(), ImageFeatures(nothing), max_pixels)


def _asked(model: Model, pictures: Mapping[str, int | None], conversations: Mapping[str, Any]) -> tuple[CaseTrace, ...]:
    """Conversations, the last of them short, with some words of their own prompts as answers, without logits yet."""
    limit = model.manifest.limits.context
    files = {name: model.bundle.file(name) for name in pictures}
    nothing: Floats = np.zeros((1, 1), np.float32)
    cases, reasons = list[CaseTrace](), list[str]()
    for name, about in conversations.items():
        messages = within(about, pictures)
        try:
            request = model.prepare([with_sources(message, files) for message in messages])
        except InputError as error:  # of a prompt that is too long, or of a template that has no way to say it
            reasons.append(str(error))
            continue
        ids = [int(token) for token in request.prompt.ids]
        if len(ids) + STEPS <= limit:
            cases.append(CaseTrace(name, messages, ids, nothing[0], ids[:STEPS], tops_of(nothing)))
            if all(len(image.features) <= FEW for image in request.images):
                return (*cases,)
    why = f": {reasons[-1]}" if reasons else ""
    raise InputError(f"none of its short conversations can be asked in a context of {limit} tokens{why}")


def _once(vision: Vision) -> Vision:
    """An encoder that computes each picture once, alone and in the conversation."""
    known: dict[bytes, ImageFeatures] = {}

    def encode(patches: Patches, grid: Grid) -> ImageFeatures:
        key = hashlib.sha256(patches.data).digest()
        if key not in known:
            known[key] = vision(patches, grid)
        return known[key]

    return encode


class _Kept:
    """Fills in what was not known."""

    def __init__(self, blank: Traces) -> None:
        self.blank, self._features = blank, dict[str, Floats]()
        self._taps, self._logits = defaultdict[str, list[Floats]](list), defaultdict[str, list[Floats]](list)

    def noted(self, made: Iterator[Fed | Output]) -> Iterator[Fed | Output]:
        for output in made:
            if isinstance(output, Output) and output.kind != "draft_logits":
                values = output.values.copy()
                if output.kind == "image_features":
                    self._features[output.case] = values
                else:
                    (self._logits if output.kind == "logits" else self._taps)[output.case].append(values)
            yield output

    def traces(self) -> Traces:
        taps = {file: np.stack(found) for file, found in self._taps.items()}
        features = {file: ImageFeatures(rows, taps.get(file)) for file, rows in self._features.items()}
        images = tuple(replace(image, features=features[image.file]) for image in self.blank.images)
        logits = {name: np.stack(steps) for name, steps in self._logits.items()}
        cases = tuple(
            replace(case, logits=logits[case.name][0], tops=tops_of(logits[case.name])) for case in self.blank.cases
        )
        return Traces(self.blank.reference, images, cases)
