"""What towers of vision encoders are, in our own names, checked."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

from .config_errors import require


class Tower(Protocol):
    """What is asked of any vision encoder outside of its family."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def intermediate(self) -> int: ...  # width of the MLP
    @property
    def merge_size(self) -> int: ...  # patches a side of one image token
    @property
    def out_hidden(self) -> int: ...
    @property
    def deepstack_layers(self) -> tuple[int, ...]: ...
    @property
    def used_depth(self) -> int: ...  # layers that the features depend on
    @property
    def biased(self) -> bool: ...  # attention adds a bias for each pair of patches
    @property
    def patch_shape(self) -> tuple[int, ...]: ...  # of one patch, as the checkpoint has it
    @property
    def patches_per_token(self) -> int: ...  # that become one image token
    @property
    def tile_patches(self) -> int | None: ...  # that are encoded at once, of encoders for images of one size
    def attended(self, patches: int) -> int: ...  # pairs of patches in all layers, of so many at once


@dataclass(frozen=True)
class PatchTransformer:
    """What all vision transformers over patches of images and clips have."""

    depth: int
    hidden: int
    heads: int
    intermediate: int
    activation: str
    channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patches_per_token(self) -> int:
        """Patches that become one image token."""
        return self.merge_size**2

    @property
    def tile_patches(self) -> None:
        """None: an image is encoded as a whole."""
        return None

    def attended(self, patches: int) -> int:
        """Pairs of patches in all layers: each patch attends to all of its image."""
        return self.depth * patches**2

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Channels, frames and sides of one patch."""
        return self.channels, self.temporal_patch_size, self.patch_size, self.patch_size

    @property
    def patch_dim(self) -> int:
        """Values of one flattened patch."""
        return prod(self.patch_shape)

    @property
    def merged_hidden(self) -> int:
        return self.hidden * self.merge_size**2

    @property
    def used_depth(self) -> int:
        """Layers that the features depend on: all."""
        return self.depth

    @property
    def biased(self) -> bool:
        """Whether attention adds a bias for each pair of patches."""
        return False


@dataclass(frozen=True)
class VisionSpec(PatchTransformer):
    """A vision transformer over patches of any grid, with merged patches as image tokens."""

    positions: int  # entries of the square learned position table
    out_hidden: int
    deepstack_layers: tuple[int, ...]
    rope_theta: float
    norm_eps: float

    def __post_init__(self) -> None:
        side = round(self.positions**0.5)
        require(side * side == self.positions, "num_position_embeddings", self.positions, "a square number")
        require(self.hidden % self.heads == 0, "vision hidden_size", self.hidden, f"a multiple of {self.heads} heads")
        require(self.head_dim % 4 == 0, "vision head size", self.head_dim, "a multiple of 4, for 2-D rotary angles")
        unknown = [i for i in self.deepstack_layers if not 0 <= i < self.depth]
        require(not unknown, "deepstack_visual_indexes", unknown, f"layers below depth {self.depth}")


@dataclass(frozen=True)
class ClipTowerSpec:
    """A CLIP vision transformer for images of one size, whose states become image tokens through a projector."""

    hidden: int
    heads: int
    intermediate: int
    activation: str
    channels: int
    image_size: int  # pixels a side
    patch_size: int
    norm_eps: float
    depth: int  # layers of the checkpoint
    feature_depths: tuple[int, ...]  # behind how many layers the states are taken; several are joined
    keep_class: bool  # whether the class token becomes an image token too
    out_hidden: int
    projector_activation: str
    projector_bias: bool
    merge_size: int = 1
    deepstack_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self.hidden % self.heads == 0, "vision hidden_size", self.hidden, f"a multiple of {self.heads} heads")
        require(self.channels == 3, "num_channels", self.channels, "3, for RGB")
        require(0 < self.patch_size <= self.image_size, "patch_size", self.patch_size, f"up to {self.image_size}")
        beyond = [depth for depth in self.feature_depths if not 0 <= depth <= self.depth]
        require(not beyond, "vision_feature_layer", beyond, f"layers up to {self.depth}")
        require(bool(self.feature_depths), "vision_feature_layer", [], "a layer or a list of layers")

    @property
    def side(self) -> int:
        """Patches a side; pixels behind the last whole patch are not seen."""
        return self.image_size // self.patch_size

    @property
    def patches_per_token(self) -> int:
        """Patches that become one image token."""
        return 1

    @property
    def tile_patches(self) -> int:
        """Patches of an image, with the class token."""
        return self.side**2 + 1

    def attended(self, patches: int) -> int:
        """Pairs of patches in all layers that are used."""
        return self.used_depth * patches**2

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Channels and sides of one patch."""
        return self.channels, self.patch_size, self.patch_size

    @property
    def patch_dim(self) -> int:
        """Values of one flattened patch."""
        return prod(self.patch_shape)

    @property
    def used_depth(self) -> int:
        """Layers that the features depend on."""
        return max(self.feature_depths)

    @property
    def biased(self) -> bool:
        """Whether attention adds a bias for each pair of patches."""
        return False

    @property
    def image_tokens(self) -> int:
        """Of each image."""
        return self.side**2 + int(self.keep_class)
