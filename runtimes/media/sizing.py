"""Sizes of images and frames in whole image tokens: rounded, then shrunk or grown to an area in pixels, as HF does.

All sizes are (height, width) in pixels, and multiples of `factor`, the pixels along each side of one image token.
`frames` share the area.
"""

from __future__ import annotations

import math

from ...targets.errors import InputError

Size = tuple[int, int]


def rounded(height: int, width: int, factor: int) -> Size:
    """The nearest multiples."""
    return round(height / factor) * factor, round(width / factor) * factor


def shrunk(height: int, width: int, factor: int, most: float, frames: int = 1) -> Size:
    """The largest size of about the same shape with an area of at most `most`; each side keeps at least one token."""
    beta = math.sqrt((frames * height * width) / most)
    tokens = math.floor(height / beta / factor), math.floor(width / beta / factor)
    return max(1, tokens[0]) * factor, max(1, tokens[1]) * factor


def grown(height: int, width: int, factor: int, least: float, frames: int = 1) -> Size:
    """The smallest size of about the same shape with an area of at least `least`."""
    beta = math.sqrt(least / (frames * height * width))
    return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor


def whole_tokens(size: Size, factor: int) -> Size:
    """The nearest multiples, at least one token along each side."""
    height, width = rounded(*size, factor)
    return max(factor, height), max(factor, width)


def check_area(area: int, low: int, high: int, what: str) -> None:
    """Raise InputError for an area outside the range of a bundle."""
    if not low <= area <= high:
        raise InputError(f"{what} is outside the {low} to {high} pixels that this bundle was built for")
