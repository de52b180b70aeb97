"""Videos of Qwen2.5-VL: frames, patches, ids and positions in seconds as in transformers, features and answers, too."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, prepare
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.media.images import ImageSpec
from lensmith.runtimes.media.medium import Medium
from lensmith.runtimes.media.spaced_video import DEFAULTS, SpacedVideoSpec
from lensmith.runtimes.prompt.requests import user_message
from lensmith.targets.errors import InputError
from PIL import Image

from tests.exporters.families.test_qwen2_5_vl import FEATURES, LOGITS
from tests.helpers import hf
from tests.helpers.extras import latest, load
from tests.helpers.ladder import ANSWER, IMAGES, Pair
from tests.runtimes.media.test_video import layout_of, noise, opened, with_wishes
from tests.runtimes.media.test_video_parity import frames

ARCHITECTURE = "qwen2.5-vl-3b"


@pytest.fixture(scope="module")
def processor(base: Path) -> Any:
    return hf.import_transformers().AutoProcessor.from_pretrained(base)


def indices_of_hf(processor: Any, total: int, rate: float, **wishes: Any) -> list[int] | None:
    """None where it fails."""
    metadata = hf.import_transformers().video_utils.VideoMetadata(total_num_frames=total, fps=rate)
    try:
        found = processor.video_processor.sample_frames(metadata, **wishes).tolist()
    except (ValueError, ZeroDivisionError, RuntimeError):
        return None
    return None if not found else [int(index) for index in found]


def test_frames_are_chosen_as_in_transformers(processor: Any) -> None:
    draw, spec, compared = random.Random(3), SpacedVideoSpec(), 0
    for case in range(1500):
        total = draw.choice([draw.randint(1, 40), draw.randint(1, 3000)])
        rate = draw.choice([1, 5, 12.5, 23.976, 24.0, 25, 29.97, 60, draw.uniform(1, 120)])
        wishes = {"num_frames": draw.randint(1, 768)} if case % 2 else {"fps": draw.choice([0.5, 1, 2, 3.7, 30])}
        expected = indices_of_hf(processor, total, rate, **wishes)
        if expected is None:
            with pytest.raises(InputError):
                spec.sample(total, rate, **wishes)
            continue
        assert spec.sample(total, rate, **wishes).tolist() == expected, (total, rate, wishes)
        compared += 1
    assert compared > 900


@pytest.mark.parametrize("batch", range(4))
def test_patches_are_those_of_transformers(batch: int, processor: Any) -> None:
    draw, compared = random.Random(batch), 0
    for _ in range(12):
        least = round(2 ** draw.uniform(10, 15))
        patches = ImageSpec(14, 2, 2, least, round(least * 2 ** draw.uniform(0, 6)), **COLOURS)
        spec = SpacedVideoSpec(patches, max_frames=draw.choice([768, 12, 6]))
        made = noise(draw.randint(1, 20), round(300 ** draw.random()), round(400 ** draw.random()), draw.randrange(99))
        rate = draw.choice([1, 5, 12.5, 23.976, 24, 29.97, 60])
        wishes: dict[str, Any] = draw.choice(
            [{}, {"fps": draw.choice([0.5, 1, 4.5])}, {"num_frames": draw.randint(1, 25)}]
        )
        settings = {"size": {"shortest_edge": least, "longest_edge": patches.max_pixels}, "max_frames": spec.max_frames}
        metadata = {"total_num_frames": len(made), "fps": rate}
        try:
            expected = processor.video_processor(
                [made], video_metadata=[metadata], do_sample_frames=bool(wishes), return_tensors="np",
                input_data_format="channels_last", cap_pixels_per_frame=False, **settings, **wishes,
            )  # fmt: skip
        except (ValueError, ZeroDivisionError, RuntimeError):
            expected = None
        if (
            expected is None
            or len(made) < 2
            or max(wishes.get("num_frames", 0), 0 if wishes else len(made)) > spec.max_frames
        ):
            with pytest.raises(InputError):
                opened(list(map(Image.fromarray, made)), spec, frame_rate=rate, **wishes)
            continue
        medium = opened(list(map(Image.fromarray, made)), spec, frame_rate=rate, **wishes)
        assert [list(layout_of(medium).grid)] == expected["video_grid_thw"].tolist()
        found = np.concatenate(list(medium.patches()))
        assert np.array_equal(found.view(np.int32), expected["pixel_values_videos"].view(np.int32))
        compared += 1
    assert compared > 2


COLOURS: dict[str, Any] = {"mean": DEFAULTS["image_mean"], "std": DEFAULTS["image_std"]}


def conversation(draw: random.Random) -> tuple[list[dict[str, Any]], list[Any]]:
    """One to three turns with text, images, and one to three videos."""
    videos: list[Any] = []

    def block(kind: str) -> dict[str, Any]:
        if kind == "image":
            return {"type": "image", "image": Image.new("RGB", (draw.randint(20, 300), draw.randint(20, 300)))}
        if kind == "video":
            shape = draw.randint(20, 90), draw.randint(20, 90)
            videos.append([Image.new("RGB", shape) for _ in range(draw.randint(2, 30))])
            return {"type": "video", "video": videos[-1]}
        return {"type": "text", "text": draw.choice(["Wie viel?", "\n", "日本 3.14", "don't"])}

    messages: list[dict[str, Any]] = []
    for turn in range(draw.randint(1, 3)):
        kinds = ["text", *draw.choices(["image", "video", "text"], k=draw.randint(0, 3)), *(["video"] * (turn == 0))]
        draw.shuffle(kinds)
        messages.append({"role": "user", "content": [block(kind) for kind in kinds]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": "Ja."}]})
    return messages[:-1], videos


@pytest.mark.parametrize("seed", range(20))
def test_ids_and_positions_are_those_of_transformers(seed: int, pair: Pair, processor: Any) -> None:
    """Positions in time, of seconds in float32, and where generated tokens go on, behind the longest of all axes."""
    import torch

    draw = random.Random(seed)
    messages, videos = conversation(draw)
    rate, sampled = draw.choice([None, 0.3, 1.0, 7.3, 25, 29.97]), draw.random() < 0.5
    metadata = [{"total_num_frames": len(video), "fps": rate or 24.0} for video in videos]
    options = {"do_sample_frames": sampled, "video_metadata": metadata} | ({"fps": 2} if sampled else {})
    expected = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        processor_kwargs={"videos_kwargs": options},
    )  # fmt: skip
    request = pair.model.prepare(with_wishes(messages, {"frame_rate": rate or 24} | ({"fps": 2} if sampled else {})))
    assert request.prompt.ids.tolist() == expected["input_ids"][0].tolist()
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    given = {name: torch.as_tensor(expected[name]) for name in names if name in expected}
    types = torch.as_tensor(np.asarray(expected["mm_token_type_ids"]))
    theirs, delta = pair.reference.model.model.get_rope_index(expected["input_ids"], types, **given)
    assert request.positions.tolist() == theirs[:, 0].tolist()
    assert request.next_position == int(delta) + len(request.prompt)


SEVEN, FOUR = frames(7, 150, 90), frames(4, 64, 130)
CONVERSATIONS: Mapping[str, list[dict[str, Any]]] = {
    "one video": [user_message("What moves?", videos=[SEVEN], frame_rate=2)],
    "a slow video": [user_message("What moves?", videos=[SEVEN], frame_rate=0.1)],
    "videos and an image": [
        {"role": "user", "content": [
            {"type": "video", "video": FOUR, "frame_rate": 1},
            {"type": "text", "text": "and"},
            {"type": "image", "image": IMAGES[3]},
            {"type": "video", "video": SEVEN, "num_frames": 4},
        ]},
    ],
    "two turns": [user_message("Describe it.", videos=[FOUR]), ANSWER, user_message("And?", IMAGES[3:4], [SEVEN])],
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_logits_of_all_positions(name: str, pair: Pair) -> None:
    """PyTorch encodes whole videos and positions them itself."""
    ours, theirs = pair.all_logits(CONVERSATIONS[name])
    assert relative_error(ours, theirs) < LOGITS


def test_features_are_those_of_the_whole_video(pair: Pair) -> None:
    media = pair.model.media
    patches, grid = media.cut(SEVEN, video=True)
    assert grid[0] == 4
    assert (
        relative_error(pair.model.vision(patches, grid).features, pair.reference.vision(patches, grid).features)
        < FEATURES
    )
    each = len(patches) // grid[0]
    parts = [
        pair.model.vision(patches[start : start + each], (1, *grid[1:])).features
        for start in range(0, len(patches), each)
    ]
    assert relative_error(np.concatenate(parts), pair.reference.vision(patches, grid).features) < FEATURES


@pytest.mark.parametrize("name", ["one video", "a slow video"])
def test_greedy_tokens(name: str, pair: Pair) -> None:
    theirs = pair.reference.greedy(pair.theirs(CONVERSATIONS[name]), 24, ignore_eos=True)
    answer = pair.model.generate(CONVERSATIONS[name], GenerationOptions(max_new_tokens=24, ignore_eos=True))
    answer.read()
    assert answer.ids == theirs.ids


@pytest.mark.parametrize("rate", [0.1, 24])
def test_a_second_turn_is_right_whether_the_video_outlasts_the_text_or_not(rate: float, pair: Pair) -> None:
    """Behind a long video answers have later positions than in the next prompt: their states must not be used again."""
    model, first = pair.model, [user_message("What moves?", videos=[FOUR], frame_rate=rate)]
    asked = model.prepare(first)
    assert (asked.next_position > asked.positions[:, -1].max() + 1) == (rate < 1)
    answer = model.generate(first, GenerationOptions(max_new_tokens=6, ignore_eos=True))
    said = {"role": "assistant", "content": [{"type": "text", "text": answer.read()}]}
    turns = [*first, said, user_message("And then?")]
    request = model.prepare(turns)
    reused = model.prefill(request).copy()
    assert relative_error(reused, model.prefill(request, reuse=False)) < LOGITS
    assert relative_error(reused, pair.reference.logits(pair.theirs(turns), 1)) < LOGITS
    assert latest(model).reusable(request) == len(request.prompt)


def test_other_seconds_are_another_video(pair: Pair) -> None:
    slow, fast = ([user_message("What moves?", videos=[FOUR], frame_rate=rate)] for rate in (1, 8))
    pair.model.prefill(pair.model.prepare(slow), reuse=False)
    request = pair.model.prepare(fast)
    assert latest(pair.model).reusable(request) <= int(request.prompt.image_spans[0][0])
    found = pair.model.prefill(request).copy()
    assert relative_error(found, pair.reference.logits(pair.theirs(fast), 1)) < LOGITS


def area(medium: Medium) -> int:
    """Pixels of all frames, those that fill the last temporal patch among them."""
    steps, height, width = layout_of(medium).grid
    return steps * 2 * height * width * 14**2


@pytest.mark.parametrize("most", [28**2 * 8, 28**2 * 30, 28**2 * 57])
def test_a_limit_of_pixels_counts_all_frames(most: int, pair: Pair) -> None:
    """As of the other models, though the processor counts those of each frame."""
    media = pair.model.media
    found = [
        media.open([user_message("?", videos=[SEVEN])], Timings(), {"max_video_pixels": limit})[1][0]
        for limit in (None, most)
    ]
    assert area(found[1]) <= most < area(found[0])


def test_wishes_for_the_pixels_of_a_video(pair: Pair) -> None:
    spec = SpacedVideoSpec(ImageSpec(14, 2, 2, 28**2 * 2, 28**2 * 40, **COLOURS))
    assert layout_of(opened(SEVEN, spec, max_pixels=28**2 * 6)).grid == (4, 2 * 1, 2 * 3)
    assert layout_of(opened(SEVEN, spec, resized_height=140, resized_width=196)).grid == (4, 10, 14)
    with pytest.raises(InputError, match="outside"):
        opened(SEVEN, spec, resized_height=196, resized_width=196)
    with pytest.raises(InputError, match="max_video_pixels"):
        spec.with_pixels(28**2 * 7).size(8, 90, 150)
    with pytest.raises(InputError, match="max_video_pixels"):
        spec.with_pixels(0)


def test_settings_are_read_as_in_transformers(base: Path) -> None:
    """Published checkpoints have those of images alone, which transformers takes for videos, too."""
    video = prepare(base, Options()).sections["video"]
    theirs = hf.import_transformers().AutoVideoProcessor.from_pretrained(base)
    assert (video["min_pixels"], video["max_pixels"]) == (theirs.size["shortest_edge"], theirs.size["longest_edge"])
    assert (video["min_frames"], video["max_frames"], video["fps"]) == (theirs.min_frames, theirs.max_frames, 2)
    assert (video["mean"], video["std"]) == (list(theirs.image_mean), list(theirs.image_std))
    assert video["tokens_per_second"] == 2
    assert video["max_tokens"] == video["max_pixels"] // 28**2
    limited = prepare(base, Options(max_pixels=28**2 * 64)).sections["video"]
    assert (limited["max_pixels"], limited["max_tokens"]) == (28**2 * 64, 64)  # the encoder is built for no more


def test_settings_that_are_left_out_are_those_of_the_class() -> None:
    theirs = hf.import_transformers().Qwen2VLVideoProcessor()
    spec = SpacedVideoSpec.from_processor({}, 2)
    assert (spec.patches.min_pixels, spec.patches.max_pixels) == (
        theirs.size["shortest_edge"],
        theirs.size["longest_edge"],
    )
    assert (spec.min_frames, spec.max_frames) == (theirs.min_frames, theirs.max_frames)
    assert spec.patches.patch_size == theirs.patch_size
    assert spec.patches.temporal_patch_size == theirs.temporal_patch_size


@pytest.mark.parametrize("bad", [{"num_frames": 8}, {"cap_pixels_per_frame": True}, {"fps": 0}, {"min_frames": 900},
                                 {"do_resize": False}, {"size": {"longest_edge": 9}}])  # fmt: skip
def test_settings_of_another_kind_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        SpacedVideoSpec.from_processor(bad, 2)


def test_an_unknown_processor_of_videos_leaves_them_out(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "Qwen3VLVideoProcessor"})
    )
    assert "video" not in prepare(folder, Options()).sections
    assert "Qwen3VLVideoProcessor" in caplog.text


def test_llama_cpp_takes_no_videos_of_it(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = prepare(base, Options(format="gguf", precision="f16"))
    assert "video" not in job.sections
    assert "llama.cpp cannot compute videos" in caplog.text


def test_a_video_file_gives_two_frames_a_second(pair: Pair, tmp_path: Path) -> None:
    clip = tmp_path / "clip.gif"
    SEVEN[0].save(clip, save_all=True, append_images=SEVEN[1:], duration=500)
    model: Model = load(pair.model.bundle.path)
    request = model.prepare([user_message("What moves?", videos=[clip])])
    assert request.prompt.grids[0].tolist()[0] == 3
    assert request.prompt.intervals == (2 / (6 / 7 * 2),)
