"""The settings of Arlow's image and video processors, and the sections of the manifest made of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from ....runtimes.media.clips import ClipSpec, clip_section
from ....runtimes.media.images import ImageSpec
from ....targets.errors import InputError
from ...checkpoint.folder import Checkpoint
from ...checkpoint.tokenizer_files import SourceTokenizer
from ..prompts import check_patches, image_constants, pixel_limits
from .arlow_spec import ArlowSpec

# What the classes assume where no file says otherwise. Sizes are areas in pixels: of an image, and of each frame.
COMMON = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": 0.5, "image_std": 0.5}
IMAGE = {**COMMON, "size": {"shortest_edge": 3136, "longest_edge": 1003520}}
VIDEO = {**COMMON, "size": {"shortest_edge": 131072, "longest_edge": 786432}}
SAMPLING = {"strategy": "sample_strategy", "num_frames": "num_frames", "fps": "fps", "max_frames": "max_frames",
            "max_tokens": "max_tokens_per_video"}  # fmt: skip

log = logging.getLogger(__name__)


def _settings(checkpoint: Checkpoint, kind: str) -> Mapping[str, Any]:
    """Those of the files; training leaves them out where they are the defaults of its classes."""
    found = {"images": checkpoint.preprocessor_config, "videos": checkpoint.video_preprocessor_config}[kind]
    if found is None:
        log.warning("%s has no settings for %s: taking the defaults of its class", checkpoint.path, kind)
    return found or {}


def image_spec(config: Mapping[str, Any]) -> ImageSpec:
    """Of a preprocessor_config.json, in which null is as good as nothing; InputError for unsupported settings."""
    if config.get("do_pan_and_scan"):
        raise InputError("preprocessor_config has do_pan_and_scan on, which is not supported; expected false")
    return ImageSpec.from_config({**IMAGE, **_given(config)})


def clip_spec(config: Mapping[str, Any]) -> ClipSpec:
    """Of a video_preprocessor_config.json; InputError for unsupported settings."""
    given = _given(config)
    sampling = {field: given[key] for field, key in SAMPLING.items() if key in given}
    if given.get("do_sample_frames", True) is False:
        sampling |= {"strategy": "uniform", "num_frames": None}
    return ClipSpec(ImageSpec.from_config({**VIDEO, **given}), **sampling)


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def sections(
    checkpoint: Checkpoint, _: SourceTokenizer, spec: ArlowSpec, max_pixels: int | None
) -> dict[str, dict[str, Any]]:
    """The sections of an encoder without a decoder: image, video, encoder and limits."""
    image, clip = image_spec(_settings(checkpoint, "images")), clip_spec(_settings(checkpoint, "videos"))
    for name, found in (("preprocessor_config", image), ("video_preprocessor_config", clip.image)):
        check_patches(f"{name}.json", found, spec)
    limits = pixel_limits(image, max_pixels)
    locality = {} if spec.locality is None else {"locality": dataclasses.asdict(spec.locality)}
    return {
        "image": image_constants(image),
        "video": clip_section(clip),
        "encoder": {"revision": spec.revision, **dataclasses.asdict(spec.conventions), **locality},
        "limits": {**limits, "context": spec.context},
    }
