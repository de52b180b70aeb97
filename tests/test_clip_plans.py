"""How a limit of tokens shrinks a clip, by hand."""

from __future__ import annotations

import pytest
from lensmith.runtimes.clips import ClipSpec, _within_tokens
from lensmith.runtimes.images import ImageSpec


@pytest.mark.parametrize(
    ("shape", "limit", "expected"),
    [
        ((1, 4, 4), 16, (1, 4, 4)),  # at the limit
        ((1, 4, 4), 15, (1, 3, 4)),  # of equal sides, the height goes first
        ((1, 4, 4), 12, (1, 3, 4)),
        ((1, 4, 4), 11, (1, 3, 3)),
        ((1, 2, 5), 8, (1, 2, 4)),
        ((6, 3, 3), 40, (4, 3, 3)),  # first whole patches in time
        ((6, 3, 3), 17, (2, 2, 3)),
        ((1, 1, 3), 1, (1, 1, 1)),
        ((2, 1, 1), 1, (2, 1, 1)),  # there is nothing left to take
        ((9, 9, 9), None, (9, 9, 9)),
    ],
)
def test_a_limit_of_tokens(shape: tuple[int, int, int], limit: int | None, expected: tuple[int, int, int]) -> None:
    assert _within_tokens(*shape, ClipSpec(ImageSpec(temporal_patch_size=2), max_tokens=limit)) == expected
