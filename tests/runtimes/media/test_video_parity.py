"""Videos end to end: compiled models equal PyTorch, frame by frame as all at once; caches, chunks and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.engines.contract import ImageFeatures
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.prompt.requests import user_message
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers import ladder
from tests.helpers.extras import latest, load
from tests.helpers.ladder import ANSWER, IMAGES, Pair, compile_pair

# As in test_parity.py: both sides compute in float32 with other orders of summation. Measured here: features 2e-6,
# logits 8e-6; features in the wrong order or positions of plain text are off by 0.2 and more.
FEATURES = 2e-5
LOGITS = 5e-5
CHUNKED = 5e-5


def frames(count: int, width: int, height: int) -> list[Image.Image]:
    """A box that wanders over a gradient: every frame differs."""
    y, x = np.mgrid[:height, :width]
    clip = []
    for index in range(count):
        planes = np.stack([x * 255 // width, y * 255 // height, (x + y + 20 * index) % 256], axis=-1).astype(np.uint8)
        left = index * width // (count + 1)
        planes[height // 3 : height * 2 // 3, left : left + width // 4] = (250, 30, 40)
        clip.append(Image.fromarray(planes))
    return clip


SEVEN, FOUR = frames(7, 150, 90), frames(4, 64, 130)
CONVERSATIONS: Mapping[str, list[dict[str, Any]]] = {
    "one video": [user_message("What moves?", videos=[SEVEN], frame_rate=2)],
    "image and video": [user_message("Is it in the video?", IMAGES[3:4], [SEVEN], frame_rate=2)],
    "two videos around an image": [
        {"role": "user", "content": [
            {"type": "video", "video": FOUR, "frame_rate": 1},
            {"type": "text", "text": "and"},
            {"type": "image", "image": IMAGES[0]},
            {"type": "video", "video": SEVEN, "num_frames": 5},
        ]},
    ],
    "two turns": [user_message("Describe it.", videos=[FOUR]), ANSWER, user_message("And this?", IMAGES[3:4], [SEVEN])],
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Random weights."""
    ladder.need_torch()
    folder = tmp_path_factory.mktemp("random")
    return compile_pair(ladder.tiny(folder / "tiny"), folder / "bundle")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Trained weights, on single pictures; what matters here is that they are of another kind."""
    ladder.need_torch()
    return compile_pair(ladder.TRAINED, tmp_path_factory.mktemp("trained") / "bundle")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Qwen3.5: no DeepStack, a decoder with recurrent states."""
    ladder.need_torch()
    folder = tmp_path_factory.mktemp("hybrid")
    return compile_pair(ladder.tiny(folder / "tiny", "tarn-2b"), folder / "bundle")


@pytest.fixture(params=["pair", "trained", "hybrid"])
def either(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    return found


def encoded(model: Model, messages: list[dict[str, Any]]) -> list[ImageFeatures]:
    return [image.features for image in model.prepare(messages).images]


def test_frame_by_frame_equals_the_whole_video(either: Pair) -> None:
    """Against PyTorch with all frames at once, and against our own graph with all frames at once."""
    messages = CONVERSATIONS["one video"]
    one_by_one = ImageFeatures.join(encoded(either.model, messages))
    theirs = ImageFeatures.join([image.features for image in either.theirs(messages).images])
    _, (video,) = either.model.media.open(messages, Timings())
    assert video.layout is not None
    at_once = either.model.vision(np.concatenate(list(video.patches())), video.layout.grid)
    assert video.layout.grid[0] == 4
    for other in (theirs, at_once):
        assert relative_error(one_by_one.features, other.features) < FEATURES
        assert (one_by_one.deepstack is None) == (other.deepstack is None)
        if one_by_one.deepstack is not None and other.deepstack is not None:
            assert relative_error(one_by_one.deepstack, other.deepstack) < FEATURES
    assert relative_error(theirs.features[::-1], theirs.features) > 1e-2


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_logits_of_all_positions(either: Pair, name: str) -> None:
    ours, theirs = either.all_logits(CONVERSATIONS[name])
    assert relative_error(ours, theirs) < LOGITS


def test_order_of_frames_counts(pair: Pair) -> None:
    """The checks above would miss a video path that does nothing."""
    asked = [[user_message("What moves?", videos=[clip])] for clip in (SEVEN, SEVEN[::-1])]
    first, second = (pair.model.prefill(pair.model.prepare(m), reuse=False).copy() for m in asked)
    assert relative_error(first, second) > 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_prefill(either: Pair, chunk: int) -> None:
    request = either.model.prepare(CONVERSATIONS["two videos around an image"])
    whole = either.model.prefill(request, chunk=4096, reuse=False).copy()
    assert relative_error(either.model.prefill(request, chunk=chunk, reuse=False), whole) < CHUNKED


def test_greedy_tokens(either: Pair) -> None:
    messages, steps = CONVERSATIONS["image and video"], 64
    request = either.theirs(messages)
    theirs = either.reference.greedy(request, steps, ignore_eos=True)
    answer = either.model.generate(messages, GenerationOptions(max_new_tokens=steps, ignore_eos=True))
    answer.read()
    assert answer.ids == theirs.ids
    lengths = [len(image.features) for image in request.images]
    assert (answer.timings.image_tokens, answer.timings.video_tokens) == (lengths[0], sum(lengths[1:]))


def test_a_second_turn_reuses_cache_and_features(pair: Pair, encodings: list[int]) -> None:
    model, turns = pair.model, CONVERSATIONS["two turns"]
    model.forget()
    model.prefill(model.prepare(turns[:1]), reuse=False)
    assert len(encodings) == 2  # of four frames
    request = model.prepare(turns)
    assert len(encodings) == 2 + 1 + 4  # nothing is encoded again
    assert latest(model).reusable(request) > int(request.prompt.image_spans[1][1])
    reused = model.prefill(request).copy()
    assert relative_error(reused, model.prefill(request, reuse=False)) < CHUNKED
    other = [user_message("Describe it.", videos=[[*FOUR[:2], *SEVEN[:2]]]), *turns[1:]]
    with pytest.raises(InputError, match="one size"):
        model.prepare(other)
    other[0] = user_message("Describe it.", videos=[[*FOUR[:2], FOUR[1], FOUR[2]]])
    assert latest(model).reusable(model.prepare(other)) <= int(request.prompt.image_spans[1][0])


@pytest.fixture
def encodings(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames given to the vision encoder, one entry for each call."""
    calls: list[int] = []
    vision = pair.model.media.vision

    def counted(patches: Any, grid: tuple[int, int, int]) -> ImageFeatures:
        calls.append(grid[0])
        return vision(patches, grid)

    monkeypatch.setattr(pair.model.media, "vision", counted)
    return calls


def test_memory_follows_one_frame(pair: Pair, encodings: list[int]) -> None:
    """A window that slides over a video encodes only what is new; equal frames are encoded once."""
    pair.model.forget()
    clip = frames(12, 64, 64)
    pair.model.prepare([user_message("?", videos=[clip[:8]])])
    assert encodings == [1] * 4
    pair.model.prepare([user_message("?", videos=[clip[2:10]])])
    assert encodings == [1] * 5
    pair.model.prepare([user_message("?", videos=[[clip[11]] * 20])])
    assert encodings == [1] * 6


def test_old_features_are_dropped(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    media, decoder = pair.model.media, pair.model.decoder
    monkeypatch.setattr(media, "most_bytes", 20 * decoder.hidden * 4 * (1 + decoder.taps))
    media.forget()
    pair.model.prepare([user_message("?", videos=[SEVEN])])
    assert len(media._features) == 4  # the latest conversation stays whole
    pair.model.prepare([user_message("?", videos=[FOUR])])
    assert sum(len(image.features) for image in media._features.values()) <= 20


def test_a_prompt_over_the_context_is_refused_before_encoding(pair: Pair, encodings: list[int]) -> None:
    with pytest.raises(InputError, match="fewer frames"):
        pair.model.prepare([user_message("?", videos=[[SEVEN[0].resize((640, 640))] * 64])])
    assert encodings == []


def test_a_smaller_area_takes_fewer_tokens(pair: Pair) -> None:
    model = Model(pair.model.bundle, threads=1, max_video_pixels=16_384)
    assert len(model.prepare(CONVERSATIONS["one video"]).prompt) < len(
        pair.model.prepare(CONVERSATIONS["one video"]).prompt
    )
    with pytest.raises(InputError, match="outside"):
        Model(pair.model.bundle, threads=1, max_video_pixels=1)


def test_an_older_bundle_refuses_videos(pair: Pair) -> None:
    """One without the section: images go on, a video ends in one sentence."""
    bundle = pair.model.bundle
    manifest = {name: section for name, section in bundle.content.items() if name != "video"}
    model = Model(type(bundle)(bundle.path, manifest), threads=1)
    model.prepare([user_message("What?", IMAGES[3:4])])
    with pytest.raises(InputError, match="takes no videos") as caught:
        model.ask("What?", videos=[SEVEN])
    assert "\n" not in str(caught.value)


def test_the_manifest_names_constants_and_limits(pair: Pair) -> None:
    section = json.loads((pair.model.bundle.path / "lensmith.json").read_text())["video"]
    assert section["max_frames"] == 768
    assert section["max_tokens"] == section["max_pixels"] // (32 * 32 * 2)
    assert {"fps", "min_frames", "min_pixels", "mean", "std", "patch_size", "temporal_patch_size"} <= section.keys()


def test_a_file_gives_what_its_frames_give(pair: Pair, tmp_path: Path) -> None:
    """A lossless WebP of ten frames a second, sampled as the list of its frames."""
    path = tmp_path / "clip.webp"
    SEVEN[0].save(path, save_all=True, append_images=SEVEN[1:], duration=100, lossless=True)
    model = load(pair.model.bundle.path, threads=1)
    first = model.prepare([user_message("?", videos=[path], fps=5)])
    second = model.prepare([user_message("?", videos=[SEVEN], fps=5, frame_rate=10)])
    assert first.prompt.ids.tolist() == second.prompt.ids.tolist()
    assert [image.key for image in first.images] == [image.key for image in second.images]


def test_ask_with_a_video(pair: Pair) -> None:
    answer = pair.model.ask("What moves?", options=GenerationOptions(max_new_tokens=3, ignore_eos=True), videos=[FOUR])
    answer.read()
    assert len(answer.ids) == 3
