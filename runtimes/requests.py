"""A conversation ready for the decoder: token ids, positions and the features of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .engine import ImageFeatures, Ints
from .positions import PositionSpec, mrope_positions
from .prompt import Prompt, PromptBuilder

Message = Mapping[str, Any]


@dataclass(frozen=True)
class EncodedImage:
    """One image ready for the decoder."""

    key: bytes  # identity of its pixels after preprocessing
    grid: tuple[int, int, int]
    features: ImageFeatures


@dataclass(frozen=True)
class Request:
    """A conversation ready for the decoder."""

    prompt: Prompt
    positions: Ints  # [3, seq]
    next_position: int
    images: tuple[EncodedImage, ...]

    def features_between(self, begin: int, end: int) -> ImageFeatures | None:
        """Features of the image tokens at begin..end of the prompt."""
        parts = []
        for (first, last), image in zip(self.prompt.image_spans, self.images, strict=True):
            inside = slice(max(begin, int(first)) - int(first), min(end, int(last)) - int(first))
            if inside.start < inside.stop:
                parts.append(image.features[inside])
        return ImageFeatures.join(parts) if parts else None


def make_request(
    prompts: PromptBuilder,
    positions: PositionSpec,
    messages: Sequence[Message],
    images: tuple[EncodedImage, ...],
    **variables: Any,
) -> Request:
    """Token ids and positions of a conversation with its encoded images, in the order of `find_images`."""
    grids = [image.grid for image in images]
    prompt = prompts.build(messages, grids, **variables)
    rows, following = mrope_positions(prompt.ids, grids, positions)
    return Request(prompt, rows, following, images)


def user_message(text: str, images: Sequence[Any] = ()) -> dict[str, Any]:
    """A user turn with its images before the text."""
    blocks: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*blocks, {"type": "text", "text": text}]}
