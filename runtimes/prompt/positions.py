"""Rotary positions of Qwen3-VL (M-RoPE), as transformers' `Qwen3VLModel.get_rope_index`, resumable turn by turn.

Text advances all three axes (time, height, width) by one. The tokens of an image share the position where the image
starts, plus their own place in its merged grid; the next text continues after the longest side. A video is one image
for each temporal patch, since the prompt has a timestamp before each; or, as in Qwen2.5-VL, one whose positions in time
follow from the seconds between its temporal patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...targets.errors import InputError

Positions: TypeAlias = npt.NDArray[np.int64]
Grids: TypeAlias = "Sequence[Sequence[int]] | npt.NDArray[np.int64]"


NO_TOKEN = -1  # in place of a token that a model does not have; no prompt has it


@dataclass(frozen=True)
class PositionSpec:
    """What marks a token of an image or a video, and how many patches a side of it covers."""

    image_token_id: int
    merge_size: int = 2
    video_token_id: int | None = None
    mrope: bool = True  # False: every token, of an image too, has the next position
    tokens_per_second: int | None = None  # positions in time of a video that is one grid; None: each patch is an image

    def __post_init__(self) -> None:
        if self.merge_size < 1 or self.image_token_id < NO_TOKEN:
            raise InputError(
                f"position spec {self} needs merge_size of at least 1 and an image_token_id of at least -1"
            )


def rotary_positions(
    input_ids: npt.NDArray[np.int64], grids: Grids, spec: PositionSpec, start: int = 0, intervals: Sequence[float] = ()
) -> tuple[Positions, int]:
    """Positions [3, seq] in the way of the model and the position behind them; without M-RoPE the rows are equal."""
    if spec.mrope:
        return mrope_positions(input_ids, grids, spec, start, intervals)
    return text_positions(len(input_ids), start), start + len(input_ids)


def mrope_positions(
    input_ids: npt.NDArray[np.int64], grids: Grids, spec: PositionSpec, start: int = 0, intervals: Sequence[float] = ()
) -> tuple[Positions, int]:
    """Positions [3, seq] of `input_ids` [seq] and the position of a token generated after them.

    `grids` [images, 3] are (t, h, w) in patches, in the order of the images in the prompt; temporal patches of videos
    count as images, or are one with `intervals` [images], the seconds between them. `start` is the next position that
    an earlier call returned: turns computed one by one equal the whole conversation computed at once, unless a video
    lasts longer than the text behind it. An image must lie within one call. Raises InputError when the image tokens do
    not match the grids.
    """
    second = np.float32(spec.tokens_per_second or 1)
    spaces = [second * np.float32(each) for each in intervals] or [second] * len(grids)
    offsets = [_grid_offsets(grid, spec.merge_size, space) for grid, space in zip(grids, spaces, strict=True)]
    marks = [token for token in (spec.image_token_id, spec.video_token_id) if token is not None]
    tokens = np.flatnonzero(np.isin(input_ids, marks))
    ends = np.cumsum([offset.shape[1] for offset in offsets], dtype=np.int64)
    expected = int(ends[-1]) if len(ends) else 0
    if len(tokens) != expected:
        raise InputError(f"the prompt has {len(tokens)} image tokens, the {len(ends)} image grids need {expected}; "
                         "build the prompt with the grids of the same images")  # fmt: skip
    for end, offset in zip(ends, offsets, strict=True):
        count = offset.shape[1]
        if tokens[end - 1] - tokens[end - count] != count - 1:
            raise InputError(f"the {count} tokens of an image are not consecutive in the prompt; "
                             "build the prompt with the grids of the same images")  # fmt: skip
    advance = np.ones(len(input_ids), np.int64)
    advance[tokens] = 0
    advance[tokens[ends - 1]] = [int(offset[1:].max()) + 1 for offset in offsets]
    after = start + np.cumsum(advance)
    positions = np.tile(after - advance, (3, 1))
    if offsets:
        positions[:, tokens] += np.concatenate(offsets, axis=1)
    return positions, int(positions.max()) + 1 if len(after) else start


def text_positions(count: int, start: int) -> Positions:
    """Positions [3, count] of text that continues at `start`, such as generated tokens."""
    return np.tile(np.arange(start, start + count, dtype=np.int64), (3, 1))


def _grid_offsets(grid: Sequence[int] | npt.NDArray[np.int64], merge_size: int, space: np.float32) -> Positions:
    """Time, height and width of each token of one grid [3, tokens], in the order of the vision encoder's output.

    Temporal patches are `space` positions apart, cut to whole ones in float32 as transformers does.
    """
    time, height, width = (int(size) for size in grid)
    if min(time, height, width) < 1 or height % merge_size or width % merge_size:
        raise InputError(f"image grid {(time, height, width)} is not made of whole {merge_size} x {merge_size} blocks; "
                         "pass the grid that preprocessing returned")  # fmt: skip
    offsets = np.indices((time, height // merge_size, width // merge_size), np.int64).reshape(3, -1)
    offsets[0] = (offsets[0].astype(np.float32) * space).astype(np.int64)
    return offsets
