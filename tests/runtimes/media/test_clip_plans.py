"""How a limit of tokens shrinks a clip, by hand."""

from __future__ import annotations

import pytest
from lensmith.runtimes.media.clips import (
    ClipSpec,
    _sample,
    _within_tokens,
    plan_clip,
)
from lensmith.runtimes.media.images import ImageSpec


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
        ((8, 1, 1), 5, (4, 1, 1)),
        ((1, 1, 3), 1, (1, 1, 1)),
        ((2, 1, 1), 1, (2, 1, 1)),  # there is nothing left to take
        ((9, 9, 9), None, (9, 9, 9)),
    ],
)
def test_a_limit_of_tokens(shape: tuple[int, int, int], limit: int | None, expected: tuple[int, int, int]) -> None:
    assert _within_tokens(*shape, ClipSpec(ImageSpec(temporal_patch_size=2), max_tokens=limit)) == expected


def test_frames_by_the_second_are_rounded_down() -> None:
    """2.5 seconds at 3 frames for each are 7.5: seven, evenly over all 25."""
    spec = ClipSpec(ImageSpec(), strategy="fps_based", fps=3.0)
    assert _sample(25, spec, 10.0).tolist() == [0, 3, 7, 10, 14, 17, 21]
    assert _sample(3, spec, 1.0).tolist() == [0, 1, 2]  # no frame is taken twice


def test_a_limit_of_tokens_bounds_each_frame_first() -> None:
    """16 tokens are 32 squares in the two frames of a temporal patch: 3 x 9, then 2 x 3 by the limit."""
    image = ImageSpec(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=1, max_pixels=10**8)
    plan = plan_clip(4, 28 * 100, 28 * 300, ClipSpec(image, max_tokens=16))
    assert (plan.height // 28, plan.width // 28) == (2, 3)
