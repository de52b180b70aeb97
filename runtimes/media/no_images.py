"""Models that take no images: where others prepare one, they refuse it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

from ...targets.errors import InputError

REFUSAL = "this model takes text alone, no images or videos; leave them out, or load a bundle with a vision encoder"


@dataclass(frozen=True)
class NoImages:
    """In place of the constants that images are prepared with."""

    factor: int = 1
    takes_images: ClassVar[bool] = False
    merge_size: ClassVar[int] = 1

    def with_pixels(self, *, min_pixels: int | None = None, max_pixels: int | None = None) -> NoImages:
        """Itself; an InputError for a wish."""
        if min_pixels is not None or max_pixels is not None:
            refuse()
        return self

    def of_size(self, _: tuple[int, int]) -> NoReturn:
        """Raises InputError."""
        refuse()


def refuse(*_: object) -> NoReturn:
    """Raise the InputError for an image that is given all the same."""
    raise InputError(REFUSAL)
