"""What golden traces will take in a bundle, before there are any: so that plans agree with what is built."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from math import prod

from ..runtimes.built import SAMPLED
from ..runtimes.clips import clip_spec, plan_clip
from ..runtimes.images import Grid
from ..runtimes.pixels import image_grid, image_spec
from ..runtimes.traces import TOP
from ..runtimes.video import sample_frames, video_grid, video_size, video_spec
from .golden import AUTO_BYTES, CONVERSATIONS, STEPS, VIDEO_CONVERSATIONS
from .golden_media import CLIP_FRAMES, CLIP_MS, CLIP_SIZE, SIZES, sources
from .job import Job
from .lowering import find_lowering
from .spec import ModelSpec

ENTRY = 300  # bytes around each array of an .npz file: its header, and its name twice
JSON_CASE = 11_000  # of the two JSON files, for each conversation of STEPS tokens; measured


def golden_bytes(job: Job) -> int:
    """Bytes of the folder `golden/` where `--golden auto` records traces on this machine; 0 where it does not."""
    here = 4 * job.parameters <= AUTO_BYTES and importlib.util.find_spec("torch") is not None
    if not here or find_lowering(job.options.format).no_replay(job) is not None:
        return 0
    vision = job.spec.vision if isinstance(job.spec, ModelSpec) else job.spec
    if vision is None:
        return _answers(job, 1)  # the one conversation without pictures
    grids = list(_grids(job))
    files = sum(len(data) for data in list(sources().values())[: len(grids)])
    outputs, tokens = 1 + len(vision.deepstack_layers), sum(prod(grid) // vision.merge_size**2 for grid in grids)
    features = outputs * (4 * tokens * vision.out_hidden + len(grids) * (4 * SAMPLED + ENTRY))
    videos = len(VIDEO_CONVERSATIONS) if len(grids) > len(SIZES) else 0
    return files + features + _answers(job, len(CONVERSATIONS) + videos)


def _grids(job: Job) -> Iterator[Grid]:
    """Of the built-in pictures and, where there is a place for it, of the clip."""
    spec = image_spec(job.sections)
    yield from (image_grid(height, width, spec) for width, height in SIZES)
    (width, height), rate = CLIP_SIZE, 1000 / CLIP_MS
    if not isinstance(job.spec, ModelSpec):
        clip = clip_spec(job.sections["video"])
        yield plan_clip(CLIP_FRAMES, height, width, clip, rate).grid(clip.image)
    elif (video := video_spec(job.sections)) is not None:
        frames = len(sample_frames(CLIP_FRAMES, rate, video))
        yield video_grid(frames, video_size(frames, height, width, video), video)


def _answers(job: Job, cases: int) -> int:
    """Of logits, of samples of them at each step, and of the files that describe all."""
    if not isinstance(job.spec, ModelSpec):
        return JSON_CASE
    vocab = job.spec.decoder.vocab
    sampled = vocab // -(-vocab // SAMPLED)
    steps = STEPS * (12 * TOP + 8 + 4 * sampled + ENTRY)
    return cases * (4 * vocab + steps + JSON_CASE)
