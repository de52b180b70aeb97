"""Images of one turn are read one ahead of the encoder: with the same features, errors and memory as in turn."""

from __future__ import annotations

import io
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lensmith.runtimes import Model, user_message
from lensmith.runtimes.engines.contract import ImageFeatures
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.media import image_files, pixels
from lensmith.runtimes.media import medium as planning
from lensmith.runtimes.media.frames import VideoLimits
from lensmith.runtimes.media.image_files import ImageLimits
from lensmith.runtimes.media.images import Grid, ImageSpec, Patches
from lensmith.runtimes.media.media_encoder import MediaEncoder
from lensmith.runtimes.media.video import VideoSpec
from lensmith.runtimes.process import look_ahead
from lensmith.runtimes.process.interrupt import Interrupt, Interrupted, heeding
from lensmith.runtimes.prompt.requests import EncodedImage
from lensmith.targets.errors import InputError
from PIL import ExifTags, Image

from tests.helpers.extras import load
from tests.helpers.forking import SECONDS
from tests.helpers.ladder import random_image
from tests.runtimes.process.test_look_ahead import running

SPEC = ImageSpec(min_pixels=1024, max_pixels=64_000)


def vision(patches: Patches, _: Grid) -> ImageFeatures:
    """Features that tell any pixel from another."""
    return ImageFeatures(patches.reshape(-1, 4 * patches.shape[1]).cumsum(1)[:, ::97].copy())


def encoder(threads: int | None = None, *, ahead: bool = True, engine: Any = vision) -> MediaEncoder:
    made = MediaEncoder(engine, SPEC, VideoSpec(SPEC), ImageLimits(), VideoLimits(), threads)
    made.ahead = ahead and made.ahead
    return made


def file(form: str, seed: int, size: tuple[int, int] = (96, 64), orientation: int = 1) -> bytes:
    buffer, tags = io.BytesIO(), Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form, **({"exif": tags} if orientation > 1 else {}))
    return buffer.getvalue()


def damaged(seed: int) -> bytes:
    """A PNG of whole chunks whose pixels cannot be unpacked."""
    data = bytearray(file("PNG", seed))
    place = data.index(b"IDAT") + 4
    data[place : place + 2] = b"\0\0"
    return bytes(data)


def conversation(*sources: Any) -> list[dict[str, Any]]:
    parts = [{"type": "video" if isinstance(each, list) else "image"} for each in sources]
    return [{"role": "user", "content": [{**part, part["type"]: each}
                                         for part, each in zip(parts, sources, strict=True)]}]  # fmt: skip


def encode(media: MediaEncoder, *sources: Any) -> Any:
    return media.encode(*media.open(conversation(*sources), Timings()), Timings())


POOL: list[Any] = [
    file("PNG", 1), file("JPEG", 2), file("JPEG", 3, (64, 128), orientation=6), file("WEBP", 4), file("TIFF", 5),
    file("TIFF", 6, (32, 32)), file("BMP", 7), random_image(64, 96), np.asarray(random_image(96, 64)),
    [random_image(64, 64), random_image(64, 96).resize((64, 64)), random_image(64, 64)],
]  # fmt: skip


def test_the_pool_has_every_way_of_reading() -> None:
    sizes = [encoder().open(conversation(source), Timings()) for source in POOL]
    assert [len(images) for images, _ in sizes] == [1] * 9 + [0]
    assert sizes[2][0][0].grid == (1, 4, 8)  # upright, 128 x 64


@given(
    turns=st.lists(st.lists(st.sampled_from(range(len(POOL))), max_size=6), min_size=1, max_size=3),
    threads=st.sampled_from([None, 1, 2, 3]),
    kept=st.sampled_from([0, 10_000, 1 << 30]),
)
def test_features_are_those_of_reading_in_turn(turns: list[list[int]], threads: int | None, kept: int) -> None:
    """Over turns that share pictures, some of which are dropped."""
    calls: list[list[bytes]] = []

    def counted(patches: Patches, grid: Grid) -> ImageFeatures:
        calls[-1].append(patches.tobytes())
        return vision(patches, grid)

    made = list[list[EncodedImage]]()
    for media in (encoder(threads, engine=counted), encoder(1, ahead=False, engine=counted)):
        media.most_bytes = kept
        calls.append([])
        made.append([])
        for turn in turns:
            images, videos = encode(media, *(POOL[index] for index in turn))
            media.trim(images)
            made[-1] += [*images, *(frame for video in videos for frame in video.frames)]
    assert calls[0] == calls[1]
    for ours, theirs in zip(*made, strict=True):
        assert (ours.key, ours.grid) == (theirs.key, theirs.grid)
        np.testing.assert_array_equal(ours.features.features, theirs.features.features)
    assert not running()


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("ahead", [False, True])
def test_damage_within_a_file_refuses_all(place: int, ahead: bool) -> None:
    encoded = list[int]()

    def counted(patches: Patches, grid: Grid) -> ImageFeatures:
        encoded.append(len(patches))
        return vision(patches, grid)

    sources = [file("JPEG", seed) for seed in range(4)]
    media = encoder(ahead=ahead, engine=counted)
    with pytest.raises(InputError, match=r"^the image data is not a readable image \(.+\); expected a whole JPEG"):
        encode(media, *sources[:place], damaged(9), *sources[place + 1 :])
    assert len(encoded) == place
    assert not running()
    assert len(encode(media, *sources)[0]) == 4
    assert len(encoded) == 4  # those before the damaged one are kept


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_file_that_is_cut_off_is_refused_before_anything_is_encoded(form: str, place: int) -> None:
    sources = [file("JPEG", seed) for seed in range(3)]
    sources[place] = file(form, 5)[:-900]
    with pytest.raises(InputError, match=r"^the image data is not a readable image"):
        encoder().open(conversation(*sources), Timings())


def test_a_header_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "header_size", lambda *_: (640, 480))
    with pytest.raises(InputError, match="holds a picture of another size than its header says; save it anew"):
        encode(encoder(), file("PNG", 1))


class Watched:
    """Counts the pictures of which some pixels are alive, decoded or as patches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded, self.threads, self.most = 0, set[str](), 0
        self.prepared, self.encoded = threading.Semaphore(0), 0
        self._pixels: list[tuple[int, weakref.ref[Any]]] = []
        decode, preprocess = image_files.decode_image, pixels.preprocess

        def decoded(*arguments: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            picture = decode(*arguments)
            self.decoded += 1
            self.note(picture)
            return picture

        def prepared(picture: Any, spec: Any) -> Any:
            patches, grid = preprocess(picture, spec)
            self.note(patches if patches.base is None else patches.base)
            self.prepared.release()
            return patches, grid

        monkeypatch.setattr(planning, "decode_image", decoded)
        monkeypatch.setattr(planning, "preprocess", prepared)

    @property
    def alive(self) -> int:
        """How many."""
        return len({number for number, pixels in self._pixels if pixels() is not None})

    def note(self, pixels: Any) -> None:
        self._pixels.append((self.decoded, weakref.ref(pixels)))
        self.most = max(self.most, self.alive)


COUNT = 6


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_pixels_of_two_pictures_at_most(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the one that is encoded and of the next, which is there before the first is done."""
    watched = Watched(monkeypatch)

    def waiting(patches: Patches, grid: Grid) -> ImageFeatures:
        watched.encoded += 1
        if watched.encoded < COUNT:
            assert watched.prepared.acquire(timeout=SECONDS)
        watched.most = max(watched.most, watched.alive)
        return vision(patches, grid)

    begun, others = look_ahead._Ahead._begun, list[int]()

    def begins(self: Any) -> Any:
        others.append(watched.alive)
        return begun(self)

    monkeypatch.setattr(look_ahead._Ahead, "_begun", begins)
    media = encoder(2, engine=waiting)
    opened = media.open(conversation(*(file(form, seed) for seed in range(COUNT))), Timings())
    assert (watched.decoded, watched.alive) == ((COUNT, 1) if form == "TIFF" else (0, 0))
    watched.decoded, watched.most = 2 * COUNT, 0  # numbers of their own
    taken = threading.Thread(target=watched.prepared.acquire)  # the first is read beside none
    taken.start()
    encoded, _ = media.encode(*opened, Timings())
    taken.join(SECONDS)
    assert len(encoded) == COUNT
    assert (watched.most, watched.alive) == (2, 0)
    assert others == [int(form == "TIFF"), *[1] * COUNT]  # when the next is begun
    assert not running()


def test_what_is_at_hand_or_there_twice_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    media = encoder(2)
    sources = [file("PNG", seed) for seed in range(4)]
    kept = encode(media, sources[1])[0][0]
    encoded, _ = encode(media, sources[0], sources[1], sources[0], sources[2], sources[1], sources[3], sources[2])
    assert watched.decoded == len(sources)
    assert encoded[1] is encoded[4] is kept
    assert encoded[0] is encoded[2]
    assert encoded[3] is encoded[6]
    assert len({image.key for image in encoded}) == 4


def test_no_thread_is_started_where_there_is_nothing_to_read_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, here = Watched(monkeypatch), threading.current_thread().name
    several = [file("PNG", seed) for seed in range(2)]
    encode(encoder(1), *several)
    encode(encoder(4), several[0])
    encode(encoder(4), several[0], several[0])
    assert watched.threads == {here}
    encode(encoder(4), *several)
    assert watched.threads == {here, "lensmith-ahead_0"}


@pytest.mark.parametrize("end", [Interrupted, KeyboardInterrupt])
def test_an_end_in_the_middle(end: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends, what was made is kept whole, and the next turn goes on from it."""
    interrupt, calls = Interrupt(), list[int]()

    def ended(patches: Patches, grid: Grid) -> ImageFeatures:
        calls.append(len(patches))
        if len(calls) == 2:
            if end is KeyboardInterrupt:
                raise end
            interrupt.stop()
        return vision(patches, grid)

    sources = [file("PNG", seed) for seed in range(4)]
    media = encoder(2, engine=ended)
    with heeding(interrupt), pytest.raises(end):
        encode(media, *sources)
    assert len(calls) == 2
    assert not running()
    assert not media._turn.locked()
    made = encode(media, *sources)[0]
    assert len(calls) == (5 if end is KeyboardInterrupt else 4)
    for image, same in zip(made, encode(encoder(ahead=False), *sources)[0], strict=True):
        np.testing.assert_array_equal(image.features.features, same.features.features)


@pytest.mark.parametrize(("ahead", "image_s", "vision_s"), [(False, 3, 30), (True, 1, 32)])
def test_timings_are_what_the_answer_waited(
    ahead: bool, image_s: int, vision_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that a reading moves by one second and an encoding by ten: what is read beside counts once."""
    clock, left, preprocess = [0.0], [3], pixels.preprocess
    read = threading.Semaphore(0)

    def reading(*arguments: Any) -> Any:
        clock[0] += 1
        made = preprocess(*arguments)
        read.release()
        return made

    def waiting(patches: Patches, grid: Grid) -> ImageFeatures:
        left[0] -= 1
        for _ in range((left[0] > 0) + (left[0] == 2) if ahead else 0):
            assert read.acquire(timeout=SECONDS)
        clock[0] += 10
        return vision(patches, grid)

    monkeypatch.setattr(planning, "preprocess", reading)
    monkeypatch.setattr("lensmith.runtimes.media.media_encoder.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    media, timings = encoder(2, ahead=ahead, engine=waiting), Timings()
    media.encode(*media.open(conversation(*(file("PNG", seed) for seed in range(3))), timings), timings)
    assert (timings.image_ms, timings.vision_ms) == (1000 * image_s, 1000 * vision_s)


@pytest.fixture(scope="module")
def models(tiny_bundle: Path) -> list[Model]:
    return [load(tiny_bundle, threads=threads, context=1024, min_pixels=1024) for threads in (1, 2)]


def test_answers_are_those_of_reading_in_turn(models: list[Model], tmp_path: Path) -> None:
    paths = [tmp_path / str(seed) for seed in range(4)]
    for seed, path in enumerate(paths):
        path.write_bytes(file("JPEG", seed, (64 + 32 * seed, 64), orientation=1 + 5 * (seed % 2)))
    found = []
    for model in models:
        for ahead in (False, True):
            model.forget()
            model.media.ahead = ahead
            answer = model.generate([user_message("What are these?", paths)], max_new_tokens=12)
            answer.read()
            found.append((answer.prompt_ids.tolist(), answer.ids, answer.text))
    assert found == [found[0]] * 4


def test_a_damaged_file_is_an_error_of_the_first_piece(models: list[Model]) -> None:
    model = models[1]
    answer = model.generate([user_message("?", [file("PNG", 1), damaged(2)])], max_new_tokens=2)
    with pytest.raises(InputError, match="not a readable image"):
        answer.read()
    assert (answer.finish_reason, answer.text, answer.ids) == ("failed", "", [])
    assert not model.conversations._used
    with pytest.raises(InputError, match="not a readable image"):
        model.generate([user_message("?", [file("PNG", 1), file("PNG", 2)[:-50]])])
