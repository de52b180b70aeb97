"""Videos equal Hugging Face's to the bit: frames taken, patches, token ids, timestamps and positions."""

from __future__ import annotations

import hashlib
import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.media.frames import VideoLimits
from lensmith.runtimes.media.image_files import ImageLimits
from lensmith.runtimes.media.images import ImageSpec
from lensmith.runtimes.media.media_encoder import MediaEncoder
from lensmith.runtimes.media.medium import Medium
from lensmith.runtimes.media.spaced_video import video_spec
from lensmith.runtimes.media.video import (
    VideoSpec,
    frame_seconds,
    patch_seconds,
    sample_frames,
    video_constants,
    video_patches,
    video_size,
)
from lensmith.runtimes.prompt.positions import PositionSpec, mrope_positions
from lensmith.runtimes.prompt.prompt_builder import PromptBuilder, open_prompt
from lensmith.runtimes.prompt.prompt_parts import Prompt, PromptSpec, VideoLayout
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers import hf
from tests.helpers.contents import inputs
from tests.paths import DATA, ROOT
from tests.runtimes.prompt.test_positions import hf_model

FOLDERS = {"qwen3_vl": hf.TOKENIZER, "qwen3_5": ROOT / "exporters" / "synth" / "synth_configs" / "tarn-2b"}
GOLDEN = json.loads((DATA / "video_hashes.json").read_text())
TEXTS = json.loads((DATA / "conversation_parts.json").read_text(encoding="utf-8"))["texts"]
SMALL = VideoSpec(ImageSpec(min_pixels=4096, max_pixels=40_960))


def noise(frames: int, height: int, width: int, seed: int = 0) -> Any:
    """Frames from a generator that is the same everywhere: half noise, half hard edges (overshoot of the cubic)."""
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (frames, height, width, 3), np.uint8)
    pixels[:, : height // 2] = (pixels[:, : height // 2] > 127) * np.uint8(255)
    return pixels


def encoder(spec: VideoSpec) -> MediaEncoder:
    """What opens and cuts; nothing is encoded here."""
    limits = ImageLimits(), VideoLimits()
    return MediaEncoder(cast(Any, None), ImageSpec(max_pixels=90_000), spec, *limits)


def opened(frames: Any, spec: VideoSpec, **wishes: Any) -> Medium:
    block = {"type": "video", "video": frames, **wishes}
    return encoder(spec).open([{"role": "user", "content": [block]}], Timings())[1][0]


def layout_of(medium: Medium) -> VideoLayout:
    assert medium.layout is not None
    return medium.layout


@cache
def hf_processor(folder: Path) -> Any:
    return hf.import_transformers().AutoProcessor.from_pretrained(folder)


def size_of(spec: VideoSpec) -> dict[str, int]:
    return {"shortest_edge": spec.patches.min_pixels, "longest_edge": spec.patches.max_pixels}


def random_case(draw: random.Random) -> tuple[Any, VideoSpec, dict[str, Any]]:
    """1 to 40 frames of 1 x 1 to 300 x 400 pixels, a pixel range, and wishes."""
    least = round(2 ** draw.uniform(10, 17))
    patches = ImageSpec(min_pixels=least, max_pixels=round(least * 2 ** draw.uniform(0, 6)))
    spec = VideoSpec(patches, fps=draw.choice([2.0, 0.7]), max_frames=draw.choice([768, 12, 6]))
    frames = noise(draw.randint(1, 40), round(300 ** draw.random()), round(400 ** draw.random()), draw.randrange(99))
    wishes: dict[str, Any] = draw.choice(
        [{"fps": spec.fps}, {"fps": draw.choice([0.5, 1, 4.5])}, {"num_frames": draw.randint(1, 45)}]
    )
    return frames, spec, {"frame_rate": draw.choice([1, 5, 12.5, 23.976, 24, 29.97, 60]), **wishes}


@pytest.mark.parametrize("batch", range(6))
def test_patches_equal_hf(batch: int) -> None:
    """What HF refuses, we refuse: single frames, extreme sides. We also refuse more num_frames than max_frames."""
    processor = hf_processor(hf.TOKENIZER).video_processor
    draw = random.Random(batch)
    for _ in range(12):
        frames, spec, wishes = random_case(draw)
        metadata = {"total_num_frames": len(frames), "fps": wishes["frame_rate"]}
        sampling = {"fps": None, "num_frames": None} | {k: v for k, v in wishes.items() if k != "frame_rate"}
        processor.max_frames = spec.max_frames
        try:
            expected = processor([frames], video_metadata=[metadata], size=size_of(spec), return_metadata=True,
                                 return_tensors="np", input_data_format="channels_last", **sampling)  # fmt: skip
        except ValueError:
            expected = None
        if expected is None or wishes.get("num_frames", 0) > spec.max_frames:
            with pytest.raises(InputError):
                opened(frames, spec, **wishes)
            continue
        medium = opened(frames, spec, **wishes)
        assert [list(layout_of(medium).grid)] == expected["video_grid_thw"].tolist()
        patches = np.concatenate(list(medium.patches()))
        assert np.array_equal(patches.view(np.int32), expected["pixel_values_videos"].view(np.int32))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['frames']}x{case['height']}x{case['width']}")
def test_golden_hashes(case: dict[str, Any]) -> None:
    """The same bits without transformers: hashes written where the tests here agree with HF."""
    assert golden_hash(case) == case["sha256"]


def golden_hash(case: dict[str, Any]) -> str:
    """Of the grid, the patches and the token ids."""
    frames = noise(case["frames"], case["height"], case["width"])
    medium = opened(frames, VideoSpec(ImageSpec(**case["pixels"])), **case["wishes"])
    layout = layout_of(medium)
    prompt = open_prompt(hf.TOKENIZER, PromptSpec()).build(
        [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": "What?"}]}],
        videos=[layout],
    )
    digest = hashlib.sha256(repr(layout.grid).encode())
    for patches in medium.patches():
        digest.update(patches.astype("<f4").tobytes())
    digest.update(prompt.ids.astype("<i8").tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("seed", range(60))
def test_sampling_equals_hf(seed: int) -> None:
    """Also for long videos: up to 100,000 frames."""
    from_hf = hf.import_transformers().video_utils.VideoMetadata
    draw = random.Random(seed)
    processor = hf_processor(hf.TOKENIZER).video_processor
    spec = VideoSpec(fps=2, min_frames=draw.choice([4, 1, 10]), max_frames=draw.choice([768, 16]))
    processor.min_frames, processor.max_frames = spec.min_frames, spec.max_frames
    total, rate = round(100_000 ** draw.random()), draw.choice([0.3, 10, 24, 30000 / 1001, 60])
    fps = draw.choice([None, 0.1, 1, 2.5, 30, 1000])
    expected = processor.sample_frames(from_hf(total_num_frames=total, fps=rate), fps=fps)
    processor.min_frames, processor.max_frames = 4, 768
    indices = sample_frames(total, rate, spec, fps=fps)
    assert indices.tolist() == expected.tolist()
    seconds = hf_processor(hf.TOKENIZER)._calculate_timestamps(expected.tolist(), rate, 2)
    assert frame_seconds(indices, rate, 2) == tuple(seconds)


def random_conversation(draw: random.Random) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
    """One to three turns with text, images, and one to three videos of 2 to 9 frames; tool turns among them."""
    images: list[Image.Image] = []
    videos: list[Any] = []

    def block(kind: str) -> dict[str, Any]:
        if kind == "image":
            images.append(Image.new("RGB", (draw.randint(20, 300), draw.randint(20, 300))))
            return {"type": "image", "image": images[-1]}
        if kind == "video":
            shape = draw.randint(20, 200), draw.randint(20, 200)
            videos.append([Image.new("RGB", shape) for _ in range(draw.randint(2, 9))])
            return {"type": "video", "video": videos[-1]}
        return {"type": "text", "text": draw.choice(TEXTS)}

    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}] if draw.random() < 0.3 else []
    for turn in range(draw.randint(1, 3)):
        kinds = ["text", *draw.choices(["image", "video", "text"], k=draw.randint(0, 3)), *(["video"] * (turn == 0))]
        draw.shuffle(kinds)
        messages.append({"role": "user", "content": [block(kind) for kind in kinds]})
        messages.append({"role": "assistant", "content": draw.choice(TEXTS)})
    return messages[:-1], images, videos


@pytest.mark.parametrize("family", FOLDERS)
@pytest.mark.parametrize("seed", range(25))
def test_ids_and_positions_equal_hf(seed: int, family: str) -> None:
    draw = random.Random(seed)
    messages, images, videos = random_conversation(draw)
    rate, options = draw.choice([None, 1.0, 25, 29.97]), draw.choice([{}, {}, {"add_vision_id": True}])
    processor = hf_processor(FOLDERS[family])
    metadata = [{"total_num_frames": len(v), "fps": rate, "frames_indices": list(range(len(v)))} for v in videos]
    kwargs: dict[str, Any] = {"videos_kwargs": {"size": size_of(SMALL)}, "images_kwargs": {"size":
              {"shortest_edge": 65_536, "longest_edge": 90_000}}}  # fmt: skip
    sampled = draw.random() < 0.5
    if sampled:
        metadata = [{"total_num_frames": len(video), "fps": rate or 24.0} for video in videos]
    kwargs["videos_kwargs"] |= {"do_sample_frames": sampled, "video_metadata": metadata}
    expected = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="np", add_generation_prompt=True,
        processor_kwargs=kwargs, **options,
    )  # fmt: skip
    wishes = {"frame_rate": rate} | ({"fps": 2} if sampled else {})
    prompt = build(family, with_wishes(messages, wishes), **options)
    assert prompt.ids.tolist() == expected["input_ids"][0].tolist()
    assert prompt.grids[~prompt.of_video].tolist() == (expected["image_grid_thw"].tolist() if images else [])
    check_positions(family, prompt, expected)


def with_wishes(messages: list[dict[str, Any]], wishes: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**m, "content": [b | wishes if b["type"] == "video" else b for b in m["content"]]}
        if isinstance(m["content"], list)
        else m
        for m in messages
    ]


@cache
def builder(family: str) -> PromptBuilder:
    return open_prompt(FOLDERS[family], PromptSpec())


def build(family: str, messages: list[dict[str, Any]], **options: Any) -> Prompt:
    images, videos = encoder(SMALL).open(messages, Timings())
    return builder(family).build(messages, [image.grid for image in images], [layout_of(v) for v in videos], **options)


def check_positions(family: str, prompt: Prompt, expected: Any) -> None:
    """Against get_rope_index, which gets the grids of whole videos and splits them itself."""
    import torch

    grids = {key: torch.from_numpy(expected[key]) for key in ("image_grid_thw", "video_grid_thw") if key in expected}
    types = torch.from_numpy(np.asarray(expected["mm_token_type_ids"]))
    theirs, delta = hf_model().get_rope_index(torch.from_numpy(prompt.ids)[None], types, **grids)
    spec = PositionSpec(builder(family).image_token_id, 2, builder(family).video_token_id)
    ours, following = mrope_positions(prompt.ids, prompt.grids, spec)
    assert np.array_equal(ours, theirs[:, 0].numpy())
    assert following == int(delta) + len(prompt)


def test_timestamps_by_hand() -> None:
    """Five frames at 2 a second: 0 and 0.5 s, 1 and 1.5 s, 2 s alone."""
    assert frame_seconds([0, 1, 2, 3, 4], 2, 2) == (0.25, 1.25, 2.0)
    assert patch_seconds([0.0, 0.1, 0.7], 2) == (0.05, 0.7)
    assert patch_seconds([0.0, 1.0, 2.0, 3.0], 3) == (1.0, 3.0)
    layout = VideoLayout((2, 2, 2), (0.25, 1.25))
    prompt = builder("qwen3_vl").encode("<|vision_start|><|video_pad|><|vision_end|>", videos=[layout])
    text = builder("qwen3_vl").tokenizer.decode(prompt.ids.tolist(), skip_special_tokens=False)
    inner = "<|vision_start|><|video_pad|><|vision_end|>"
    assert text == f"<|vision_start|><0.2 seconds>{inner}<1.2 seconds>{inner}<|vision_end|>"
    assert prompt.media_tokens() == (0, 2)


def test_areas_at_the_limits_by_hand() -> None:
    """Two frames of 60 x 70 pixels, rounded to 64 x 64: an area at a limit is within it."""
    size = 2 * 64 * 64

    def sized(least: int, most: int) -> tuple[int, int]:
        return video_size(2, 60, 70, VideoSpec(ImageSpec(min_pixels=least, max_pixels=most)))

    assert sized(1024, size) == sized(size, 10 * size) == (64, 64)
    assert sized(1024, size - 1) == (32, 64)
    assert sized(size + 1, 10 * size) == (64, 96)


def test_fewer_pixels_than_the_least_of_the_checkpoint() -> None:
    """One image token is enough; the lower end follows."""
    wide = VideoSpec(ImageSpec(min_pixels=5000, max_pixels=9000))
    for most, least in ((1024, 1024), (4000, 4000), (6000, 5000)):
        made = wide.with_pixels(most).patches
        assert (made.min_pixels, made.max_pixels, made.allowed_pixels) == (least, most, (1024, 9000))
    with pytest.raises(InputError, match="outside the 1024 to 9000 pixels"):
        wide.with_pixels(1023)


def test_the_last_frame_fills_a_patch_of_three() -> None:
    spec = ImageSpec(temporal_patch_size=3)
    frames = [Image.fromarray(noise(1, 32, 32, seed)[0]) for seed in range(5)]
    *_, made = video_patches(frames, (32, 32), spec)
    *_, expected = video_patches([*frames, frames[-1]], (32, 32), spec)
    np.testing.assert_array_equal(made, expected)


def test_placeholders_and_videos_must_match() -> None:
    layout = VideoLayout((2, 2, 2), (0.25, 1.25))
    messages = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
    for layouts in ([], [layout, layout]):
        with pytest.raises(InputError, match="1 video placeholders"):
            builder("qwen3_vl").build(messages, videos=layouts)
    with pytest.raises(InputError, match="out of the text"):
        builder("qwen3_vl").build([{"role": "user", "content": "<|video_pad|>"}])
    no_video = PromptBuilder(builder("qwen3_vl").tokenizer, "x", PromptSpec(video_token=None))
    with pytest.raises(InputError, match="0 video placeholders for 1"):
        no_video.build(messages, videos=[layout])


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"fps": 1, "num_frames": 4}, "one of the two"),
        ({"num_frames": 1000}, "1 to 768"),
        ({"num_frames": 1}, "at least 2"),
        ({"fps": -1}, "positive"),
        ({"fps": "2"}, "positive"),
        ({"frame_rate": 0}, "positive"),
        ({"num_frames": True}, "whole"),
        ({"num_frames": 2.5}, "whole"),
    ],
)
def test_unusable_wishes(wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        opened(noise(10, 32, 32), SMALL, **wishes)


def test_too_many_frames_in_a_list() -> None:
    with pytest.raises(InputError, match="1 to 4"):
        opened(noise(5, 32, 32), VideoSpec(max_frames=4))


def test_config_of_the_processor() -> None:
    config = json.loads((hf.TOKENIZER / "video_preprocessor_config.json").read_text())
    spec = VideoSpec.from_config(config)
    assert (spec.patches.min_pixels, spec.patches.max_pixels, spec.max_tokens) == (4096, 25_165_824, 12_288)
    assert video_spec(inputs(video=video_constants(spec))) == spec
    assert VideoSpec.from_config({**config, "fps": 1, "max_frames": 9, "num_frames": None}).max_frames == 9
    small = video_spec(inputs(video=video_constants(spec)), 100_000)
    assert small is not None
    assert small.patches.max_pixels == 100_000
    for bad in ({"do_sample_frames": False}, {"num_frames": 8}, {"fps": 0}, {"min_frames": 900}, {"do_resize": False},
                {"cap_pixels_per_frame": True}, {"size": None}, {"fps": None}, {"max_frames": 2.5}, {"fps": "2"},
                {"do_sample_frames": None}, {"size": {"longest_edge": 9}}, {"min_frames": True}):  # fmt: skip
        with pytest.raises(InputError):
            VideoSpec.from_config({**config, **bad})
    assert VideoSpec.from_config({**config, "min_pixels": 8192, "max_pixels": 9000}) == spec  # the class ignores them
    with pytest.raises(InputError, match="no videos"):
        video_spec(inputs(), 100_000)
    assert video_spec(inputs()) is None


def test_defaults_are_those_of_the_class() -> None:
    processor = type(hf_processor(hf.TOKENIZER).video_processor)()
    spec = VideoSpec.from_config({})
    assert spec == VideoSpec()
    assert size_of(spec) == dict(processor.size)
    assert (spec.fps, spec.min_frames, spec.max_frames) == (processor.fps, processor.min_frames, processor.max_frames)
    assert (spec.patches.mean, spec.patches.std) == (tuple(processor.image_mean), tuple(processor.image_std))


def test_as_many_frames_as_the_bundle_takes() -> None:
    spec = VideoSpec(fps=2, min_frames=2, max_frames=8)
    for count in (1, 8):
        assert len(sample_frames(100, 10, spec, num_frames=count)) == count
    for count in (0, 9):
        with pytest.raises(InputError, match=f"asked for {count} frames; expected 1 to 8"):
            sample_frames(100, 10, spec, num_frames=count)
    for fps in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="expected a positive number"):
            sample_frames(100, 10, spec, fps=fps)
    assert [len(sample_frames(100, 10, spec, fps=fps)) for fps in (0.01, 0.3, 0.5, 50.0)] == [2, 3, 5, 8]
