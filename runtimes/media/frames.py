"""Where the frames of a video come from: lists of images, animated images, and video files through PyAV.

A `Clip` knows how many frames there are and decodes them when it is asked for them, one at a time. No network
connection is opened: files are read as bytes, and PyAV gets formats that hold their content themselves.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...targets.errors import InputError
from ..storage.reading import read_limited, sized
from ..values import whole
from .image_files import ImageLimits, check_header, onto_white, open_image, read_bytes
from .picture_formats import MARKED, decoded, identify
from .sources import ImageSource, opened_source
from .video import Indices

VideoSource: TypeAlias = "ImageSource | Sequence[ImageSource]"
"""A video: a file as those of images are given, an animated image, a list of frames of one size, or an array uint8
[frames, height, width, 3]."""
MAX_OPENED_BYTES = 1 << 28  # of a file that comes opened, since it is read into memory
DEFAULT_DELAY_MS = 100  # of frames that name none, as browsers do


@dataclass(frozen=True)
class VideoLimits:
    """What a video may cost before it is decoded; what has more is refused with an InputError.

    `max_source_frames` of the file, `max_source_pixels` in all of them together, `max_file_bytes` of the file. `frame`
    limits single frames, and its `max_file_bytes` holds for animated images. Raises InputError for limits below 1.
    """

    max_source_frames: int = 1 << 18  # more than two hours at 30 a second; all up to the last one taken are decoded
    max_source_pixels: int = 1 << 39  # of all frames: more than two hours at 1920 x 1080 and 30 a second
    max_file_bytes: int = 1 << 33
    frame: ImageLimits = field(default_factory=ImageLimits)

    def __post_init__(self) -> None:
        for name in ("max_source_frames", "max_source_pixels", "max_file_bytes"):
            whole(f"video limit {name}", getattr(self, name), 1)
        check_limit_objects(self.frame, None)


@dataclass(frozen=True)
class Clip:
    """A video whose frames are not decoded yet."""

    name: str  # for messages
    total: int  # frames
    rate: float | None  # frames a second, None where unknown
    read: Callable[[Indices], Iterator[Image.Image]]  # RGB frames at rising indices
    times: tuple[float, ...] | None = None  # seconds at which each frame begins, where their durations differ
    chosen: bool = False  # whether someone picked the frames already, so that all are taken

    def frames(self, indices: Indices) -> Iterator[Image.Image]:
        """RGB frames of one size at `indices`, which may repeat but must not fall; InputError where that fails."""
        size, missing = None, len(indices)
        for frame in self.read(indices):
            size = size or frame.size
            missing -= 1
            if frame.size != size:
                raise InputError(f"{self.name} has frames of {size[0]} x {size[1]} and of {frame.width} x "
                                 f"{frame.height} pixels; scale them to one size")  # fmt: skip
            yield frame
        if missing:
            raise InputError(f"{self.name} ends early, {self.total} frames were expected; is the file cut off?")

    def size(self) -> tuple[int, int]:
        """Width and height of the frames, by decoding the first."""
        return next(self.frames(np.zeros(1, np.int64))).size


def open_clip(source: VideoSource, limits: VideoLimits | None = None) -> Clip:
    """Open a list of frames (what `open_image` takes), an array of them, an animated image or a video file.

    Files are given as those of images are: by path or URL, as bytes or opened. Raises InputError for what is no video,
    has no frames or is over a limit, and MissingExtra for a video file without PyAV.
    """
    limits = limits or VideoLimits()
    if isinstance(source, list | tuple | np.ndarray):
        if isinstance(source, np.ndarray) and source.ndim != 4:
            raise InputError(f"a video is an array {list(source.shape)}; expected [frames, height, width, 3]")
        check_total("the list of frames", len(source), 1, limits)
        return Clip("the list of frames", len(source), None, partial(_listed, source, limits.frame), chosen=True)
    source = opened_source(source, "a video", min(limits.max_file_bytes, MAX_OPENED_BYTES))
    if isinstance(source, Image.Image):
        raise InputError("a video is one image object; expected a file or a list of frames")
    name = "the video data" if isinstance(source, bytes) else str(source)[:200]
    file = _in_memory(name, source, limits)
    if _is_image(name, file):
        return _animation(name, read_bytes(file, limits.frame)[1], limits)
    from .video_files import open_file  # which builds on this file

    return open_file(name, file, limits)


def check_limit_objects(images: ImageLimits | None, videos: VideoLimits | None) -> None:
    """Raise InputError for limits that are something else."""
    for name, value, kind in (("image_limits", images, ImageLimits), ("video_limits", videos, VideoLimits)):
        if not isinstance(value, kind | None):
            raise InputError(f"{name} is a {type(value).__name__}; expected {kind.__name__}")


def check_total(name: str, total: int, pixels: int, limits: VideoLimits) -> None:
    """Raise InputError for a video of `total` frames with `pixels` each that has none, or more than the limits."""
    if total < 1:
        raise InputError(f"{name} has no frames; expected a video")
    if total > limits.max_source_frames:
        raise InputError(
            f"{name} has {total} frames, more than the limit of {limits.max_source_frames}; cut it shorter"
        )
    if total * pixels > limits.max_source_pixels:
        most = limits.max_source_pixels
        raise InputError(f"{name} has {total * pixels} pixels in {total} frames, more than the limit of {most}; "
                         "cut it shorter or scale it down")  # fmt: skip


def _in_memory(name: str, source: Path | bytes, limits: VideoLimits) -> Path | bytes:
    """A file of a size within the limit as it is, and what has no size (a pipe) as its bytes."""
    try:
        size = len(source) if isinstance(source, bytes) else sized(source)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} cannot be read ({reason}); expected the path of a video file") from None
    if size is None:
        assert isinstance(source, Path)
        source = read_limited(source, limits.max_file_bytes, "the path of a video file")
        size = len(source)
    if not 0 < size <= limits.max_file_bytes:
        raise InputError(f"{name} has {size} bytes; expected a video file of at most {limits.max_file_bytes}")
    return source


def _is_image(name: str, source: Path | bytes) -> bool:
    """Whether Pillow knows the format of a file, by its header."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            identify(file, MARKED)
    except UnidentifiedImageError:
        return False
    except OSError as error:
        if error.strerror is None:  # of Pillow, not of the system
            return True
        raise InputError(f"{name} cannot be read ({error.strerror}); expected the path of a video file") from None
    except Exception:  # a damaged header raises what it likes
        return True
    return True


def _listed(frames: Any, limits: ImageLimits, indices: Indices) -> Iterator[Image.Image]:
    for index in indices:
        yield open_image(frames[int(index)], limits)


def _animation(name: str, data: bytes, limits: VideoLimits) -> Clip:
    """An animated image. One pass over all frames reads how long each is shown."""
    image = decoded(name, partial(identify, data))
    check_header(image, name, limits.frame)
    total = decoded(name, lambda: int(getattr(image, "n_frames", 1)))
    if total < 2:
        raise InputError(f"{name} is a still image; send it as an image")
    check_total(name, total, image.width * image.height, limits)
    delays = [decoded(name, partial(_delay_ms, image, index)) for index in range(total)]
    starts = np.cumsum([0, *delays[:-1]]) / 1000
    times = None if len(set(delays)) == 1 else tuple(starts.tolist())
    return Clip(name, total, 1000 * total / sum(delays), partial(_animated, name, data), times)


def _delay_ms(image: Image.Image, index: int) -> float:
    image.seek(index)
    image.load()  # some formats learn it only now
    return float(image.info.get("duration") or DEFAULT_DELAY_MS)


def _animated(name: str, data: bytes, indices: Indices) -> Iterator[Image.Image]:
    image = decoded(name, partial(identify, data))
    for index in indices:
        yield decoded(name, partial(_seen, image, int(index)))


def _seen(image: Image.Image, index: int) -> Image.Image:
    image.seek(index)
    return onto_white(image.copy())  # the next frame takes its place
