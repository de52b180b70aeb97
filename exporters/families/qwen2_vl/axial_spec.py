"""What the vision encoder of Qwen2-VL is, in our own names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ...config_errors import require
from ...spec import VisionLanguageSpec
from ...tower_specs import PatchTransformer


@dataclass(frozen=True)
class AxialTransformer(PatchTransformer):
    """A vision transformer over patches of any grid, whose positions are 2-D rotary angles alone."""

    out_hidden: int
    rope_theta: float
    norm_eps: float

    def __post_init__(self) -> None:
        require(self.hidden % self.heads == 0, "vision embed_dim", self.hidden, f"a multiple of {self.heads} heads")
        require(self.head_dim % 4 == 0, "vision head size", self.head_dim, "a multiple of 4, for 2-D rotary angles")

    @property
    def deepstack_layers(self) -> tuple[int, ...]:
        """None: the decoder takes the last states alone."""
        return ()


AxialModelSpec: TypeAlias = VisionLanguageSpec[AxialTransformer]
