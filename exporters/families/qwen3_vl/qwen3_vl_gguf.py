"""GGUF files of Qwen3-VL: its decoder, and the vision encoder that Qwen3.5 has, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import MODEL_ARCH, MODEL_TENSOR

from ....targets.errors import InputError
from ...checkpoint.lazy_tensors import LazyTensor
from ...formats.gguf.gguf_decoder import DecoderFile
from ...formats.gguf.gguf_family import GgufFamily
from ...formats.gguf.gguf_vision import by_frame, common_metadata, name_in_file
from ...formats.gguf.tensors import Tensor, plain
from ...graphs.graph_files import Prefixes
from ...spec import QwenModelSpec
from ...tower_specs import VisionSpec

EXACT_MERGE, EXACT_TEMPORAL = 2, 2  # what llama.cpp's graph of the Qwen encoders is written for
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


class Qwen3VlDecoder(DecoderFile):
    """The decoder, which takes DeepStack's features."""

    def special(self) -> dict[str, Any]:
        """Hyperparameters that other architectures do not have."""
        return {"n_deepstack_layers": self.spec.taps}


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
        """All tensors of the file, in the order of their sources."""
        names = gguf.get_tensor_name_map(MODEL_ARCH.MMPROJ, self.spec.depth)
        for source in sources:
            inner = source.name.removeprefix(f"{self.prefixes.vision}.")
            if inner == source.name:
                continue
            if inner == "patch_embed.proj.weight":
                yield from by_frame(source)
            else:
                yield plain(self._name(inner, names), source)

    def _name(self, inner: str, names: gguf.TensorNameMap) -> str:
        part, _, rest = inner.partition(".")
        if part == "deepstack_merger_list":
            index, _, rest = rest.partition(".")
            return _deepstack_name(self.spec.deepstack_layers[int(index)], rest)
        if part == "merger":
            return MERGER[rest.rpartition(".")[0]] + "." + rest.rpartition(".")[2]
        return name_in_file(inner, names)

    def metadata(self) -> dict[str, Any]:
        """The constants of the encoder, by key."""
        spec = self.spec
        side = round(spec.positions**0.5) * spec.patch_size  # the image that the position table was made for
        return {
            **common_metadata(spec, self.projection, side, self.image),
            "clip.projector_type": "qwen3vl_merger",
            "clip.use_gelu": True,
            "clip.vision.spatial_merge_size": spec.merge_size,
            "clip.vision.is_deepstack_layers": [layer in spec.deepstack_layers for layer in range(spec.depth)],
            "clip.vision.image_min_pixels": self.limits["min_pixels"],
            "clip.vision.image_max_pixels": self.limits["max_pixels"],
        }


def _deepstack_name(layer: int, rest: str) -> str:
    """Taps are named by the layer that they follow."""
    part, _, suffix = rest.rpartition(".")
    return f"{gguf.TENSOR_NAMES[DEEPSTACK[part]].format(bid=layer)}.{suffix}"


def vision_file(spec: QwenModelSpec, prefixes: Prefixes, sections: dict[str, dict[str, Any]]) -> QwenVision:
    """The vision encoder file of a model; InputError for one that llama.cpp cannot run."""
    return QwenVision(spec.vision, prefixes, spec.decoder.hidden, sections["image"], sections["limits"])


GGUF = GgufFamily(lambda spec, prefixes: Qwen3VlDecoder(spec, prefixes, MODEL_ARCH.QWEN3VL), vision_file)
