"""An image or a video that is planned: its grid is known, and its pixels are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial

from PIL import Image

from ...targets.errors import InputError
from ..prompt.prompt_parts import VideoLayout
from .image_files import ImageLimits, decode_image, header_size
from .images import Grid, Patches
from .pixels import PixelSpec, image_grid, preprocess
from .seen import Identity


@dataclass(frozen=True)
class Medium:
    """An image or a video that is opened but not cut into patches yet."""

    grid: Grid  # of the image, or of each temporal patch of the video
    patches: Callable[[], Iterator[Patches]]
    layout: VideoLayout | None = None  # of a video
    identity: Identity | None = None  # of the source, known without decoding it

    @property
    def key(self) -> Hashable:
        """The same for the same source with the same wishes."""
        return self.identity or id(self)

    @property
    def pieces(self) -> int:
        """How many arrays of patches it gives: one for an image, one for each temporal patch of a video."""
        return 1 if self.layout is None else self.layout.grid[0]


def layout_of(medium: Medium) -> VideoLayout:
    """The layout of a medium that is a video."""
    assert medium.layout is not None
    return medium.layout


@dataclass(frozen=True)
class Picture:
    """A file of an image, or an image object, with how it is to be prepared."""

    name: str  # for messages
    content: bytes | Image.Image
    spec: PixelSpec
    limits: ImageLimits

    def planned(self, identity: Identity, *, first: bool) -> Medium:
        """By the header, or decoded where that is not enough, or it looks cut off; InputError if unusable.

        The `first` picture of a conversation keeps what was decoded; others are read again when it is their turn, so
        that memory does not follow their number.
        """
        size = None if isinstance(self.content, Image.Image) else header_size(self.name, self.content, self.limits)
        decoded = list[Image.Image]()
        if size is None:
            image = self.decode()
            size, decoded = image.size, [image] if first else []
        grid = image_grid(size[1], size[0], self.spec)
        return Medium(grid, partial(self.patches, grid, decoded), identity=identity)

    def decode(self) -> Image.Image:
        """In RGB. An image object is one already."""
        if isinstance(self.content, Image.Image):
            return self.content
        return decode_image(self.name, self.content, self.limits)

    def patches(self, grid: Grid, decoded: list[Image.Image]) -> Iterator[Patches]:
        """The one array of patches, of what is `decoded` or else of what the file holds.

        InputError where it cannot be decoded, or gives another grid than its header promised.
        """
        found, others = preprocess(decoded.pop() if decoded else self.decode(), self.spec)
        if others != grid:
            raise InputError(f"{self.name} holds a picture of another size than its header says; save it anew")
        yield found
