"""GGUF files of SmolVLM and Idefics3: a Llama decoder, and a SigLIP tower behind a pixel shuffle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

import gguf
from gguf import MODEL_ARCH

from ....targets.errors import InputError
from ...checkpoint.lazy_tensors import LazyTensor
from ...formats.gguf.gguf_family import GgufFamily
from ...formats.gguf.gguf_vision import SUFFIXES, common_metadata
from ...formats.gguf.tensors import Tensor, plain
from ...graphs.graph_files import Prefixes
from ..llama_files import decoder_file
from .siglip_spec import SiglipSpec, SmolModelSpec

ACTIVATIONS: Mapping[str, Mapping[str, bool]] = {  # that llama.cpp's tower has, and what its file says of them
    "gelu_tanh": {"clip.use_gelu": True},
    "silu": {"clip.use_silu": True},
    "quick_gelu": {},
}


@dataclass(frozen=True)
class SiglipVision:
    """The vision encoder, projector `idefics3`."""

    spec: SiglipSpec
    prefixes: Prefixes
    image: dict[str, Any]  # section of the manifest

    def __post_init__(self) -> None:
        factor = self.image["rescale_factor"]
        scaled = factor is not None and isclose(factor, 1 / 255, rel_tol=1e-6) and self.image["mean"] is not None
        if self.spec.activation not in ACTIVATIONS or not scaled or self.spec.shuffle == 1:
            raise InputError(
                f"the vision encoder has activation {self.spec.activation!r}, scale_factor {self.spec.shuffle}, "
                f"rescale_factor {factor} and {'a' if self.image['mean'] else 'no'} normalization; llama.cpp has "
                f"{', '.join(ACTIVATIONS)}, at least 2, 1/255 and one: export it with --format onnx"
            )

    def tensors(self, sources: list[LazyTensor]) -> Iterator[Tensor]:
        """All tensors of the file, in the order of their sources."""
        names = gguf.get_tensor_name_map(MODEL_ARCH.MMPROJ, self.spec.depth)
        for source in sources:
            if source.name.startswith((f"{self.prefixes.vision}.", f"{self.prefixes.projector}.")):
                found = names.get_name(source.name, try_suffixes=SUFFIXES)
                if found is None:
                    raise InputError(f"llama.cpp has no place for the tensor {source.name!r} of the vision encoder")
                yield plain(found, source)

    def metadata(self) -> dict[str, Any]:
        """The constants of the encoder, by key."""
        spec = self.spec
        return {
            **common_metadata(spec, spec.out_hidden, spec.image_size, self.image),
            "clip.projector_type": "idefics3",
            "clip.vision.projector.scale_factor": spec.shuffle,
            "clip.vision.preproc_image_size": self.image["longest_edge"],
            **ACTIVATIONS[spec.activation],
        }


def vision_file(spec: SmolModelSpec, prefixes: Prefixes, sections: dict[str, dict[str, Any]]) -> SiglipVision:
    """The vision encoder file of a model; InputError for one that llama.cpp cannot run."""
    return SiglipVision(spec.vision, prefixes, sections["image"])


GGUF = GgufFamily(decoder_file, vision_file)
