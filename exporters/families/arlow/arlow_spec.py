"""What an Arlow vision encoder is, in our own names: frozen, validated, with the differences of its revisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

from ....targets.errors import InputError
from ...config_errors import require
from ...tower_specs import PatchTransformer

DEFAULT_PATCHES = 8192  # of one image or clip: a bias of 268 MB, and time that grows with the square


@dataclass(frozen=True)
class Revision:
    """What differs between revisions of the class without a trace in its config or tensors, one switch each."""

    rotary_pairs: Literal["neighbours", "halves"]  # the partner of a feature: 2k and 2k+1, or j and j + head_dim / 2
    attention_rows: Literal[
        "memory", "heads"
    ]  # [heads, tokens, head_dim] read as rows as it lies, or heads side by side
    patch_order: Literal["windows", "raster"]  # of the rows of pixel_values, as the image processor makes them


REVISIONS: Mapping[str, Revision] = {
    "A": Revision("neighbours", "memory", "windows"),
    "B": Revision("halves", "heads", "raster"),
}


@dataclass(frozen=True)
class Locality:
    """The bias that keeps attention local: distances on the unit cube that the grid spans."""

    radius: float
    strength: float

    @property
    def outside(self) -> float:
        """What is added beyond the radius."""
        return -100.0 * self.strength if self.radius > 0 else 0.0


@dataclass(frozen=True)
class ArlowSpec(PatchTransformer):
    """A vision transformer over the patches of one image or clip, without a decoder."""

    out_hidden: int
    deepstack_layers: tuple[int, ...]
    rope_theta: float
    mrope_sections: tuple[int, int, int]
    locality: Locality | None
    progressive: bool
    revision: str = "B"
    context: int = DEFAULT_PATCHES  # most patches of one image or clip
    family: str = "arlow"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.revision not in REVISIONS:
            raise InputError(f"no revision {self.revision!r} of {self.family}; expected {' or '.join(REVISIONS)}")
        divides = self.hidden % self.heads == 0
        require(divides, "num_heads", self.heads, f"a divisor of {self.hidden}")
        require(self.head_dim % 2 == 0, "embed_dim / num_heads", self.head_dim, "an even head size")
        sections = list(self.mrope_sections)
        require(sum(sections) == self.head_dim and min(sections) >= 0, "mrope_sections", sections,
                 f"three counts with the sum {self.head_dim}")  # fmt: skip

    @property
    def vision(self) -> Self:
        """The encoder itself."""
        return self

    @property
    def decoder(self) -> None:
        """None: it is an encoder alone."""
        return None

    @property
    def biased(self) -> bool:
        """Whether attention adds a bias for each pair of patches."""
        return self.locality is not None

    @property
    def conventions(self) -> Revision:
        """What the revision decides."""
        return REVISIONS[self.revision]

    def frequency_axes(self) -> list[int]:
        """The axis of the grid (0 time, 1 height, 2 width) that each of the head_dim / 2 frequencies follows."""
        return [self._axis(index) for index in range(self.head_dim // 2)]

    def _axis(self, index: int) -> int:
        axis = index % 3
        return axis if axis and index < 3 * self.mrope_sections[axis] else 0

    def revised(self, revision: str | None) -> Self:
        """The same encoder as another revision of the class computes it; InputError for an unknown one."""
        return self if revision is None else replace(self, revision=revision)

    def limited(self, context: int | None) -> Self:
        """With another largest number of patches; InputError for none at all."""
        if context is not None and context < self.merge_size**2:
            raise InputError(f"context {context} holds no image; expected at least {self.merge_size**2} patches")
        return self if context is None else replace(self, context=context)
