"""From a bundle to the object that runs it: a model where it has a decoder, an encoder where it has none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...targets.errors import InputError
from ..bundle.opening import Bundle, open_bundle
from ..bundle.signature import Key
from ..media.frames import VideoLimits
from ..media.image_files import ImageLimits
from ..media.media_encoder import FEATURE_BYTES
from ..tuning.tuned_files import tuning_of
from ..tuning.tuning import USUAL
from ..values import truth
from .conversation_pool import CONVERSATIONS
from .encoder import Encoder
from .model import Model
from .prefix_cache import PREFIX_BYTES

OF_MODELS = {  # and their defaults
    "max_video_pixels": None,
    "video_limits": None,
    "conversations": CONVERSATIONS,
    "prefix_bytes": PREFIX_BYTES,
    "feature_bytes": FEATURE_BYTES,
    "cache_folder": None,
    "cache_bytes": None,
}


def load(
    path: str | Path,
    *,
    trusted_keys: Iterable[Key] | None = None,
    threads: int | None = None,
    context: int | None = None,
    device: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    max_video_pixels: int | None = None,
    image_limits: ImageLimits | None = None,
    video_limits: VideoLimits | None = None,
    conversations: int = CONVERSATIONS,
    prefix_bytes: int = PREFIX_BYTES,
    feature_bytes: int = FEATURE_BYTES,
    cache_folder: str | Path | None = None,
    cache_bytes: int | None = None,
    native: bool | None = None,
    profile: bool = False,
    tuned: bool = True,
) -> Model | Encoder:
    """Load a bundle folder: a Model that answers, or an Encoder where there is no decoder.

    - `trusted_keys`: public keys of Ed25519 (paths of PEM files or of 32 raw bytes, or their content); one of them must
      have signed the bundle, and every byte of it is compared with its hash.
    - `threads`: of computing; None means one for each core.
    - `context`: most tokens of prompt and answer (by default 8,192 at most), of an encoder most patches of one image.
    - `device`: "cpu" runs a bundle for CUDA without a GPU; None means what it was built for.
    - `min_pixels`, `max_pixels`: areas that images are enlarged or shrunk to; `max_video_pixels`: of all frames of a
      video together.
    - `image_limits`, `video_limits`: what is refused before it is decoded.
    - `conversations`: most answers that are open at once, 1 to 1,024.
    - `prefix_bytes`: memory for copies of what prompts and answers left in states, from which any conversation goes on
      that begins with the same tokens and images (by default 512 MB at most; 0: each goes on from itself alone).
    - `feature_bytes`: memory for the features of the latest images, which are found by the hash of their file (by
      default 256 MB at most, and what the latest conversation uses).
    - `cache_folder`: where copies of states and features outlive the process, in files that hold what was asked and
      said; those of the same bundle, engine and processor are taken. `cache_bytes`: most bytes of all files in it, of
      which the least used go first (by default 2 GB).
    - `native`: whether lensmith's own kernels compute; None means where there are some for this processor.
    - `tuned`: whether what `lensmith tune` measured for this bundle on this device is the default of `threads` and of
      drafts; False takes those of any device.
    - `profile`: write ONNX Runtime's profiles into the current folder.

    Raises InputError for what is no whole bundle, for options that it cannot obey, and for what none of the keys
    signed; MissingExtra where its engine, or what checks signatures, is not installed.
    """
    bundle = open_bundle(path, trusted_keys=trusted_keys)
    return open_loaded(
        bundle, threads=threads, context=context, device=device, min_pixels=min_pixels, max_pixels=max_pixels,
        max_video_pixels=max_video_pixels, image_limits=image_limits, video_limits=video_limits,
        conversations=conversations, prefix_bytes=prefix_bytes, feature_bytes=feature_bytes,
        cache_folder=cache_folder, cache_bytes=cache_bytes, native=native,
        profile=profile, tuning=tuning_of(bundle, native=native, device=device) if truth("tuned", tuned) else USUAL,
    )  # fmt: skip


def open_loaded(bundle: Bundle, **options: Any) -> Model | Encoder:
    """As `load`, of a bundle that is open already."""
    if answers(bundle):
        return Model(bundle, **options)
    for name, usual in OF_MODELS.items():
        if options.pop(name, usual) != usual:
            raise InputError(f"{name} has no effect on the bundle {bundle.path}, which has no decoder; leave it out")
    return Encoder(bundle, **options)


def answers(bundle: Bundle) -> bool:
    """Whether a bundle has a decoder, so that it can be asked."""
    return bundle.manifest.role == "model"
