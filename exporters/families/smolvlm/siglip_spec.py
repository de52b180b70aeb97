"""What the vision encoder of SmolVLM and Idefics3 is, in our own names."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from ...config_errors import require
from ...spec import VisionLanguageSpec

MOST_SIDE = 64
# Patches a side with which transformers finds, by rounding in float32, the place of a neighbour for some patches.
# Which ones depends on the processor that PyTorch runs on.
ROUNDED = (19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 54, 55, 58, 59, 61, 62)


@dataclass(frozen=True)
class SiglipSpec:
    """A SigLIP vision transformer for tiles of one size, whose patches become image tokens in squares."""

    hidden: int
    heads: int
    intermediate: int
    activation: str
    channels: int
    image_size: int  # pixels a side of a tile
    patch_size: int
    norm_eps: float
    depth: int
    shuffle: int  # patches a side that become one image token
    out_hidden: int
    merge_size: int = 1  # the prompt counts image tokens, not patches
    deepstack_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self.hidden % self.heads == 0, "vision hidden_size", self.hidden, f"a multiple of {self.heads} heads")
        require(self.channels == 3, "num_channels", self.channels, "3, for RGB")
        require(0 < self.patch_size <= self.image_size, "patch_size", self.patch_size, f"up to {self.image_size}")
        require(self.side % self.shuffle == 0, "scale_factor", self.shuffle, f"a divisor of {self.side} patches a side")
        usable = self.side <= MOST_SIDE and self.side not in ROUNDED
        rounded = ", ".join(map(str, ROUNDED))
        require(
            usable,
            "image_size",
            self.image_size,
            f"up to {MOST_SIDE} patches of {self.patch_size} pixels a side, and none of the numbers with which "
            f"transformers rounds their positions ({rounded})",
        )

    @property
    def side(self) -> int:
        """Patches a side of a tile; pixels behind the last whole patch are not seen."""
        return self.image_size // self.patch_size

    @property
    def patches_per_token(self) -> int:
        """Patches that become one image token."""
        return self.shuffle**2

    @property
    def tile_patches(self) -> int:
        """Patches of a tile."""
        return self.side**2

    def attended(self, patches: int) -> int:
        """Pairs of patches in all layers."""
        return self.depth * patches**2

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Channels and sides of one patch."""
        return self.channels, self.patch_size, self.patch_size

    @property
    def patch_dim(self) -> int:
        """Values of one flattened patch."""
        return prod(self.patch_shape)

    @property
    def shuffled(self) -> int:
        """Width of the patches of one image token together."""
        return self.hidden * self.shuffle**2

    @property
    def tile_tokens(self) -> int:
        """Image tokens of each tile."""
        return (self.side // self.shuffle) ** 2

    @property
    def used_depth(self) -> int:
        """Layers that the features depend on: all."""
        return self.depth

    @property
    def biased(self) -> bool:
        """Whether attention adds a bias for each pair of patches."""
        return False


SmolModelSpec: TypeAlias = VisionLanguageSpec[SiglipSpec]
