"""What golden traces will take in a bundle, before there are any: so that plans agree with what is built."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from math import prod

from ...runtimes.bundle.checked_manifest import inputs_of
from ...runtimes.bundle.input_sections import Clips
from ...runtimes.evidence.built import SAMPLED
from ...runtimes.evidence.outputs import with_sources
from ...runtimes.evidence.traces import DRAFTED, TOP
from ...runtimes.generation.timings import Timings
from ...runtimes.media.clips import clip_spec, plan_clip
from ...runtimes.media.frames import VideoLimits
from ...runtimes.media.image_files import ImageLimits
from ...runtimes.media.images import Grid
from ...runtimes.media.media_encoder import MediaEncoder
from ...runtimes.media.medium import layout_of
from ...runtimes.media.no_images import refuse
from ...runtimes.media.pixels import grid_tokens, image_grid, image_spec
from ...runtimes.media.spaced_video import video_spec
from ...runtimes.media.video import video_grid
from ...runtimes.prompt.manifest_specs import prompt_spec
from ...runtimes.prompt.prompt_builder import PromptBuilder
from ...runtimes.prompt.prompt_parts import Prompt
from ...targets.errors import InputError
from ..evidence.golden import AUTO_BYTES
from ..evidence.golden_media import (
    CLIP_FRAMES,
    CLIP_MS,
    CLIP_SIZE,
    FILES,
    SIZES,
    sources,
)
from ..evidence.own_traces import FEW, own_pictures, within
from ..evidence.own_traces import STEPS as OWN_STEPS
from ..evidence.recording import STEPS, conversations, takes
from ..job import Job

ENTRY = 300  # bytes around each array of an .npz file: its header, and its name twice
# Of the two JSON files, measured: for each conversation of STEPS tokens, for each token of its prompt, for an encoder.
JSON_CASE, JSON_TOKEN, JSON_ENCODER = 5_700, 14, 11_000


def golden_bytes(job: Job) -> int:
    """Bytes of the folder `golden/` that `--golden auto` makes here, from PyTorch or from the bundle itself.

    0 where a folder of configurations has no tokenizer, without which nothing is known of prompts.
    """
    if not job.tokenizer.is_here and job.spec.decoder is not None:
        return 0
    here = 4 * job.parameters <= AUTO_BYTES and importlib.util.find_spec("torch") is not None
    if job.lowering.no_replay(job) is not None:
        return 0
    return (here and _trace_bytes(job, own=False)) or _trace_bytes(job, own=True)


def _trace_bytes(job: Job, *, own: bool) -> int:
    """Of traces from PyTorch, or of the bundle's `own`; 0 where the context holds none of their conversations."""
    vision = job.spec.vision
    inputs = inputs_of(job.sections)
    limits = own_pictures(inputs) if own else dict.fromkeys(sources())
    files = {name: sources()[name] for name in limits if takes(name, inputs)}
    answers = _answers(job, files, limits, own=own) if job.spec.decoder is not None else JSON_ENCODER
    if vision is None or not answers:
        return answers
    outputs, tokens = 1 + len(vision.deepstack_layers), list(_media_tokens(job, limits))[: len(files)]
    features = outputs * (4 * sum(tokens) * vision.out_hidden + len(tokens) * (4 * SAMPLED + ENTRY))
    return sum(map(len, files.values())) + features + answers


def _media_tokens(job: Job, limits: Mapping[str, int | None]) -> Iterator[int]:
    """How many tokens each of the built-in files has."""
    spec = image_spec(inputs_of(job.sections))
    for name, (width, height) in zip(FILES, SIZES, strict=True):
        limited = spec.with_pixels(max_pixels=limits.get(name))
        yield grid_tokens(image_grid(height, width, limited), limited)
    assert job.spec.vision is not None
    yield from (prod(grid) // job.spec.vision.merge_size**2 for grid in _clip_grid(job))


def _clip_grid(job: Job) -> Iterator[Grid]:
    """Of the built-in clip, where there is a place for it."""
    inputs = inputs_of(job.sections)
    (width, height), rate = CLIP_SIZE, 1000 / CLIP_MS
    if job.spec.decoder is None:
        assert isinstance(inputs.video, Clips)
        clip = clip_spec(inputs.video)
        yield plan_clip(CLIP_FRAMES, height, width, clip, rate).grid(clip.image)
    elif (video := video_spec(inputs)) is not None:
        frames = len(video.sample(CLIP_FRAMES, rate))
        yield video_grid(frames, video.size(frames, height, width), video)


def _answers(job: Job, files: Mapping[str, bytes], limits: Mapping[str, int | None], *, own: bool) -> int:
    """Of logits, of samples of them at each step, and of the files that describe all; 0 where none fits.

    A bundle's `own` traces have the last short conversation, and longer ones behind it.
    """
    assert job.spec.decoder is not None
    count = OWN_STEPS if own else STEPS
    try:
        prompts = [prompt for prompt in _prompts(job, files, limits) if len(prompt) + count <= job.spec.context]
    except InputError:  # of a template that takes no such conversation
        return 0
    if own:
        short = [place for place, prompt in enumerate(prompts) if prompt.media_tokens()[0] <= FEW]
        prompts = prompts[short[-1] :] if short else []
    vocab = job.spec.decoder.vocab
    sampled = vocab // -(-vocab // SAMPLED)
    drafting = job.spec.decoder.mtp and job.lowering.drafts
    drafts = DRAFTED * (12 * TOP + 8 + 4 * sampled + ENTRY) + 3 * ENTRY if drafting else 0
    steps = count * (12 * TOP + 8 + 4 * sampled + ENTRY + JSON_CASE // STEPS) + drafts
    return len(prompts) * (4 * vocab + steps) + JSON_TOKEN * sum(map(len, prompts))


def _prompts(job: Job, files: Mapping[str, bytes], limits: Mapping[str, int | None]) -> Iterator[Prompt]:
    """Of each built-in conversation."""
    inputs = inputs_of(job.sections)
    specs = image_spec(inputs), video_spec(inputs)
    media = MediaEncoder(refuse, *specs, ImageLimits(), VideoLimits())
    prompts = PromptBuilder(job.tokenizer.library, job.checkpoint.chat_template or "", prompt_spec(inputs))
    for about in conversations(files).values():
        messages = within(about, limits)
        given = [with_sources(message, files) for message in messages]
        images, videos = media.open(given, Timings())
        yield prompts.build(messages, [image.grid for image in images], [layout_of(video) for video in videos])
