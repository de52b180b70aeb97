"""Whether samples differ enough to calibrate on: their questions, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...exporters.comparing.cases import Case
from ...runtimes.media.image_files import open_image

FEW = 8  # one of so many samples that differs is too few
SAME_WORDS = 0.6  # of the words of two questions, that both have
SIDE, SAME_SHADES = 8, 6.0  # pictures scaled to SIDE x SIDE, whose greys of 256 differ by so much on average
Item = TypeVar("Item")


def monotony(cases: Sequence[Case], source: str) -> Iterator[str]:
    """What all samples of a user have in common, a sentence each; `cases` are theirs alone."""
    asked = [frozenset(case.prompt.lower().split()) for case in cases if case.given]
    pictures = [
        np.asarray(open_image(path).convert("L").resize((SIDE, SIDE)), np.float32)
        for path in sorted({path for case in cases for path in case.images})
    ]
    several = "so what the model does elsewhere is not seen; add samples of all that it will be asked"
    if _too_few(kinds := _different(asked, _alike_words), asked):
        yield f"the {len(asked)} samples of {source} ask {_count(kinds, 'question')}, {several}"
    if _too_few(kinds := _different(pictures, _alike_shades), pictures):
        yield f"the {len(pictures)} pictures of {source} show {_count(kinds, 'view')}, {several}"


def _too_few(kinds: int, items: Sequence[Item]) -> bool:
    return len(items) >= FEW and kinds * FEW <= len(items)


def _count(kinds: int, what: str) -> str:
    return f"the same {what}" if kinds == 1 else f"{kinds} different {what}s only"


def _different(items: Sequence[Item], alike: Callable[[Item, Item], bool]) -> int:
    """How many items are like none of those before them that differ."""
    kept: list[Item] = []
    for item in items:
        if not any(alike(item, other) for other in kept):
            kept.append(item)
    return len(kept)


def _alike_words(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= SAME_WORDS * len(one | other)


def _alike_shades(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return float(np.abs(one - other).mean()) <= SAME_SHADES
