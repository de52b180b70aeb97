"""Images in every form that callers have them give the same pixels; what is no image ends in one sentence."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.runtimes.media.frames import open_clip
from lensmith.runtimes.media.image_files import ImageLimits, open_image
from lensmith.runtimes.media.images import ImageSpec, preprocess
from lensmith.targets.errors import InputError
from PIL import Image

from tests.runtimes.media.test_images import hf_processor

SPEC = ImageSpec(min_pixels=1024, max_pixels=40_000)


def pixels(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda a: a,
    "columns first in memory": np.asfortranarray,
    "flipped": lambda a: a[::-1, ::-1][::-1, ::-1],
    "every second of a larger one": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "not writable": lambda a: np.frombuffer(a.tobytes(), np.uint8).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=12, deadline=None)
@given(height=st.integers(3, 150), width=st.integers(3, 150), seed=st.integers(0, 99))
def test_arrays_equal_hf(layout: str, height: int, width: int, seed: int) -> None:
    array = pixels(height, width, 3, seed=seed)
    expected = hf_processor(SPEC)(images=[Image.fromarray(array)], return_tensors="np")
    patches, grid = preprocess(open_image(LAYOUTS[layout](array)), SPEC)
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    assert np.array_equal(patches, expected["pixel_values"])


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 3), (40, 30, 4), (3, 30, 3), (1, 1, 3)])
def test_an_array_is_what_pillow_makes_of_it(shape: tuple[int, ...]) -> None:
    array = pixels(*shape)
    assert open_image(array).tobytes() == open_image(Image.fromarray(array)).tobytes()


class Streamed(io.BytesIO):
    """A file that cannot go back and gives little at once."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation("seek")

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 7, 7))


def encoded(form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(40, 30, 3)).save(buffer, form)
    return buffer.getvalue()


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    data, path = encoded(), tmp_path / "a picture%20 of ä#1?.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    with open(path, "rb") as buffered, open(path, "rb", buffering=0) as raw:
        buffered.read(9)  # a file is read from its beginning
        sources: list[Any] = [
            path, str(path), path.as_uri(), path.as_uri().replace("file:///", "file://localhost/"),
            path.as_uri().replace("file:///", "FILE:/"), data, bytearray(data), memoryview(data),
            io.BytesIO(data), Streamed(data), buffered, raw, f"data:image/png;base64,{text}",
            f"DATA:image/png;charset=x;BASE64,{text[:40]}\n {text[40:]}",
            f"data:image/;base64,{text.replace('+', '%2B')}", Image.open(io.BytesIO(data)), pixels(40, 30, 3),
            np.ma.array(pixels(40, 30, 3)),
        ]  # fmt: skip
        opened = [open_image(source).tobytes() for source in [*sources, buffered]]  # once more: the same again
    assert set(opened) == {pixels(40, 30, 3).tobytes()}


REFUSED: dict[str, tuple[Any, str]] = {
    "floats": (np.zeros((4, 4, 3), np.float32), "astype"),
    "16 bits": (np.zeros((4, 4, 3), np.uint16), "astype"),
    "truth": (np.zeros((4, 4), np.bool_), "astype"),
    "objects": (np.array([[None]]), "astype"),
    "channels first": (pixels(3, 40, 50), "channels to the end"),
    "one channel": (pixels(40, 30, 1), "in grey"),
    "two channels": (pixels(40, 30, 2), "with alpha"),
    "five channels": (pixels(40, 30, 5), "with alpha"),
    "a batch": (pixels(2, 40, 30, 3), "one by one"),
    "a row": (pixels(40), "expected uint8"),
    "a mask": (np.ma.masked_greater(pixels(4, 4, 3), 9), "a mask"),
    "a number": (np.array(3, np.uint8), "expected uint8"),
    "nothing": (pixels(0, 30, 3), "expected uint8"),
    "text file": (io.StringIO("abc"), "binary mode"),
    "closed file": (None, "cannot be read from its file"),
    "a list": ([1, 2], "is a list"),
    "none": (None, "is a NoneType"),
    "an integer": (3, "is a int"),
    "web": ("HTTPS://example.com/a.png", "no network"),
    "cloud": ("s3://bucket/a.png", "no network"),
    "another host": ("file://server/a.png", "host 'server'"),
    "relative file URL": ("file://a.png", "absolute path"),
    "no such file": ("file:///no/such/file.png", "cannot be read"),
    "zero byte": ("file:///a%00b", "cannot be read"),
    "percent data": ("data:image/png,abc", "base64,"),
    "not base64": ("data:image/png;base64,####", "not base64"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_ends_in_one_sentence(name: str) -> None:
    source, words = REFUSED[name]
    if name == "closed file":
        source = io.BytesIO(b"a")
        source.close()
    with pytest.raises(InputError, match=words) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Named:
    """As os.PathLike may be."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def __fspath__(self) -> bytes:
        return self.name


@pytest.mark.skipif(os.name == "nt", reason="names there are texts")
def test_names_of_any_bytes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff %41.png"
    with open(name, "wb") as file:
        Image.fromarray(pixels(40, 30, 3)).save(file, "png")
    for source in (os.fsdecode(name), Named(name), f"file://{tmp_path}/%FF%20%2541.png"):
        assert open_image(source).tobytes() == pixels(40, 30, 3).tobytes()  # type: ignore[arg-type]


def test_an_open_file_is_read_up_to_the_limit() -> None:
    limits = ImageLimits(max_file_bytes=5000)
    with open("/dev/zero", "rb") as endless, pytest.raises(InputError, match="limit of 5000 bytes"):
        open_image(endless, limits)
    with pytest.raises(InputError, match="limit of 5000 bytes"):
        open_image(io.BytesIO(bytes(5001)), limits)
    with pytest.raises(InputError, match="known format"):
        open_image(io.BytesIO(bytes(5000)), limits)


def test_a_pipe_is_a_file() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as source, open(writing, "wb") as sink:
        sink.write(encoded())  # fits into the pipe
        sink.close()
        assert open_image(source).tobytes() == pixels(40, 30, 3).tobytes()


def test_frames_and_videos_come_in_the_same_forms(tmp_path: Path) -> None:
    arrays = [pixels(40, 30, 3, seed=seed) for seed in range(3)]
    path = tmp_path / "a b.gif"
    images = [Image.fromarray(array) for array in arrays]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)

    def frames(source: Any) -> list[bytes]:
        return [frame.tobytes() for frame in open_clip(source).frames(np.arange(3))]

    assert frames(images) == frames(arrays) == frames(np.stack(arrays)) == [a.tobytes() for a in arrays]
    assert frames([arrays[0][..., 0], images[1].convert("L"), arrays[2][..., 1]]) != frames(arrays)
    data = path.read_bytes()
    with open(path, "rb") as opened:
        for source in (path.as_uri(), bytearray(data), memoryview(data), opened, io.BytesIO(data)):
            assert frames(source) == frames(path)
    for bad, words in ((images[0], "one image object"), (3, "a video is a int"), ("ftp://a/b.mp4", "no network")):
        with pytest.raises(InputError, match=words):
            open_clip(bad)  # type: ignore[arg-type]
