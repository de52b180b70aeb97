"""Vision encoders as llama.cpp knows them (the "mmproj" file): metadata and tensor names of its `clip` architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import gguf
from gguf import MODEL_ARCH, MODEL_TENSOR

from ....targets.errors import InputError
from ...checkpoint.lazy_tensors import LazyTensor
from ...graphs.graph_files import Prefixes
from ...spec import ClipSpec, ModelSpec, VisionSpec
from .tensors import Tensor, mapped, plain

SUFFIXES = (".weight", ".bias")
EXACT_MERGE, EXACT_TEMPORAL = 2, 2  # what llama.cpp's graph of the Qwen encoders is written for


class VisionFile(Protocol):
    """The vision encoder file of a family."""

    def tensors(self, sources: list[LazyTensor]) -> Iterator[Tensor]:
        """All tensors of the file, in the order of their sources."""
        ...

    def metadata(self) -> dict[str, Any]:
        """The constants of the encoder, by key."""
        ...


@dataclass(frozen=True)
class QwenVision:
    """The encoder of Qwen3-VL and Qwen3.5, projector `qwen3vl_merger`."""

    spec: VisionSpec
    prefixes: Prefixes
    projection: int  # width of the decoder
    image: dict[str, Any]  # section of the manifest
    limits: dict[str, Any]

    def __post_init__(self) -> None:
        found = self.spec.merge_size, self.spec.temporal_patch_size
        if found != (EXACT_MERGE, EXACT_TEMPORAL):
            raise InputError(
                f"spatial_merge_size and temporal_patch_size are {found}; llama.cpp's encoder is written for "
                f"{(EXACT_MERGE, EXACT_TEMPORAL)}, export with --format onnx"
            )

    def tensors(self, sources: list[LazyTensor]) -> Iterator[Tensor]:
        names = gguf.get_tensor_name_map(MODEL_ARCH.MMPROJ, self.spec.depth)
        for source in sources:
            inner = source.name.removeprefix(f"{self.prefixes.vision}.")
            if inner == source.name:
                continue
            if inner == "patch_embed.proj.weight":  # a convolution over two frames: one tensor for each of them
                yield mapped("v.patch_embd.weight", source, lambda rows: rows[:, :, 0])
                yield mapped("v.patch_embd.weight.1", source, lambda rows: rows[:, :, 1])
            else:
                yield plain(self._name(inner, names), source)

    def _name(self, inner: str, names: gguf.TensorNameMap) -> str:
        part, _, rest = inner.partition(".")
        if part == "deepstack_merger_list":
            index, _, rest = rest.partition(".")
            return _deepstack_name(self.spec.deepstack_layers[int(index)], rest)
        if part == "merger":
            return MERGER[rest.rpartition(".")[0]] + "." + rest.rpartition(".")[2]
        found = names.get_name(f"visual.{inner}", try_suffixes=SUFFIXES)
        if found is None:
            raise InputError(f"llama.cpp has no place for the tensor {inner!r} of the vision encoder")
        return found

    def metadata(self) -> dict[str, Any]:
        spec = self.spec
        side = round(spec.positions**0.5) * spec.patch_size  # the image that the position table was made for
        return {
            **_common(spec, self.projection, side, self.image),
            "clip.projector_type": "qwen3vl_merger",
            "clip.use_gelu": True,
            "clip.vision.spatial_merge_size": spec.merge_size,
            "clip.vision.is_deepstack_layers": [layer in spec.deepstack_layers for layer in range(spec.depth)],
            "clip.vision.image_min_pixels": self.limits["min_pixels"],
            "clip.vision.image_max_pixels": self.limits["max_pixels"],
        }


MERGER = {
    "norm": gguf.TENSOR_NAMES[MODEL_TENSOR.V_POST_NORM],
    "linear_fc1": "mm.0",
    "linear_fc2": "mm.2",
}
DEEPSTACK = {
    "norm": MODEL_TENSOR.V_DS_NORM,
    "linear_fc1": MODEL_TENSOR.V_DS_FC1,
    "linear_fc2": MODEL_TENSOR.V_DS_FC2,
}


def _deepstack_name(layer: int, rest: str) -> str:
    """Taps are named by the layer that they follow."""
    part, _, suffix = rest.rpartition(".")
    return f"{gguf.TENSOR_NAMES[DEEPSTACK[part]].format(bid=layer)}.{suffix}"


@dataclass(frozen=True)
class ClipVision:
    """The CLIP tower of LLaVA behind a projector of two layers, projector `mlp`.

    The layers behind the one whose states are taken are not in the file: the states are those of the last layer that
    is, which `feature_layer` says.
    """

    spec: ClipSpec
    prefixes: Prefixes
    image: dict[str, Any]

    def __post_init__(self) -> None:
        spec = self.spec
        # llama.cpp's tower is quick_gelu unless it is the tanh approximation, its projector always the latter.
        allowed = spec.activation in CLIP_ACTIVATIONS and spec.projector_activation in ("gelu", "gelu_tanh")
        if not allowed or len(spec.feature_depths) > 1 or spec.keep_class or not spec.projector_bias:
            raise InputError(
                f"the vision tower has activation {spec.activation!r}, projector activation "
                f"{spec.projector_activation!r}, states of layers {list(spec.feature_depths)} and "
                f"{'a' if spec.keep_class else 'no'} class token; llama.cpp has one layer without it, behind "
                "quick_gelu or gelu, and a projector with gelu and biases: export it with --format onnx"
            )

    def tensors(self, sources: list[LazyTensor]) -> Iterator[Tensor]:
        names = gguf.get_tensor_name_map(MODEL_ARCH.MMPROJ, self.spec.used_depth)
        for source in sources:
            for prefix, find in ((self.prefixes.vision, _tower_name), (self.prefixes.projector, _projector_name)):
                inner = source.name.removeprefix(f"{prefix}.")
                if inner != source.name:
                    yield plain(find(inner, names), source)

    def metadata(self) -> dict[str, Any]:
        spec = self.spec
        return {
            **_common(spec, spec.out_hidden, spec.image_size, self.image),
            "clip.vision.block_count": spec.used_depth,
            "clip.vision.feature_layer": [spec.used_depth],
            "clip.projector_type": "mlp",
            "clip.use_gelu": CLIP_ACTIVATIONS[spec.activation],
        }


CLIP_ACTIVATIONS = {"quick_gelu": False, "gelu_tanh": True, "gelu": True}  # whether llama.cpp's gelu stands for it
PROJECTOR = {"linear_1": "mm.0", "linear_2": "mm.2"}


def _tower_name(inner: str, names: gguf.TensorNameMap) -> str:
    found = names.get_name(f"vision_tower.vision_model.{inner}", try_suffixes=SUFFIXES)
    if found is None:
        raise InputError(f"llama.cpp has no place for the tensor {inner!r} of the vision tower")
    return found


def _projector_name(inner: str, names: gguf.TensorNameMap) -> str:
    part, _, suffix = inner.rpartition(".")
    return f"{PROJECTOR[part]}.{suffix}"


def _common(spec: VisionSpec | ClipSpec, projection: int, side: int, image: dict[str, Any]) -> dict[str, Any]:
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


def vision_file(spec: ModelSpec, prefixes: Prefixes, sections: dict[str, dict[str, Any]]) -> VisionFile:
    """The vision encoder file of a model; InputError for one that llama.cpp cannot run."""
    if isinstance(spec.vision, ClipSpec):
        return ClipVision(spec.vision, prefixes, sections["image"])
    assert spec.vision is not None
    return QwenVision(spec.vision, prefixes, spec.decoder.hidden, sections["image"], sections["limits"])
