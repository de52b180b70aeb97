"""Videos as Qwen2.5-VL takes them, to the bit as the Hugging Face video processor of Qwen2-VL (Qwen2VLVideoProcessor).

Frames are cut as those of Qwen3-VL; what differs is which are taken, that the pixel range is that of each frame, and
that the time is in the positions. Formulas are those of transformers 5.23,
models/qwen2_vl/video_processing_qwen2_vl.py and models/qwen2_5_vl/processing_qwen2_5_vl.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ...targets.errors import InputError
from ..bundle.input_sections import FrameVideos
from ..bundle.manifest import InputSections
from ..values import whole
from .images import CLIP_MEAN, CLIP_STD, ImageSpec, of_section, smart_resize
from .video import SAMPLING, Indices, VideoSpec, check_frames, check_number, wished_rate

# Of Qwen2VLVideoProcessor. It takes all frames unless it is told how many a second; qwen-vl-utils, with which the
# makers of the models prepare videos, takes two.
DEFAULTS: Mapping[str, Any] = {
    "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    "rescale_factor": 1 / 255, "fps": 2, "min_frames": 4, "max_frames": 768,
}  # fmt: skip


@dataclass(frozen=True)
class SpacedVideoSpec(VideoSpec):
    """How videos are sampled and cut: `patches.min_pixels` and `max_pixels` are areas of each frame."""

    shared: ClassVar[bool] = False

    tokens_per_second: int = 4  # positions in time
    total_pixels: int | None = None  # most of all frames together, where someone wishes for it

    @classmethod
    def from_processor(cls, config: Mapping[str, Any], tokens_per_second: int) -> SpacedVideoSpec:
        """Read the settings of a video processor, what they leave out as Qwen2VLVideoProcessor has it.

        Raises InputError for steps that this runtime does not do, and for values of the wrong kind.
        """
        for key, expected in (("num_frames", None), ("cap_pixels_per_frame", False)):
            if config.get(key) not in (expected, None):
                raise InputError(
                    f"video_preprocessor_config has {key} {config[key]!r}; expected {expected!r} or nothing"
                )
        given = {key: value for key, value in config.items() if value is not None or key not in ("size", *SAMPLING)}
        values = {**DEFAULTS, **given}
        sampling = {name: values[name] for name in SAMPLING}
        return cls(ImageSpec.from_config(values), **sampling, tokens_per_second=tokens_per_second)

    def with_pixels(self, max_pixels: int) -> SpacedVideoSpec:
        """The same spec with at most `max_pixels` in all frames."""
        return replace(self, total_pixels=whole("max_video_pixels", max_pixels, 1))

    @property
    def max_tokens(self) -> int:
        """Most video tokens of one temporal patch."""
        return self.patches.max_pixels // self.patches.factor**2

    def sample(self, total: int, rate: float, *, fps: float | None = None, num_frames: int | None = None) -> Indices:
        """As `Qwen2VLVideoProcessor.sample_frames`: whole temporal patches, evenly from the first frame on."""
        check_frames(total, self)
        step = self.patches.temporal_patch_size
        wished = wished_rate(self, fps, num_frames)
        if num_frames is None:
            most = min(self.max_frames, total) // step * step
            count = math.floor(min(max(total / rate * wished, self.min_frames), most) / step) * step
        else:
            count = round(check_number(num_frames, self) / step) * step
        if not step <= count <= total:
            raise InputError(f"a video of {total} frames is asked for {count} of them, in whole temporal patches of "
                             f"{step}; expected at least {step} and no more than there are")  # fmt: skip
        indices: Indices = np.arange(0, total, total / count).astype(np.float32).astype(np.int64)
        return indices

    def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """The size (height, width) that HF's `smart_resize` gives each frame; InputError where it has no token."""
        check_frames(frames, self)
        least, most = map(math.floor, self.frame_range(frames))
        if most < self.patches.factor**2:
            raise InputError(f"each of {frames} frames has at most {most} pixels, and one image token takes "
                             f"{self.patches.factor**2}; raise max_video_pixels or take fewer frames")  # fmt: skip
        return smart_resize(height, width, replace(self.patches, min_pixels=least, max_pixels=most))

    def frame_range(self, frames: int) -> tuple[float, float]:
        """The pixel range of each frame, within what a wish leaves of all pixels."""
        patches, step = self.patches, self.patches.temporal_patch_size
        total = math.inf if self.total_pixels is None else self.total_pixels / (math.ceil(frames / step) * step)
        most = min(patches.max_pixels, total)
        return min(patches.min_pixels, most), most

    def seconds(
        self, indices: Indices, total: int, rate: float, times: Sequence[float] | None = None
    ) -> tuple[float, ...]:
        """Seconds of each temporal patch behind the first, by how many of all `total` frames were taken."""
        step = self.patches.temporal_patch_size
        interval = step / (len(indices) / total * rate)
        return tuple(index * interval for index in range(-(-len(indices) // step)))


def video_spec(inputs: InputSections, max_pixels: int | None = None) -> VideoSpec | None:
    """How a manifest wants videos cut, with at most `max_pixels` in all frames; None for a model without videos.

    Raises InputError for max_pixels outside the range of the manifest.
    """
    section = inputs.video
    if not isinstance(section, FrameVideos):
        if max_pixels is not None:
            raise InputError("this bundle takes no videos; leave out max_video_pixels")
        return None
    patches = of_section(section, min_pixels=section.min_pixels, max_pixels=section.max_pixels)
    sampling = section.fps, section.min_frames, section.max_frames
    spaced = section.tokens_per_second
    spec = VideoSpec(patches, *sampling) if spaced is None else SpacedVideoSpec(patches, *sampling, spaced)
    return spec if max_pixels is None else spec.with_pixels(max_pixels)
