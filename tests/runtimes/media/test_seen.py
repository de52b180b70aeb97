"""What was encoded before is neither decoded nor encoded again, by its content; anything else is."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.engines.contract import ImageFeatures
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.media import frames, image_files
from lensmith.runtimes.media.frames import VideoLimits
from lensmith.runtimes.media.image_files import ImageLimits
from lensmith.runtimes.media.images import Grid, ImageSpec, Patches
from lensmith.runtimes.media.media_encoder import MediaEncoder
from lensmith.runtimes.media.seen import MOST_SOURCES, Seen, SeenSources
from lensmith.runtimes.media.video import VideoSpec
from lensmith.runtimes.prompt.requests import EncodedImage
from PIL import Image

SPEC = ImageSpec(min_pixels=1024, max_pixels=64_000)
RED, BLUE = (200, 30, 30), (20, 30, 220)


class Counted:
    """Counts decodings and runs of an encoder, whose features of a token are the mean of its patches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded = self.clips = self.encoded = 0
        decode, opened = image_files.decode_image, frames.open_clip

        def counted_decode(*arguments: Any) -> Any:
            self.decoded += 1
            return decode(*arguments)

        def counted_clip(*arguments: Any) -> Any:
            self.clips += 1
            return opened(*arguments)

        monkeypatch.setattr("lensmith.runtimes.media.medium.decode_image", counted_decode)
        monkeypatch.setattr("lensmith.runtimes.media.media_encoder.open_clip", counted_clip)
        self.media = MediaEncoder(self.vision, SPEC, VideoSpec(SPEC), ImageLimits(), VideoLimits())

    def vision(self, patches: Patches, grid: Grid) -> ImageFeatures:
        self.encoded += 1
        return ImageFeatures(patches.reshape(-1, 4 * patches.shape[1]).mean(1, keepdims=True))

    def ask(self, kind: str, source: Any, limits: Any = None, **wishes: Any) -> Any:
        part = {"type": kind, kind: source, **wishes}
        pictures, videos = self.media.open([{"role": "user", "content": [part]}], Timings(), limits)
        encoded, clips = self.media.encode(pictures, videos, Timings())
        return encoded[0] if kind == "image" else clips[0]

    def counts(self) -> tuple[int, int, int]:
        return self.decoded, self.clips, self.encoded


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def save(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (96, 64)) -> Path:
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


def test_a_file_is_decoded_once(counted: Counted, tmp_path: Path) -> None:
    path = save(tmp_path / "a", RED)
    first = counted.ask("image", path)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), save(tmp_path / "copy", RED)):
        assert counted.ask("image", source) is first
    assert counted.counts() == (1, 0, 1)
    save(path, BLUE)  # another picture in the same file, of the same size
    second = counted.ask("image", path)
    assert counted.counts() == (2, 0, 2)
    assert second.features.features[0, 0] != first.features.features[0, 0]
    assert counted.ask("image", save(tmp_path / "wide", RED, (128, 64))).grid != first.grid


def test_wishes_of_one_image_are_its_own(counted: Counted, tmp_path: Path) -> None:
    path = save(tmp_path / "a", RED, (256, 192))
    asked: list[dict[str, int]] = [{}, {"max_pixels": 20_000}, {}, {"max_pixels": 9000}]
    grids = [counted.ask("image", path, **wishes).grid for wishes in asked]
    assert grids[0] == grids[2]
    assert len(set(grids)) == 3
    assert counted.counts() == (3, 0, 3)
    opened = Image.new("RGB", (256, 192), BLUE)
    assert [counted.ask("image", opened, **wishes).grid for wishes in asked] == grids
    assert counted.encoded == 6


def test_pixels_are_compared_as_they_are_now(counted: Counted) -> None:
    image = Image.new("RGB", (96, 64), RED)
    first = counted.ask("image", image)
    assert counted.ask("image", np.asarray(image)) is first
    assert counted.encoded == 1
    image.paste(BLUE, (0, 0, 96, 64))
    assert counted.ask("image", image).features.features[0, 0] != first.features.features[0, 0]
    turned = image.resize((64, 96))  # the same bytes in another shape
    assert counted.ask("image", turned).grid != first.grid


def test_an_image_drawn_on_before_it_is_encoded(counted: Counted) -> None:
    """The conversation is opened first and encoded later."""
    image = Image.new("RGB", (96, 64), RED)
    opened = counted.media.open([{"role": "user", "content": [{"type": "image", "image": image}]}], Timings())
    image.paste(BLUE, (0, 0, 96, 64))
    (encoded,), _ = counted.media.encode(*opened, Timings())
    red = sum(2 * value / 255 - 1 for value in RED) / 3  # not what the encoder keeps under this name, which may be blue
    assert encoded.features.features[0, 0] == pytest.approx(red, abs=1e-5)
    assert counted.ask("image", image).features.features[0, 0] != encoded.features.features[0, 0]


def test_dropped_features_are_made_again(counted: Counted, tmp_path: Path) -> None:
    counted.media.most_bytes = 6 * 4  # one image
    path = save(tmp_path / "a", RED)
    first = counted.ask("image", path)
    other = counted.ask("image", save(tmp_path / "b", BLUE))
    counted.media.trim([other])
    again = counted.ask("image", path)
    assert counted.counts() == (3, 0, 3)
    np.testing.assert_array_equal(again.features.features, first.features.features)
    assert (again.grid, again.key) == (first.grid, first.key)
    counted.media.forget()
    counted.ask("image", path)
    assert counted.counts() == (4, 0, 4)


def test_a_video_of_which_some_features_were_dropped(counted: Counted, tmp_path: Path) -> None:
    path = animation(tmp_path / "a.gif", [RED, RED, BLUE, BLUE, (9, 9, 9), (9, 9, 9)])
    first = counted.ask("video", path, num_frames=6)
    assert counted.encoded == 3
    counted.media.most_bytes = 2 * first.frames[0].features.nbytes
    counted.media.trim(first.frames[1:])
    again = counted.ask("video", path, num_frames=6)
    assert counted.encoded == 4
    assert [frame.key for frame in again.frames] == [frame.key for frame in first.frames]
    for frame, same in zip(again.frames, first.frames, strict=True):
        np.testing.assert_array_equal(frame.features.features, same.features.features)


def animation(path: Path, colours: list[tuple[int, int, int]]) -> Path:
    shown = [Image.new("RGB", (64, 64), colour) for colour in colours]
    shown[0].save(path, "GIF", save_all=True, append_images=shown[1:], duration=500, loop=0)
    return path


def test_a_video_is_decoded_once_for_each_wish(counted: Counted, tmp_path: Path) -> None:
    colours = [(40 * i, 10, 200 - 40 * i) for i in range(6)]
    path = animation(tmp_path / "a.gif", colours)
    first = counted.ask("video", path)
    for source in (path, path.read_bytes(), path.as_uri()):
        again = counted.ask("video", source)
        assert (again.layout, again.frames) == (first.layout, first.frames)
    assert counted.clips == 1
    fewer = counted.ask("video", path, num_frames=4)
    assert counted.clips == 2
    assert len(fewer.frames) < len(first.frames) or fewer.layout != first.layout
    slower = counted.ask("video", path, frame_rate=1.0)
    assert counted.clips == 3
    assert slower.layout.seconds != first.layout.seconds
    smaller = counted.ask("video", path, {"max_video_pixels": 6 * 1024})
    assert (first.layout.grid, smaller.layout.grid) == ((3, 4, 4), (3, 2, 2))
    assert counted.clips == 4
    animation(path, colours[::-1])
    assert counted.ask("video", path).frames[0].key != first.frames[0].key
    frames_ = [Image.new("RGB", (64, 64), colour) for colour in colours]
    counted.ask("video", frames_)
    counted.ask("video", frames_)
    assert counted.clips == 7


def test_a_refusal_is_not_remembered(counted: Counted, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(Exception, match="known format"):
            counted.ask("image", tmp_path / "a")


def test_threads_get_their_own_pictures(counted: Counted, tmp_path: Path) -> None:
    paths = [save(tmp_path / str(i), (20 * i, 255 - 20 * i, 7)) for i in range(8)]
    expected = [float(counted.ask("image", path).features.features[0, 0]) for path in paths]
    wrong: list[str] = []

    def work(start: int) -> None:
        for step in range(40):
            index = (start + step) % len(paths)
            made: EncodedImage = counted.ask("image", paths[index])
            if float(made.features.features[0, 0]) != expected[index]:
                wrong.append(f"{start} {step}")
            if step % 9 == start:
                counted.media.forget()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_of_sources_is_bounded() -> None:
    sources, seen = SeenSources(), Seen((1, 2, 2), None, ())
    for number in range(MOST_SOURCES + 3):
        sources.add((number,), seen)
        assert sources.get((0,)) is seen  # the latest used stay
    assert [sources.get((number,)) for number in (1, 2, 3)] == [None] * 3
    assert sources.get((4,)) is sources.get((MOST_SOURCES + 2,)) is seen
    sources.add(None, seen)
    assert sources.get(None) is None
