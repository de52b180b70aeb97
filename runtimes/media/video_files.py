"""Video files through PyAV (FFmpeg), which the extra `video` installs."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from PIL import Image

from ...targets.errors import InputError, MissingExtra
from ..process.cores import allowed
from ..process.interrupt import check
from .frames import Clip, VideoLimits, check_total
from .video import Indices

# Formats that hold their frames themselves; playlists (HLS, DASH, concat) would name other files and addresses.
FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,mpegvideo,m4v,h264,hevc,obu,ivf,mjpeg"

QUARTERS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def open_file(name: str, source: str | os.PathLike[str] | bytes, limits: VideoLimits) -> Clip:
    """The first video stream of a file. Its rate is the average one, as HF takes it.

    All packets are read and counted, without decoding them. Raises MissingExtra without PyAV, and InputError for what
    FFmpeg cannot read, a file that is cut off, and sizes over the limits. Formats for streaming (WebM, MPEG-TS) do not
    say how many frames they hold: cut off, they are shorter videos.
    """
    with _stream(name, source, limits) as (container, stream):
        rate, announced = stream.average_rate or stream.guessed_rate, stream.frames
        pixels = stream.codec_context.width * stream.codec_context.height
        packets = [packet.is_discard for packet in container.demux(stream) if packet.size]
    if announced > len(packets):
        _check_whole(name, source, limits, announced)
    total = packets.count(False)
    check_total(name, total, pixels, limits)
    return Clip(name, total, float(rate) if rate else None, partial(_frames, name, source, limits))


def _check_whole(name: str, source: str | os.PathLike[str] | bytes, limits: VideoLimits, announced: int) -> None:
    """All packets must be there, those too that an edit list leaves out: a video that was trimmed still has them."""
    with _stream(name, source, limits, ignore_editlist="1") as (container, stream):
        found = sum(1 for packet in container.demux(stream) if packet.size)
    if announced > found:
        raise InputError(f"{name} holds {found} of its {announced} frames; the file is cut off")


def _frames(
    name: str, source: str | os.PathLike[str] | bytes, limits: VideoLimits, indices: Indices
) -> Iterator[Image.Image]:
    """Decode from the beginning up to the last of `indices`, converting those alone. Heeds an interrupt."""
    wanted = iter(indices.tolist())
    index = next(wanted, None)
    with _stream(name, source, limits) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            check()
            if number == index:
                image = _upright(frame)
            while number == index:
                yield image
                index = next(wanted, None)
            if index is None:
                return


def _upright(frame: Any) -> Image.Image:
    """A frame in RGB, turned as the file says that players should turn it, in quarters.

    So does the reader that Hugging Face's video processors take by default (torchcodec, from 0.11 on).
    """
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    quarters = round(frame.rotation / 90) % 4  # counterclockwise
    return image.transpose(QUARTERS[quarters]) if quarters else image


@contextmanager
def _stream(
    name: str, source: str | os.PathLike[str] | bytes, limits: VideoLimits, **chosen: str
) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; every failure of FFmpeg is an InputError."""
    av = _import_av(name)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            options = {"format_whitelist": FORMATS, **chosen}
            with av.open(file, options=options, io_open=_refuse, metadata_errors="ignore") as container:
                yield container, _first_video(name, container, limits)
    except (av.error.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"{name} is not a readable video ({reason}); expected a whole video file") from None


def _first_video(name: str, container: Any, limits: VideoLimits) -> Any:
    if not container.streams.video:
        raise InputError(f"{name} has no video stream; expected a video file")
    stream = container.streams.video[0]
    pixels, most = stream.codec_context.width * stream.codec_context.height, limits.frame.max_decoded_pixels
    if pixels > most:
        raise InputError(f"the frames of {name} have {pixels} pixels, more than the limit of {most}; scale them down")
    stream.codec_context.options = {"max_pixels": str(most)}  # a stream may change its size on the way
    stream.thread_type, stream.codec_context.thread_count = "AUTO", allowed() or 0  # 0: one for each core
    return stream


def _refuse(*_: Any) -> NoReturn:
    raise PermissionError("a video may not open other files")


def _import_av(name: str) -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise MissingExtra(f"decoding {name}", "video") from error
