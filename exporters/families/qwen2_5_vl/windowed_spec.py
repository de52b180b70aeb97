"""What the vision encoder of Qwen2.5-VL is, in our own names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ...config_errors import require
from ...spec import VisionLanguageSpec
from ...tower_specs import PatchTransformer


@dataclass(frozen=True)
class WindowedSpec(PatchTransformer):
    """A vision transformer over patches of any grid; most of its layers attend within windows of an image."""

    out_hidden: int
    rope_theta: float
    norm_eps: float
    window: int  # image tokens a side
    full_layers: frozenset[int]  # that attend to the whole image
    tokens_per_second: int = 4  # positions of the decoder in time, of videos

    def __post_init__(self) -> None:
        require(self.hidden % self.heads == 0, "vision hidden_size", self.hidden, f"a multiple of {self.heads} heads")
        require(self.head_dim % 4 == 0, "vision head size", self.head_dim, "a multiple of 4, for 2-D rotary angles")
        unknown = sorted(layer for layer in self.full_layers if layer >= self.depth)
        require(not unknown, "fullatt_block_indexes", unknown, f"layers below depth {self.depth}")
        require(self.window > 0, "window_size", self.window, "at least one image token a side")

    def attended(self, patches: int) -> int:
        """Pairs of patches in all layers: of the whole image in a few, within windows in the others."""
        near = min(patches, (self.window * self.merge_size) ** 2)
        return patches * (len(self.full_layers) * patches + (self.depth - len(self.full_layers)) * near)

    @property
    def deepstack_layers(self) -> tuple[int, ...]:
        """None: the decoder takes the last states alone."""
        return ()


WindowedModelSpec: TypeAlias = VisionLanguageSpec[WindowedSpec]
