"""A conversation ready for the decoder: token ids, positions and the features of its images and videos."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from PIL.Image import Image

from ...targets.errors import InputError
from ..engines.contract import ImageFeatures, Ints
from ..media.frames import VideoSource
from ..media.sources import ImageSource
from .positions import PositionSpec, rotary_positions
from .prompt_builder import PromptBuilder
from .prompt_parts import Prompt, VideoLayout

Message = Mapping[str, Any]


@dataclass(frozen=True)
class EncodedImage:
    """One image or one of its tiles, or one temporal patch of a video, ready for the decoder."""

    key: bytes  # identity of its pixels after preprocessing
    grid: tuple[int, int, int]
    features: ImageFeatures


@dataclass(frozen=True)
class EncodedVideo:
    """One video ready for the decoder."""

    layout: VideoLayout
    frames: tuple[EncodedImage, ...]  # its temporal patches

    def joined(self) -> EncodedImage:
        """All of it as one grid, whose positions depend on the seconds, too."""
        parts = b"".join(frame.key for frame in self.frames), repr(self.layout.interval).encode()
        features = ImageFeatures.join([frame.features for frame in self.frames])
        return EncodedImage(hashlib.sha256(b" ".join(parts)).digest(), self.layout.grid, features)


@dataclass(frozen=True)
class Request:
    """A conversation ready for the decoder."""

    prompt: Prompt
    positions: Ints  # [3, seq]
    next_position: int
    images: tuple[EncodedImage, ...]  # in the order of the prompt's image_spans, those in tiles tile by tile
    system_end: int = 0  # tokens of the system's messages and tools: what prompts of other conversations begin with
    turn_end: int = 0  # tokens in front of the generation prompt: what the prompt of the next turn begins with

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
    images: Sequence[EncodedImage],
    videos: Sequence[EncodedVideo] = (),
    **variables: Any,
) -> Request:
    """Token ids and positions of a conversation with its encoded images and videos, each in the order it has them."""
    grids, layouts = [image.grid for image in images], [video.layout for video in videos]
    return assemble(prompts.build(messages, grids, layouts, **variables), positions, images, videos)


def assemble(
    prompt: Prompt, positions: PositionSpec, images: Sequence[EncodedImage], videos: Sequence[EncodedVideo]
) -> Request:
    """A prompt with its positions, and its encoded media in the order of their tokens."""
    rows, following = rotary_positions(prompt.ids, prompt.grids, positions, intervals=prompt.intervals)
    whole = positions.tokens_per_second is not None
    pieces = _pieces(images, prompt.image_spans[~prompt.of_video])
    sources = pieces, (part for video in videos for part in ([video.joined()] if whole else video.frames))
    ordered = tuple(next(sources[int(of_video)]) for of_video in prompt.of_video)
    return Request(prompt, rows, following, ordered)


def _pieces(images: Iterable[EncodedImage], spans: Ints) -> Iterator[EncodedImage]:
    """The images, those in tiles cut into what stands at each of the spans [pieces, (start, end)]."""
    lengths = iter((spans[:, 1] - spans[:, 0]).tolist())
    for image in images:
        length = next(lengths)
        if length >= len(image.features):
            yield image
            continue
        for piece, begin in enumerate(range(0, len(image.features), length)):
            part = image.features[begin : begin + length]
            yield EncodedImage(image.key + f"/{piece}".encode(), (1, 1, length), part)
            if begin:
                next(lengths)


def user_message(
    text: str | None, images: Iterable[ImageSource] = (), videos: Iterable[VideoSource] = (), **wishes: Any
) -> dict[str, Any]:
    """A user turn with its images and videos before the text; `wishes` are those of each video: fps, num_frames, ...

    Raises InputError for a text that is none, for one image or video in place of a list, and for wishes without videos.
    """
    if not isinstance(text, str):
        raise InputError(
            f"the question is a {type(text).__name__}; expected a text (Model.generate takes conversations)"
        )
    blocks: list[dict[str, Any]] = [{"type": "image", "image": image} for image in _listed("images", images)]
    clips = _listed("videos", videos)
    unread = next((name for name, wish in wishes.items() if wish is not None), None)
    if unread is not None and not clips:
        raise InputError(f"{unread} has no effect, since no video is given; leave it out")
    blocks += [{"type": "video", "video": video, **wishes} for video in clips]
    return {"role": "user", "content": [*blocks, {"type": "text", "text": text}]}


def question_message(
    text: str | None, images: Iterable[ImageSource] = (), videos: Iterable[VideoSource] = (), **wishes: Any
) -> dict[str, Any]:
    """The same for a question; InputError for one that is empty, without an image or video that it could be about."""
    message = user_message(text, images, videos, **wishes)
    *media, words = message["content"]
    if not media and not words["text"].strip():
        raise InputError("the question is empty, and no image or video is given; write what to answer")
    return message


def _listed(name: str, given: Any) -> list[Any]:
    single = isinstance(given, str | bytes | bytearray | memoryview | Mapping | np.ndarray | PathLike | Image)
    if single or not isinstance(given, Iterable) or callable(getattr(given, "read", None)):
        raise InputError(f"{name} is a {type(given).__name__}; expected a list, such as [{name[:-1]}]")
    return list(given)
