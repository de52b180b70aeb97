"""What a manifest says of prompts, images and videos, and of how much of them a bundle takes."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from .ranges import (
    Area,
    Count,
    Factor,
    LeastArea,
    Mean,
    Name,
    Number,
    Side,
    Sides,
    Size,
    Std,
    Text,
    Token,
    TokenId,
)
from .section import Section

LONGEST = 4096  # pixels of the longer side of an image in tiles
MOST_TILED = 1 << 20  # tokens of one


class PatchImages(Section, frozen=True, tag_field="kind", tag="patches"):
    """Images that are cut into patches at their own size."""

    patch_size: Side
    temporal_patch_size: Annotated[int, Meta(ge=1, le=64)]
    merge_size: Annotated[int, Meta(ge=1, le=64)]
    mean: Mean
    std: Std
    rescale_factor: Factor


class CropImages(Section, frozen=True, tag_field="kind", tag="crop"):
    """Images that all become one size."""

    shortest_edge: Side | None
    resized: Sides | None
    cropped: Sides | None
    mean: Mean | None
    std: Std
    rescale_factor: Factor | None
    image_tokens: Annotated[int, Meta(ge=1, le=1 << 20)]


class TileImages(Section, frozen=True, tag_field="kind", tag="tiles"):
    """Images that are cut into tiles of one size."""

    longest_edge: Annotated[int, Meta(ge=1, le=LONGEST)]
    tile: Side
    tile_tokens: Annotated[int, Meta(ge=1, le=1 << 20)]
    split: bool
    resample: Literal["lanczos", "bicubic"]
    mean: Mean | None
    std: Std
    rescale_factor: Factor | None

    @property
    def most_tokens(self) -> int:
        """Of the largest image: as many tiles along both sides as along the longer one, and the whole image."""
        side = -(-(self.longest_edge + self.longest_edge % 2) // self.tile) if self.split else 1
        return self.tile_tokens * (side**2 + int(side > 1))


class NoImagesEntry(Section, frozen=True, tag_field="kind", tag="none"):
    """The model takes no images."""


class FrameVideos(PatchImages, frozen=True, tag_field="kind", tag="frames"):
    """Videos as the Qwen models take them.

    Without `tokens_per_second` the prompt has timestamps, and the pixel range is that of all frames together; with it
    the time is in the positions, and the range is that of each frame.
    """

    fps: Annotated[float, Meta(gt=0, le=10_000)]
    min_frames: Annotated[int, Meta(ge=1, le=1 << 20)]
    max_frames: Annotated[int, Meta(ge=1, le=1 << 20)]
    min_pixels: LeastArea
    max_pixels: Area
    max_tokens: Count
    tokens_per_second: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None


class Clips(PatchImages, frozen=True, tag_field="kind", tag="clips"):
    """Videos as an Arlow encoder takes them; the pixel range is that of one frame."""

    strategy: Literal["uniform", "fps_based"]
    min_pixels: LeastArea
    max_pixels: Area
    max_frames: Annotated[int, Meta(ge=1, le=1 << 20)]
    num_frames: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    fps: Annotated[float, Meta(gt=0, le=10_000)] | None = None
    max_tokens: Size | None = None


class Limits(Section, frozen=True):
    """What a bundle accepts: the area of an image in pixels, its tokens, and tokens (or patches) in all."""

    context: Annotated[int, Meta(ge=1, le=1 << 24)]
    min_pixels: LeastArea = 0  # these three of models that take images
    max_pixels: Area = 0
    max_image_tokens: Size = 0


class Tokens(Section, frozen=True):
    """Special tokens by their roles."""

    image_token: Token | None = None
    video_token: Token | None = None
    vision_start_token: Token | None = None
    vision_end_token: Token | None = None


class TileWords(Section, frozen=True):
    """What stands around the image tokens of tiles: `row` and `column` in braces stand for their numbers, from 1."""

    around: Token  # in front of each tile, and behind the last
    cell: Token  # behind it, for a tile of several
    whole: Token  # for the whole image


class Speech(Section, frozen=True):
    """How answers are written, as the chat template tells of earlier ones: calls of tools, and thoughts before them."""

    tool_calls: Literal["xml", "json"] | None = None
    arguments: Literal["object", "text"] = "object"  # what the template takes as those of a call in the conversation
    reasoning: bool = False


class PromptEntry(Section, frozen=True):
    """How conversations become token ids."""

    template: Literal["chat_template.jinja"]
    tokenizer: Literal["tokenizer.json"]
    tokens: Tokens
    token_ids: Annotated[dict[Token, TokenId], Meta(max_length=1000)]
    eos_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=1000)]
    merge_size: Annotated[int, Meta(ge=1, le=64)]
    end_tokens: dict[Token, list[Text]] = {}  # by name, where each was found
    bos_token: Token | None = None
    template_kwargs: dict[Name, Token] = {}
    tiles: TileWords | None = None  # of models whose images are cut into tiles
    speech: Speech | None = None  # of bundles made before it was recorded: found in the template


class LocalityEntry(Section, frozen=True):
    """The bias that keeps attention local."""

    radius: Number | None
    strength: Number


class EncoderEntry(Section, frozen=True):
    """Conventions of a vision encoder that has no decoder."""

    revision: Name | None
    rotary_pairs: Literal["neighbours", "halves"]
    attention_rows: Literal["memory", "heads"]
    patch_order: Literal["raster", "windows"]
    locality: LocalityEntry | None = None
