"""What the JSON files of a bundle's `golden/` folder may say, with types and ranges that are checked on reading."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ..bundle.ranges import (
    Hash,
    Name,
    Size,
    Text,
    TokenId,
)
from ..bundle.section import Section
from ..storage.files import MOST_JSON_BYTES
from ..storage.reading import read_limited

T = TypeVar("T")
FORMAT_VERSION = 1
Distance: TypeAlias = Annotated[float, Meta(ge=0, le=1e30)]
Ids: TypeAlias = Annotated[list[TokenId], Meta(min_length=1, max_length=1 << 24)]


class TextBlock(Section, frozen=True, tag_field="type", tag="text"):
    """Words of a message."""

    text: Annotated[str, Meta(max_length=20_000)]


class ImageBlock(Section, frozen=True, tag_field="type", tag="image"):
    """A picture in a message, a file of the bundle, and how large it may be."""

    image: Name
    max_pixels: Size | UnsetType = UNSET


class VideoBlock(Section, frozen=True, tag_field="type", tag="video"):
    """A video in a message, a file of the bundle."""

    video: Name


class TurnEntry(Section, frozen=True):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[TextBlock | ImageBlock | VideoBlock], Meta(max_length=1000)]

    @property
    def files(self) -> list[str]:
        """The pictures and videos."""
        return [part.image if isinstance(part, ImageBlock) else part.video
                for part in self.content if not isinstance(part, TextBlock)]  # fmt: skip


class ImageEntry(Section, frozen=True):
    """A picture or video: its grid in patches, the hash of these, and how large a picture may be."""

    file: Name
    grid: tuple[Size, Size, Size]
    patches_sha256: Hash
    max_pixels: Size | UnsetType = UNSET


class CaseEntry(Section, frozen=True):
    """A conversation, the ids of its prompt and of the answer."""

    name: Name
    messages: Annotated[list[TurnEntry], Meta(min_length=1, max_length=1000)]
    token_ids: Ids
    answer: Ids

    @property
    def tokens(self) -> int:
        """Of prompt and answer."""
        return len(self.token_ids) + len(self.answer)


class TracesEntry(Section, frozen=True):
    """All of cases.json."""

    format_version: Annotated[int, Meta(ge=1, le=FORMAT_VERSION)]
    reference: Text
    images: Annotated[list[ImageEntry], Meta(max_length=10_000)]
    cases: Annotated[list[CaseEntry], Meta(max_length=10_000)]


class SpreadEntry(Section, frozen=True):
    """How far runs of a graph were apart."""

    row: Distance
    overall: Distance


class BuiltEntry(Section, frozen=True):
    """All of built.json."""

    digests: dict[str, dict[str, str]]
    spread: dict[str, SpreadEntry]
    settings: dict[str, str]


def read_entry(path: Path, kind: type[T]) -> T:
    """The content of a JSON file as a record of this kind; ValueError or RecursionError where it is another one.

    msgspec's own reader refuses NaN, infinity and halves of surrogates, too.
    """
    return msgspec.json.decode(read_limited(path, MOST_JSON_BYTES, "a file of JSON"), type=kind)


def briefly(error: BaseException) -> str:
    """The words of an error in one line, which may quote much of a file."""
    return " ".join(str(error).split())[:300] or type(error).__name__
