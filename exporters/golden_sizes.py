"""What golden traces will take in a bundle, before there are any: so that plans agree with what is built."""

from __future__ import annotations

import importlib.util
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
    grids = list(_grids(job))
    files = sum(len(data) for data in list(sources().values())[: len(grids)])
    return files + _features(job, grids) + _answers(job, len(grids) > len(SIZES))


def _grids(job: Job) -> list[Grid]:
    """Of the built-in pictures and, where there is a place for it, of the clip."""
    sections = job.family.sections(job.checkpoint, job.spec, job.options.max_pixels)
    spec = image_spec(sections)
    grids = [image_grid(height, width, spec) for width, height in SIZES]
    (width, height), rate = CLIP_SIZE, 1000 / CLIP_MS
    if not isinstance(job.spec, ModelSpec):
        clip = clip_spec(sections["video"])
        grids.append(plan_clip(CLIP_FRAMES, height, width, clip, rate).grid(clip.image))
    elif (video := video_spec(sections)) is not None:
        frames = len(sample_frames(CLIP_FRAMES, rate, video))
        grids.append(video_grid(frames, video_size(frames, height, width, video), video))
    return grids


def _features(job: Job, grids: list[Grid]) -> int:
    """Of all that the vision encoder makes, and of samples of it."""
    vision = job.spec.vision if isinstance(job.spec, ModelSpec) else job.spec
    outputs = 1 + len(vision.deepstack_layers)
    tokens = sum(prod(grid) // vision.merge_size**2 for grid in grids)
    return outputs * (4 * tokens * vision.out_hidden + len(grids) * (4 * SAMPLED + ENTRY))


def _answers(job: Job, with_video: bool) -> int:
    """Of logits, and of samples of them at each step."""
    if not isinstance(job.spec, ModelSpec):
        return JSON_CASE
    vocab, cases = job.spec.decoder.vocab, len(CONVERSATIONS) + len(VIDEO_CONVERSATIONS) * with_video
    sampled = vocab // -(-vocab // SAMPLED)
    steps = STEPS * (12 * TOP + 8 + 4 * sampled + ENTRY)
    return cases * (4 * vocab + steps + JSON_CASE)
