"""What prompts are built from, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...targets.errors import InputError
from ..bundle.input_sections import Speech, TileWords

Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PromptSpec:
    """The special tokens of a model by name, its end tokens by id, and what its template gets besides the messages."""

    image_token: str | None = "<|image_pad|>"  # None: the model takes no images
    video_token: str | None = "<|video_pad|>"
    vision_start_token: str | None = "<|vision_start|>"
    vision_end_token: str | None = "<|vision_end|>"
    eos_token_ids: tuple[int, ...] = ()
    merge_size: int = 2
    timestamps: bool = True  # stand in front of each temporal patch of a video; False: its tokens are one run
    token_ids: Mapping[str, int] = field(default_factory=dict)  # ids the model expects, by token, checked on opening
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tiles: TileWords | None = None  # images are cut into tiles, each with tokens of its own
    bos_token: str | None = None  # the tokenizer adds its special tokens unless the text begins with this one
    speech: Speech | None = None  # None: found in the template

    def __post_init__(self) -> None:
        if self.merge_size < 1:
            raise InputError(f"prompt merge_size is {self.merge_size}; expected at least 1")
        if any(not isinstance(token, int) or token < 0 for token in self.eos_token_ids):
            raise InputError(f"prompt eos_token_ids are {self.eos_token_ids}; expected token ids of at least 0")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The names that the tokenizer must know."""
        named = [self.image_token, self.video_token, self.vision_start_token, self.vision_end_token]
        named += [] if self.tiles is None else [self.tiles.around, self.tiles.whole]
        return tuple(name for name in named if name is not None)


@dataclass(frozen=True)
class VideoLayout:
    """The grid (t, h, w) of a video in patches, and the seconds of each of its t temporal patches."""

    grid: tuple[int, int, int]
    seconds: tuple[float, ...]

    def frame_grids(self) -> list[tuple[int, int, int]]:
        """One grid for each temporal patch, since each has tokens of its own in the prompt."""
        return [(1, *self.grid[1:])] * self.grid[0]

    @property
    def interval(self) -> float:
        """Seconds from the first temporal patch to the second; 0 where there is none."""
        return self.seconds[1] - self.seconds[0] if len(self.seconds) > 1 else 0.0


@dataclass(frozen=True)
class Prompt:
    """Token ids [seq], and where the tokens of each image and each temporal patch of a video are, in their order."""

    ids: Ids
    image_spans: npt.NDArray[np.int64]  # [images, (start, end)]
    grids: npt.NDArray[np.int64]  # [images, (t, h, w)]
    of_video: npt.NDArray[np.bool_]  # [images], whether it is a temporal patch of a video, or a whole one
    intervals: tuple[float, ...] = ()  # [images], seconds between temporal patches of whole videos; (): there are none
    thinking: bool | None = None  # whether it ends within the model's thoughts, which None leaves to the model

    def __len__(self) -> int:
        return len(self.ids)

    def media_tokens(self) -> tuple[int, int]:
        """How many tokens are of images, and how many of videos."""
        lengths = self.image_spans[:, 1] - self.image_spans[:, 0]
        return int(lengths[~self.of_video].sum()), int(lengths[self.of_video].sum())
