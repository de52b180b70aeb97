"""GGUF files of LLaVA: a Llama or Qwen3 decoder, and a CLIP tower behind a projector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import MODEL_ARCH

from ....targets.errors import InputError
from ...checkpoint.lazy_tensors import LazyTensor
from ...formats.gguf.gguf_family import GgufFamily
from ...formats.gguf.gguf_vision import SUFFIXES, common_metadata
from ...formats.gguf.tensors import Tensor, plain
from ...graphs.graph_files import Prefixes
from ...spec import ClipModelSpec
from ...tower_specs import ClipTowerSpec
from ..llama_files import decoder_file

CLIP_ACTIVATIONS = {"quick_gelu": False, "gelu_tanh": True, "gelu": True}  # whether llama.cpp's gelu stands for it
PROJECTOR = {"linear_1": "mm.0", "linear_2": "mm.2"}
# What it costs: README, "llama.cpp".
CLASS_TOKEN = (
    "stock llama.cpp confuses CLIP's class token with a patch (ggml-org/llama.cpp#25814) and answers fewer questions "
    "about pictures from mmproj.gguf than it should: use `lensmith run` until that is fixed"
)


@dataclass(frozen=True)
class ClipVision:
    """The CLIP tower of LLaVA behind a projector of two layers, projector `mlp`.

    The layers behind the one whose states are taken are not in the file: the states are those of the last layer that
    is, which `feature_layer` says.
    """

    spec: ClipTowerSpec
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
        """All tensors of the file, in the order of their sources."""
        names = gguf.get_tensor_name_map(MODEL_ARCH.MMPROJ, self.spec.used_depth)
        for source in sources:
            for prefix, find in ((self.prefixes.vision, _tower_name), (self.prefixes.projector, _projector_name)):
                inner = source.name.removeprefix(f"{prefix}.")
                if inner != source.name:
                    yield plain(find(inner, names), source)

    def metadata(self) -> dict[str, Any]:
        """The constants of the encoder, by key."""
        spec = self.spec
        return {
            **common_metadata(spec, spec.out_hidden, spec.image_size, self.image),
            "clip.vision.block_count": spec.used_depth,
            "clip.vision.feature_layer": [spec.used_depth],
            "clip.projector_type": "mlp",
            "clip.use_gelu": CLIP_ACTIVATIONS[spec.activation],
        }


def _tower_name(inner: str, names: gguf.TensorNameMap) -> str:
    found = names.get_name(f"vision_tower.vision_model.{inner}", try_suffixes=SUFFIXES)
    if found is None:
        raise InputError(f"llama.cpp has no place for the tensor {inner!r} of the vision tower")
    return found


def _projector_name(inner: str, names: gguf.TensorNameMap) -> str:
    part, _, suffix = inner.rpartition(".")
    return f"{PROJECTOR[part]}.{suffix}"


def vision_file(spec: ClipModelSpec, prefixes: Prefixes, sections: dict[str, dict[str, Any]]) -> ClipVision:
    """The vision encoder file of a model; InputError for one that llama.cpp cannot run."""
    return ClipVision(spec.vision, prefixes, sections["image"])


# llama.cpp's graph of CLIP towers lays the class token behind the patches while positions and the choice of rows take
# it for the first: every patch gets the position of its neighbour, and the model sees the class token in place of a
# patch (https://github.com/ggml-org/llama.cpp/issues/25814). The mmproj file is as it should be, for builds without it.
GGUF = GgufFamily(decoder_file, vision_file, encoder_besides=True, note=CLASS_TOKEN)
