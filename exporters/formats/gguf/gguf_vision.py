"""Vision encoders as llama.cpp knows them (the "mmproj" file): what its `clip` architecture says of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import gguf

from ....targets.errors import InputError
from ...checkpoint.lazy_tensors import LazyTensor
from .tensors import Tensor, mapped

SUFFIXES = (".weight", ".bias")


class VisionFile(Protocol):
    """The vision encoder file of a family."""

    def tensors(self, sources: list[LazyTensor]) -> Iterator[Tensor]:
        """All tensors of the file, in the order of their sources."""
        ...

    def metadata(self) -> dict[str, Any]:
        """The constants of the encoder, by key."""
        ...


class VisionSizes(Protocol):
    """What is asked of any vision encoder."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...


def common_metadata(spec: VisionSizes, projection: int, side: int, image: dict[str, Any]) -> dict[str, Any]:
    """Sizes and normalization; `side` is that of the image that positions were made for, in pixels.

    `projection` is the width of the decoder, `image` a section of the manifest.
    """
    return {
        "clip.has_vision_encoder": True,
        "clip.vision.projection_dim": projection,
        "clip.vision.image_size": side,
        "clip.vision.patch_size": spec.patch_size,
        "clip.vision.embedding_length": spec.hidden,
        "clip.vision.feed_forward_length": spec.intermediate,
        "clip.vision.block_count": spec.depth,
        "clip.vision.attention.head_count": spec.heads,
        "clip.vision.attention.layer_norm_epsilon": float(spec.norm_eps),
        "clip.vision.image_mean": [float(value) for value in image["mean"]],
        "clip.vision.image_std": [float(value) for value in image["std"]],
    }


def by_frame(source: LazyTensor) -> Iterator[Tensor]:
    """The patch projection of Qwen's encoders, a convolution over two frames, as one tensor for each of them."""
    yield mapped("v.patch_embd.weight", source, lambda rows: rows[:, :, 0])
    yield mapped("v.patch_embd.weight.1", source, lambda rows: rows[:, :, 1])


def name_in_file(inner: str, names: gguf.TensorNameMap) -> str:
    """llama.cpp's name of a tensor of Qwen's encoders; InputError where it has none."""
    found = names.get_name(f"visual.{inner}", try_suffixes=SUFFIXES)
    if found is None:
        raise InputError(f"llama.cpp has no place for the tensor {inner!r} of the vision encoder")
    return found
