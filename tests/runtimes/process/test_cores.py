"""`threads` bounds resizing and the decoding of videos: the same pixels with any number, and no thread beside these."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.synth.making import synth
from lensmith.runtimes import load
from lensmith.runtimes.media import resize, video_files
from lensmith.runtimes.media.images import ImageSpec, patchify
from lensmith.runtimes.media.resize import axis_weights, resize_bicubic
from lensmith.runtimes.process.cores import allowed, at_most, spread
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers.extras import load_encoder

ALONE = """
import time
import numpy as np
from lensmith.runtimes.process.cores import at_most
from lensmith.runtimes.media.resize import resize_bicubic
shapes = [((3, 1500, 2000), (750, 1000)), ((3, 1501, 999), (29, 49)), ((1, 2, 60000), (2, 1)), ((3, 70, 90), (99, 90))]
pixels = [np.random.default_rng(0).integers(0, 256, shape, np.uint8) for shape, _ in shapes]
with at_most(1):
    everyone, mine = time.process_time(), time.thread_time()
    for planes, (_, size) in zip(pixels, shapes, strict=True):
        resize_bicubic(planes, *size)
    everyone, mine = time.process_time() - everyone, time.thread_time() - mine
print(mine > 0.02, everyone - mine < 0.1 * mine, everyone, mine)
"""


def plainly(planes: Any, height: int, width: int) -> Any:
    """Both passes as sums of integers."""
    for axis, size in ((2, width), (1, height)):
        if size == planes.shape[axis]:
            continue
        plan, moved = axis_weights(planes.shape[axis], size), np.moveaxis(planes, axis, 0).astype(np.int64)
        sums = [
            np.tensordot(weights[:count], moved[start : start + count], 1)
            for start, count, weights in zip(plan.starts, plan.sizes, plan.weights, strict=True)
        ]
        rounded = (np.array(sums) + (1 << plan.precision >> 1)) >> plan.precision
        planes = np.moveaxis(np.clip(rounded, 0, 255).astype(np.uint8), 0, axis)
    return planes


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 311, 402), (96, 129)),
        ((3, 97, 49), (98, 500)),
        ((1, 1, 7), (1, 3)),
        ((1, 1, 9000), (1, 1)),
        ((3, 3000, 11), (2, 13)),
        ((1, 5, 3001), (7, 49)),
        ((3, 61, 1111), (1, 2)),
    ],
)
def test_pixels_are_the_same_with_any_threads(
    shape: tuple[int, int, int], size: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "THREAD_PIXELS", 100)
    planes = np.random.default_rng(sum(shape)).choice(np.array([0, 1, 128, 254, 255], np.uint8), shape)
    with at_most(threads):
        np.testing.assert_array_equal(resize_bicubic(planes, *size), plainly(planes, *size))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("frames", [1, 2])
def test_patches_are_the_same_with_any_threads(frames: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a still image fills both time steps or each has a frame of its own; rows of blocks need not divide."""
    monkeypatch.setattr("lensmith.runtimes.media.images.THREAD_PIXELS", 100)
    spec = ImageSpec(patch_size=4, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = np.random.default_rng(frames).integers(0, 256, (frames, 3, 56, 24), np.uint8)
    with at_most(threads):
        patches, grid = patchify(list(pixels), spec)
    # [time, colour, block row, row in block, row in patch, block column, column in block, column in patch]
    cut = np.resize(pixels, (2, 3, 56, 24)).reshape(2, 3, 7, 2, 4, 3, 2, 4).transpose(2, 5, 3, 6, 1, 0, 4, 7)
    mean, std = (np.reshape(values, (3, 1, 1, 1)).astype(np.float32) for values in (spec.mean, spec.std))
    np.testing.assert_allclose(
        patches.reshape(cut.shape), (cut.astype(np.float32) / 255 - mean) / std, rtol=1e-5, atol=1e-6
    )
    assert grid == (1, 14, 6)


def test_one_thread_is_one() -> None:
    """Whatever else computes for this process would count."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("True True"), done


@pytest.mark.parametrize(("length", "least", "parts"), [(10, 1, 3), (10, 4, 2), (10, 11, 1), (2, 0, 2), (0, 1, 1)])
def test_work_is_spread_whole(length: int, least: int, parts: int) -> None:
    done: list[tuple[int, int]] = []
    with at_most(3):
        spread(lambda part: done.append((part.start, part.stop)), length, least)
    assert len(done) == parts
    assert [index for ends in sorted(done) for index in range(*ends)] == list(range(length))


def test_a_failure_in_any_thread_is_raised() -> None:
    def fail(part: slice) -> None:
        if part.start:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), at_most(4):
        spread(fail, 8, 1)
    assert allowed() is None


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    source = synth("arlow-vision", folder / "source", tiny=True)
    return export(prepare(source, Options(precision="fp32")), folder / "bundle", golden="never").path


def test_models_resize_with_their_threads(tiny_bundle: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[int] = set()
    centred = resize._centred

    def watched(*arguments: Any) -> Any:
        used.add(threading.get_ident())
        return centred(*arguments)

    monkeypatch.setattr(resize, "_centred", watched)
    monkeypatch.setattr(resize, "THREAD_PIXELS", 100)
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    image = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    video = [{"role": "user", "content": [{"type": "video", "video": [picture] * 2}]}]
    for threads in (1, 3):
        model, features = load(tiny_bundle, threads=threads, context=2048), load_encoder(encoder, threads=threads)
        ways: list[Callable[[], Any]] = [
            lambda model=model: model.prepare(image),  # type: ignore[misc]
            lambda model=model: model.prepare(video),  # type: ignore[misc]
            lambda model=model: model.media.cut(picture),  # type: ignore[misc]
            lambda model=model: model.media.cut([picture] * 2, video=True),  # type: ignore[misc]
            lambda features=features: features.cut(picture),  # type: ignore[misc]
            lambda features=features: features.cut([picture] * 2, video=True),  # type: ignore[misc]
        ]
        for way in ways:
            used.clear()
            way()
            assert (used == {threading.get_ident()}) == (threads == 1)
    assert allowed() is None


def test_unusable_image_objects_end_in_one_sentence(encoder: Path, tmp_path: Path) -> None:
    closed = Image.new("RGB", (64, 64))
    closed.save(tmp_path / "a.png")
    cut = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()[:60]))
    closed.close()
    for picture in (closed, cut):
        with pytest.raises(InputError, match="not a readable image"):
            load_encoder(encoder).image(picture)


def test_videos_are_decoded_with_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8))))
        container.mux(stream.encode())
    first, counts = video_files._first_video, set()

    def watched(*arguments: Any) -> Any:
        stream = first(*arguments)
        counts.add(stream.codec_context.thread_count)
        return stream

    monkeypatch.setattr(video_files, "_first_video", watched)
    for threads in (1, 2):
        counts.clear()
        load(tiny_bundle, threads=threads, context=2048).media.cut(str(tmp_path / "v.mp4"), video=True)  # type: ignore[union-attr]
        assert counts == {threads}
