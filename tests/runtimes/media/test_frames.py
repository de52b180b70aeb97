"""Frames from lists, animated images and video files; unusable videos end in one clear sentence."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.media.frames import Clip, VideoLimits, open_clip
from lensmith.runtimes.media.image_files import ImageLimits
from lensmith.runtimes.media.video import VideoSpec
from lensmith.runtimes.media.wishes import sample_clip
from lensmith.runtimes.process.cores import at_most
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers.extras import run_without
from tests.paths import ROOT

WIDTH, HEIGHT = 96, 64


def picture(index: int) -> Any:
    """A frame of 12 colours at most, so that a GIF keeps them all; every index has another."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, :, 0] = index * 9
    pixels[:, index * 4 % WIDTH :, 1] = 200
    pixels[index % HEIGHT :, :, 2] = 90
    return pixels


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(picture(index)) for index in range(count)]


def animation(form: str, count: int, duration: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    first, *rest = pictures(count)
    lossless = {"lossless": True} if form == "WEBP" else {}
    first.save(buffer, form, save_all=True, append_images=rest, duration=duration, **lossless, **options)
    return buffer.getvalue()


def taken(clip: Clip, indices: list[int]) -> list[Any]:
    return [np.asarray(frame) for frame in clip.frames(np.array(indices))]


def all_of(clip: Clip) -> list[Any]:
    return taken(clip, list(range(clip.total)))


def assert_frames(clip: Clip, indices: list[int]) -> None:
    for found, index in zip(taken(clip, indices), indices, strict=True):
        assert np.array_equal(found, picture(index))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animated_images_give_their_frames(form: str, tmp_path: Path) -> None:
    data = animation(form, 11, 40)
    path = tmp_path / "clip"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        clip = open_clip(source)
        assert (clip.total, clip.rate, clip.times) == (11, 25.0, None)
        assert clip.size() == (WIDTH, HEIGHT)
        assert_frames(clip, [0, 0, 3, 4, 10])
        assert_frames(clip, [7])  # and again, from the beginning


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_frames_shown_for_different_times(form: str) -> None:
    """Timestamps are when a frame begins; the rate is the average."""
    clip = open_clip(animation(form, 4, [100, 300, 100, 500]))
    assert clip.rate == 4.0
    assert clip.times == (0.0, 0.1, 0.4, 0.5)
    indices, seconds = sample_clip(clip, {"num_frames": 4}, VideoSpec())
    assert indices.tolist() == [0, 1, 2, 3]
    assert seconds == (0.05, 0.45)
    assert sample_clip(clip, {"num_frames": 4, "frame_rate": 1}, VideoSpec())[1] == (0.5, 2.5)


def test_equal_times_are_as_a_rate() -> None:
    clip = open_clip(animation("GIF", 9, 70))
    assert clip.rate is not None
    for block in ({}, {"fps": 4}, {"num_frames": 5}):
        assert (
            sample_clip(clip, block, VideoSpec())[1]
            == sample_clip(clip, {**block, "frame_rate": clip.rate}, VideoSpec())[1]
        )


def test_a_gif_without_times_shows_ten_frames_a_second() -> None:
    assert open_clip(animation("GIF", 3, 0)).rate == 10


def test_transparency_is_on_white() -> None:
    buffer = io.BytesIO()
    clear = [Image.new("RGBA", (8, 8), (255, 0, 0, alpha)) for alpha in (0, 255)]
    clear[0].save(buffer, "WEBP", save_all=True, append_images=clear[1:], duration=50, lossless=True)
    frames = taken(open_clip(buffer.getvalue()), [0, 1])
    assert [frame[0, 0].tolist() for frame in frames] == [[255, 255, 255], [255, 0, 0]]


def test_lists_of_images(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, pictures(5), strict=True):
        image.save(path)
    arrays = np.stack([picture(index) for index in range(5)])
    for source in (
        pictures(5),
        paths,
        tuple(map(str, paths)),
        [path.read_bytes() for path in paths],
        arrays,
        list(arrays),
    ):
        clip = open_clip(source)
        assert (clip.total, clip.rate, clip.chosen) == (5, None, True)
        assert_frames(clip, [0, 2, 2, 4])
    assert sample_clip(clip, {}, VideoSpec())[0].tolist() == [0, 1, 2, 3, 4]  # all, unless wished otherwise
    assert sample_clip(clip, {"num_frames": 2}, VideoSpec())[0].tolist() == [0, 4]
    assert sample_clip(clip, {"frame_rate": 2}, VideoSpec())[1] == (0.25, 1.25, 2.0)


@pytest.fixture(scope="module")
def av() -> Any:
    return pytest.importorskip("av", reason="needs lensmith[video]")


def encode(av: Any, path: Any, count: int, *, codec: str = "mpeg4", form: str | None = None, rate: int = 10) -> None:
    with av.open(path, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(count):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture(scope="module")
def files(av: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    made = {name: folder / f"clip.{name}" for name in ("mp4", "mkv", "avi")}
    for path in made.values():
        encode(av, str(path), 23)
    return made


@pytest.mark.parametrize("name", ["mp4", "mkv", "avi"])
def test_video_files_give_what_pyav_decodes(av: Any, files: dict[str, Path], name: str) -> None:
    with av.open(str(files[name])) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for source in (files[name], str(files[name]), files[name].read_bytes()):
        clip = open_clip(source)
        assert (clip.total, clip.rate, clip.size()) == (23, 10.0, (WIDTH, HEIGHT))
        indices = [0, 5, 5, 22]
        for found, index in zip(taken(clip, indices), indices, strict=True):
            assert np.array_equal(found, expected[index])
    assert len({frame.tobytes() for frame in expected}) == 23


def test_the_rate_is_the_average_one(av: Any, tmp_path: Path) -> None:
    """Phones record frames at uneven times: what counts is their number in the whole time, as for transformers."""
    path = tmp_path / "uneven.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=100)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index, at in enumerate((0, 1, 2, 3, 4, 50, 51, 99)):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate != stream.guessed_rate
        assert open_clip(path).rate == float(stream.average_rate)


def edited(data: bytes, begin: float, seconds: float) -> bytes:
    """An MP4 of which an edit list (ISO 14496-12, 8.6.6) shows a part."""
    scales = [int.from_bytes(data[at + 16 : at + 20], "big") for at in map(data.index, (b"mvhd", b"mdhd"))]
    at = data.index(b"elst") + 4
    assert data[at : at + 8] == bytes(7) + b"\1"  # version 0, one entry
    return data[: at + 8] + struct.pack(">Ii", round(seconds * scales[0]), round(begin * scales[1])) + data[at + 16 :]


@pytest.mark.parametrize(("begin", "seconds", "shown"), [(0, 2.3, 23), (0.5, 1.8, 18), (0.5, 1, 10), (1.4, 0.5, 5)])
def test_a_trimmed_video_is_what_it_shows(
    av: Any, files: dict[str, Path], begin: float, seconds: float, shown: int
) -> None:
    """Phones cut without encoding again: the frames in front and behind stay in the file."""
    data = edited(files["mp4"].read_bytes(), begin, seconds)
    with av.open(str(files["mp4"])) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = open_clip(data)
    assert clip.total == shown
    first = round(begin * 10)
    np.testing.assert_array_equal(all_of(clip), every[first : first + shown])
    with pytest.raises(InputError, match=r"not a readable video|cut off"):
        open_clip(data[: int(len(data) * 0.9)])


@pytest.mark.parametrize(("threads", "told"), [(1, 1), (2, 2), (None, 0)])  # 0: one for each core
def test_decoding_takes_the_threads_that_it_may(files: dict[str, Path], threads: int | None, told: int) -> None:
    from lensmith.runtimes.media.video_files import _stream

    with at_most(threads), _stream("it", files["mp4"], VideoLimits()) as (_, stream):
        assert stream.codec_context.thread_count == told


def test_sampling_of_a_video_file_equals_hf(files: dict[str, Path]) -> None:
    """The frames that transformers takes and their metadata, with PyAV decoding for both."""
    from tests.helpers import hf

    video_utils = hf.import_transformers().video_utils
    processor = hf.processor().video_processor
    frames, metadata = video_utils.load_video(
        str(files["mp4"]), backend="pyav", sample_indices_fn=lambda metadata: processor.sample_frames(metadata, fps=4)
    )
    clip = open_clip(files["mp4"])
    indices, _ = sample_clip(clip, {"fps": 4}, VideoSpec())
    assert indices.tolist() == list(metadata.frames_indices)
    assert (clip.total, clip.rate) == (metadata.total_num_frames, metadata.fps)
    assert np.array_equal(np.stack(taken(clip, indices.tolist())), frames)


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 whose track asks players to turn it: the upper left of the matrix in its header (ISO 14496-12, 8.3.2)."""
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


@pytest.mark.parametrize(
    ("matrix", "quarters"),  # counterclockwise
    [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
)
def test_a_turned_video_is_set_upright(
    av: Any, files: dict[str, Path], tmp_path: Path, matrix: tuple[int, int, int, int], quarters: int
) -> None:
    """As FFmpeg's own player, and torchcodec, do."""
    path = tmp_path / "turned.mp4"
    path.write_bytes(turned(files["mp4"].read_bytes(), matrix))
    expected = [np.rot90(frame, quarters) for frame in taken(open_clip(files["mp4"]), [0, 11])]
    clip = open_clip(path)
    assert clip.size() == ((HEIGHT, WIDTH) if quarters % 2 else (WIDTH, HEIGHT))
    for found, frame in zip(taken(clip, [0, 11]), expected, strict=True):
        assert np.array_equal(found, frame)


@pytest.mark.parametrize(("degrees", "quarters"), [(-90, 3), (90, 1), (180, 2), (-180, 2), (0, 0), (44, 0), (46, 1)])
def test_a_frame_is_turned_in_quarters(degrees: int, quarters: int) -> None:
    from lensmith.runtimes.media.video_files import _upright

    class Frame:
        rotation = degrees  # counterclockwise

        def to_ndarray(self, format: str) -> Any:
            assert format == "rgb24"
            return picture(3)

    assert np.array_equal(np.asarray(_upright(Frame())), np.rot90(picture(3), quarters))


def test_damaged_video_files(av: Any, files: dict[str, Path]) -> None:
    whole = files["avi"].read_bytes()
    with pytest.raises(InputError, match=r"holds \d+ of its 23 frames"):
        open_clip(whole[: int(len(whole) * 0.9)])
    with pytest.raises(InputError, match="not a readable video"):
        open_clip(files["mp4"].read_bytes()[:-400])
    scratched = bytearray(files["mp4"].read_bytes())
    scratched[2000:4000] = bytes(2000)
    with pytest.raises(InputError):
        taken(open_clip(bytes(scratched)), list(range(23)))


def test_playlists_open_no_other_file(av: Any, files: dict[str, Path], tmp_path: Path) -> None:
    lists = {"list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{files['mp4']}\n#EXT-X-ENDLIST\n",
             "list.ffconcat": f"ffconcat version 1.0\nfile {files['mp4']}\n"}  # fmt: skip
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="not a readable video"):
            open_clip(tmp_path / name)


def test_sound_is_no_video(av: Any) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputError, match="no video stream"):
        open_clip(buffer.getvalue())


def test_limits(files: dict[str, Path]) -> None:
    for source in (files["mp4"], animation("GIF", 23, 100), pictures(23)):
        with pytest.raises(InputError, match="23 frames, more than the limit of 22"):
            open_clip(source, VideoLimits(max_source_frames=22))
        with pytest.raises(InputError, match="pixels, more than the limit of 100"):
            open_clip(source, VideoLimits(frame=ImageLimits(max_decoded_pixels=100))).size()
    for source in (files["mp4"], animation("GIF", 23, 100)):
        with pytest.raises(InputError, match="141312 pixels in 23 frames"):
            open_clip(source, VideoLimits(max_source_pixels=141_311))
        with pytest.raises(InputError, match="bytes; expected a video file of at most 99"):
            open_clip(source, VideoLimits(max_file_bytes=99))
    with pytest.raises(InputError):
        VideoLimits(max_source_frames=0)


def _still() -> bytes:
    buffer = io.BytesIO()
    pictures(1)[0].save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "0 bytes"),
        ("no/such/clip.gif", "cannot be read"),
        ("nul\0byte", "cannot be read"),
        (".", "cannot be read"),
        ("https://example.com/a.mp4", "download"),
        (7, "expected a path"),
        ([], "no frames"),
        ([7], "an image is a int"),
        ([np.zeros((4, 4, 2), np.uint8)], "expected uint8"),
        ([np.zeros((4, 4, 3))], "expected uint8"),
        (np.zeros((4, 4, 3), np.uint8), "frames, height"),
        ([*pictures(1), Image.new("RGB", (5, 5))], "one size"),
        ([b"hello"], "known format"),
        (_still(), "still image"),
        (animation("GIF", 9, 50)[:900], "readable image|cut off"),
        (animation("WEBP", 9, 50)[:300], "readable|known"),
        (animation("GIF", 9, 50)[:11], "readable|known|still"),
    ],
)
def test_unusable_videos(source: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        all_of(open_clip(source))
    assert "\n" not in str(caught.value)


def test_a_video_that_ends_early() -> None:
    clip = Clip("it", 3, None, lambda indices: iter(pictures(2)))
    with pytest.raises(InputError, match="ends early, 3 frames"):
        list(clip.frames(np.arange(3)))


def test_just_as_many_frames_as_allowed() -> None:
    assert open_clip(pictures(3), VideoLimits(max_source_frames=3)).total == 3
    assert open_clip(animation("GIF", 3, 100), VideoLimits(max_source_pixels=3 * WIDTH * HEIGHT)).total == 3


def test_what_is_no_video_at_all(av: Any) -> None:
    for data in (b"hello", bytes(5000), b"<html>" * 100):
        with pytest.raises(InputError, match="not a readable video"):
            open_clip(data)


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    code = "from lensmith.runtimes.media.frames import open_clip; open_clip(sys.argv[1])"
    ran = run_without(("av",), code, path, PYTHONPATH=str(ROOT / ".src"))
    assert "lensmith[video]" in ran.stderr.splitlines()[-1]


def test_frames_are_decoded_one_at_a_time() -> None:
    """A list may be longer than memory holds: each frame is opened when its turn comes."""
    opened: list[int] = []

    class Lazy(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            opened.append(index)
            return picture(index)

        def __len__(self) -> int:
            return 50

    frames: Iterator[Image.Image] = open_clip(Lazy()).frames(np.arange(50))
    next(frames)
    next(frames)
    assert opened == [0, 1]
