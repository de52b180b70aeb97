"""GGUF files of Qwen2.5-VL: its decoder, and its vision encoder with windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import MODEL_ARCH

from ....targets.errors import InputError
from ...checkpoint.lazy_tensors import LazyTensor
from ...formats.gguf.gguf_decoder import DecoderFile
from ...formats.gguf.gguf_family import GgufFamily
from ...formats.gguf.gguf_vision import by_frame, common_metadata, name_in_file
from ...formats.gguf.tensors import Tensor, plain
from ...graphs.graph_files import Prefixes
from .windowed_spec import WindowedModelSpec, WindowedSpec

WINDOW, MERGE, FRAMES = 112, 2, 2  # pixels, patches and frames that llama.cpp's graph is written for
SIDE = 40  # patches of the image that the file names; no position depends on it


@dataclass(frozen=True)
class WindowedVision:
    """The vision encoder, projector `qwen2.5vl_merger`."""

    spec: WindowedSpec
    prefixes: Prefixes
    projection: int  # width of the decoder
    image: dict[str, Any]  # section of the manifest
    limits: dict[str, Any]

    def __post_init__(self) -> None:
        spec = self.spec
        window = spec.window * spec.merge_size * spec.patch_size
        found = (window, spec.merge_size, spec.temporal_patch_size)
        if found != (WINDOW, MERGE, FRAMES) or spec.activation != "silu":
            raise InputError(
                f"window_size, spatial_merge_size and temporal_patch_size are {found} and the activation is "
                f"{spec.activation!r}; llama.cpp's encoder is written for {(WINDOW, MERGE, FRAMES)} and 'silu', export "
                "with --format onnx"
            )
        every = self._pattern or 1
        if spec.full_layers != set(range(every - 1, spec.depth, every)):
            raise InputError(
                f"fullatt_block_indexes are {sorted(spec.full_layers)}; llama.cpp's encoder attends to the whole image "
                "at every so many layers, export with --format onnx"
            )
        if spec.intermediate == spec.hidden:
            raise InputError(
                f"the vision encoder's intermediate_size is its hidden_size, {spec.hidden}; llama.cpp then takes one "
                "matrix of the MLP for another, export with --format onnx"
            )

    @property
    def _pattern(self) -> int:
        """Every so many layers there is one that attends to the whole image; 0: they all do."""
        first = min(self.spec.full_layers, default=self.spec.depth)
        return first + 1 if first else 0

    def tensors(self, sources: list[LazyTensor]) -> Iterator[Tensor]:
        """All tensors of the file, in the order of their sources."""
        names = gguf.get_tensor_name_map(MODEL_ARCH.MMPROJ, self.spec.depth)
        for source in sources:
            inner = source.name.removeprefix(f"{self.prefixes.vision}.")
            if inner == source.name:
                continue
            if inner == "patch_embed.proj.weight":
                yield from by_frame(source)
            elif ".attn.qkv." in inner:
                for index, letter in enumerate("qkv"):
                    yield _third(name_in_file(inner.replace("qkv", letter), names), source, index)
            else:
                yield plain(name_in_file(inner, names), source)

    def metadata(self) -> dict[str, Any]:
        """The constants of the encoder, by key."""
        spec = self.spec
        return {
            **common_metadata(spec, self.projection, SIDE * spec.patch_size, self.image),
            "clip.projector_type": "qwen2.5vl_merger",
            "clip.use_silu": True,
            "clip.vision.n_wa_pattern": self._pattern,
            "clip.vision.image_min_pixels": self.limits["min_pixels"],
            "clip.vision.image_max_pixels": self.limits["max_pixels"],
        }


def _third(name: str, source: LazyTensor, index: int) -> Tensor:
    """The rows of queries, keys or values of a tensor that has all three."""
    rows = source.shape[0] // 3
    shape = (rows, *source.shape[1:])
    return Tensor(name, shape, (source.name,), lambda: iter([source.rows(index * rows, (index + 1) * rows)]))


def vision_file(spec: WindowedModelSpec, prefixes: Prefixes, sections: dict[str, dict[str, Any]]) -> WindowedVision:
    """The vision encoder file of a model; InputError for one that llama.cpp cannot run."""
    return WindowedVision(spec.vision, prefixes, spec.decoder.hidden, sections["image"], sections["limits"])


GGUF = GgufFamily(
    lambda spec, prefixes: DecoderFile(spec, prefixes, MODEL_ARCH.QWEN2VL),
    vision_file,
    note="the llama.cpp of llama-cpp-python 0.3.36 does not read the epsilon of this decoder's norms and computes with "
    "0, so that its logits are off by some thousandths; newer sources of llama.cpp read it",
)
