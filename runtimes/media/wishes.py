"""What a part of a conversation, or a whole call, wishes for its images and videos, as qwen-vl-utils writes it.

The formulas for videos are those of `fetch_video` and `calculate_video_frame_range` there: pixels count for each frame,
`total_pixels` for each two of them. The bundle's own limits hold besides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ...targets.errors import InputError
from ..values import finite, number, whole
from .frames import Clip
from .pixels import PixelSpec
from .sizing import Size, check_area, grown, shrunk, whole_tokens
from .video import UNKNOWN_RATE, Indices, VideoSpec, check_frames, check_number

OF_IMAGES, OF_VIDEOS = ("min_pixels", "max_pixels"), ("max_video_pixels",)
MEDIA_LIMITS = (*OF_IMAGES, *OF_VIDEOS)  # of a whole call
RESIZED = ("resized_height", "resized_width")


def check_limits(limits: Mapping[str, Any], *, images: int, videos: int) -> None:
    """Raise InputError for limits of a call that are no areas, or hold for none of its media, though it has some."""
    for name, limit in limits.items():
        if limit is not None:
            whole(name, limit, 1)
    for names, count, others, hint in (
        (OF_IMAGES, images, videos, "give max_video_pixels"),
        (OF_VIDEOS, videos, images, "give max_pixels"),
    ):
        unread = next((name for name in names if limits.get(name) is not None), None)
        if unread is not None and others and not count:
            raise InputError(f"{unread} has no effect on the media of this conversation; {hint}")


def image_wishes(spec: PixelSpec, part: Mapping[str, Any], limits: Mapping[str, Any]) -> PixelSpec:
    """How to prepare one image: as its part says, or else as the call does."""
    own = {name: part[name] for name in OF_IMAGES if name in part}
    size = _resized(part, own)
    if size is None:
        given = own or {name: limits[name] for name in OF_IMAGES if limits.get(name) is not None}
        return spec.with_pixels(**given) if given else spec
    return spec.of_size(size)


def video_wishes(spec: VideoSpec, part: Mapping[str, Any], limits: Mapping[str, Any]) -> VideoSpec:
    """How to sample and cut one video: with its part's numbers of frames, and with the call's pixels."""
    given = {name: whole(f"{name} of a video", part[name], 1) for name in ("min_frames", "max_frames") if name in part}
    if given.get("max_frames", 0) > spec.max_frames:
        raise InputError(f"max_frames {given['max_frames']} of a video is above the {spec.max_frames} of this bundle")
    least = given.get("min_frames", min(spec.min_frames, given.get("max_frames", spec.min_frames)))
    most = given.get("max_frames", spec.max_frames)
    if least > most:
        raise InputError(f"a video is asked for at least {least} and at most {most} frames; exchange or widen them")
    chosen = limits.get("max_video_pixels")
    limited = spec if chosen is None else spec.with_pixels(chosen)
    return dataclasses.replace(limited, min_frames=least, max_frames=most)


def wished_size(frames: int, height: int, width: int, spec: VideoSpec, part: Mapping[str, Any]) -> Size:
    """The size (height, width) of the `frames` of a video, as its part says; raises InputError where that cannot be."""
    check_frames(frames, spec)
    patches, step = spec.patches, spec.patches.temporal_patch_size
    limits = {name: finite(f"{name} of a video", part[name]) for name in (*OF_IMAGES, "total_pixels") if name in part}
    size = _resized(part, limits)
    if size is not None:
        chosen = whole_tokens(size, patches.factor)
        counted = math.ceil(frames / step) * step if spec.shared else 1
        within = patches.max_pixels if spec.shared else math.floor(spec.frame_range(frames)[1])
        check_area(counted * prod(chosen), 1, within,
                    f"a video of {frames} frames of {chosen[0]} x {chosen[1]} pixels")  # fmt: skip
        return chosen
    if not limits:
        return spec.size(frames, height, width)
    low, high = spec.frame_range(frames)
    shares = [limits.get("max_pixels", math.inf), limits.get("total_pixels", math.inf) / frames * step]
    most = min(*shares, high)
    least = limits.get("min_pixels", min(most, low))
    if least > most or most < patches.factor**2:
        raise InputError(f"each frame of the video is asked for {least:.0f} to {most:.0f} pixels, and one image token "
                         f"takes {patches.factor**2}; widen the range or take fewer frames")  # fmt: skip
    size = whole_tokens((height, width), patches.factor)
    if prod(size) > most:
        return shrunk(height, width, patches.factor, most)
    return grown(height, width, patches.factor, least) if prod(size) < least else size


def frame_range(
    total: int, rate: float | None, times: tuple[float, ...] | None, part: Mapping[str, Any]
) -> tuple[int, int]:
    """The first frame and the number of frames between `video_start` and `video_end`, in seconds, of all `total`."""
    given = {
        name: number(f"{name} of a video", part[name], 0, math.inf)
        for name in ("video_start", "video_end")
        if name in part
    }
    if not given:
        return 0, total
    if rate is None:
        raise InputError("video_start and video_end are seconds, but the frames come without a frame_rate; name it")
    start, end = given.get("video_start", 0.0), given.get("video_end", math.inf)
    if times is not None:
        inside = [index for index, second in enumerate(times) if start <= second <= end]
        first, last = (inside[0], inside[-1]) if inside else (0, -1)
    else:
        first = math.ceil(min(start, total / rate) * rate)
        last = min(math.floor(min(end, total / rate) * rate), total - 1)
    if first >= last:
        raise InputError(f"the video has {total / rate:.2f} seconds and fewer than two frames from video_start "
                         f"{start:g} to video_end {end:g}; widen the range")  # fmt: skip
    return first, last - first + 1


def sample_clip(clip: Clip, part: Mapping[str, Any], spec: VideoSpec) -> tuple[Indices, tuple[float, ...]]:
    """Indices of the frames to take, and the seconds of each temporal patch.

    A part of type video may wish for `fps` within `min_frames` and `max_frames`, for `num_frames` or, as qwen-vl-utils
    writes it, for an even `nframes`; name the `frame_rate` of the video; and begin and end at `video_start` and
    `video_end`, in seconds. A list of frames is taken whole without a wish, as HF does with `do_sample_frames=False`.
    """
    step = spec.patches.temporal_patch_size
    fps, given_rate = (finite(f"{key} of a video", part[key]) if key in part else None for key in ("fps", "frame_rate"))
    known_rate = given_rate or clip.rate
    first, total = frame_range(clip.total, known_rate, clip.times if given_rate is None else None, part)
    # How many frames a part asks for by number.
    given = {key: whole(f"{key} of a video", part[key], 1) for key in ("num_frames", "nframes") if key in part}
    if len(given) > 1:
        raise InputError("a video is asked for num_frames and for nframes; give one of the two")
    if (wanted := given.get("nframes")) is not None and (wanted % step or wanted > total):
        raise InputError(f"nframes of a video is {wanted}; expected a multiple of {step} up to its {total} frames "
                         "(num_frames takes any number)")  # fmt: skip
    num_frames = next(iter(given.values()), None)
    bounds = [key for key in ("min_frames", "max_frames") if key in part]
    if bounds and (num_frames is not None or (clip.chosen and fps is None)):
        raise InputError(f"{bounds[0]} of a video has no effect without fps; give fps with it, or leave it out")
    rate = known_rate or UNKNOWN_RATE
    if clip.chosen and fps is None and num_frames is None:
        indices = np.arange(check_number(total, spec)) + first
    else:
        indices = spec.sample(total, rate, fps=fps, num_frames=num_frames) + first
    return indices, spec.seconds(indices, total, rate, clip.times if given_rate is None else None)


def _resized(part: Mapping[str, Any], limits: Mapping[str, Any]) -> Size | None:
    """The size that a part names; None where it names none."""
    given = {name: whole(name, part[name], 1, 1 << 20) for name in RESIZED if name in part}
    if not given:
        return None
    if len(given) == 1 or limits:
        raise InputError(f"a part has {', '.join((*given, *limits))}; expected both resized_height and resized_width, "
                         "and no other limit of pixels")  # fmt: skip
    return given["resized_height"], given["resized_width"]
