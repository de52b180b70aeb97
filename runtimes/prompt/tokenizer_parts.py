"""What a tokenizer.json may hold: each part as a record with limits."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from ..bundle.ranges import Token

MOST_ENTRIES = 2_000_000  # of the vocabulary, and of its merges


Affix: TypeAlias = Annotated[str, Meta(max_length=32)]


Id: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 24)]


# Regular expressions that match in a time proportional to the text: of GPT-2, Llama 3, Qwen2 to Qwen3, and Qwen3.5.
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
)


class Component(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """A part of a tokenizer, by its type."""


class NFC(Component, frozen=True, tag="NFC"):
    """Canonical composition."""


class NFD(Component, frozen=True, tag="NFD"):
    """Canonical decomposition."""


class NFKC(Component, frozen=True, tag="NFKC"):
    """Compatibility composition."""


class NFKD(Component, frozen=True, tag="NFKD"):
    """Compatibility decomposition."""


class Space(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is replaced in a text."""

    String: Literal[" "]


class Prepend(Component, frozen=True, tag="Prepend"):
    """A space in front of each text between special tokens."""

    prepend: Literal["▁"]


class Replace(Component, frozen=True, tag="Replace"):
    """Spaces as SentencePiece writes them."""

    pattern: Space
    content: Literal["▁"]


class Normalizers(Component, frozen=True, tag="Sequence"):
    """One after the other."""

    normalizers: Annotated[list[NFC | NFD | NFKC | NFKD | Prepend | Replace], Meta(max_length=8)]


class ByteLevel(Component, frozen=True, tag="ByteLevel"):
    """Bytes as letters."""

    add_prefix_space: bool = True
    trim_offsets: bool = True
    use_regex: bool = True


class Metaspace(Component, frozen=True, tag="Metaspace"):
    """Spaces as SentencePiece writes them, and one in front of the first text, of all or of none."""

    replacement: Literal["▁"]
    prepend_scheme: Literal["first", "never", "always"] = "always"
    split: bool = True


class Digits(Component, frozen=True, tag="Digits"):
    """Numbers by themselves."""

    individual_digits: bool = False


class Pattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A regular expression."""

    Regex: str


class Split(Component, frozen=True, tag="Split"):
    """Splits a text."""

    pattern: Pattern
    behavior: Literal["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    invert: bool = False

    def __post_init__(self) -> None:
        if self.pattern.Regex not in PATTERNS:
            raise ValueError(f"the regular expression {self.pattern.Regex[:100]!r} is not of a supported family")


class PreTokenizers(Component, frozen=True, tag="Sequence"):
    """One after the other."""

    pretokenizers: Annotated[list[Split | ByteLevel | Digits], Meta(max_length=8)]


class Spaced(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is replaced in pieces."""

    String: Literal["▁"]


class ToSpaces(Component, frozen=True, tag="Replace"):
    """Spaces as they are meant."""

    pattern: Spaced
    content: Literal[" "]


class ByteFallback(Component, frozen=True, tag="ByteFallback"):
    """Bytes that are spelled out, as characters."""


class Fuse(Component, frozen=True, tag="Fuse"):
    """All as one text."""


class Strip(Component, frozen=True, tag="Strip"):
    """Without the first space."""

    content: Literal[" "]
    start: Literal[0, 1]
    stop: Literal[0]


class Decoders(Component, frozen=True, tag="Sequence"):
    """Those of SentencePiece's pieces."""

    decoders: Annotated[list[ToSpaces | ByteFallback | Fuse | Strip], Meta(max_length=4)]

    def __post_init__(self) -> None:
        kinds = [type(part) for part in self.decoders]
        if kinds not in ([ToSpaces, ByteFallback, Fuse], [ToSpaces, ByteFallback, Fuse, Strip]):
            raise ValueError("its decoders are not Replace, ByteFallback, Fuse and Strip in this order")


class TemplateToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token or a text in a template."""

    id: Token
    type_id: Annotated[int, Meta(ge=0, le=16)]


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of the two."""

    SpecialToken: TemplateToken | UnsetType = UNSET
    Sequence: TemplateToken | UnsetType = UNSET


class SpecialToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a template puts in."""

    id: Token
    ids: Annotated[list[Id], Meta(max_length=16)]
    tokens: Annotated[list[Token], Meta(max_length=16)]


class TemplateProcessing(Component, frozen=True, tag="TemplateProcessing"):
    """Puts special tokens around a text."""

    single: Annotated[list[Piece], Meta(max_length=16)]
    pair: Annotated[list[Piece], Meta(max_length=16)]
    special_tokens: Annotated[dict[Token, SpecialToken], Meta(max_length=16)]


class PostProcessors(Component, frozen=True, tag="Sequence"):
    """One after the other."""

    processors: Annotated[list[ByteLevel | TemplateProcessing], Meta(max_length=8)]


class BPE(Component, frozen=True, tag="BPE"):
    """The model; the library reads vocabulary and merges."""

    vocab: Raw
    merges: Raw
    dropout: Annotated[float, Meta(ge=0, le=0)] | None = None
    unk_token: Token | None = None
    continuing_subword_prefix: Affix | None = None
    end_of_word_suffix: Affix | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False

    @property
    def entries(self) -> int:
        """Tokens, or half the merges, where these are more."""
        return max(bytes(self.vocab).count(b":"), bytes(self.merges).count(b",") // 2)


class Unigram(Component, frozen=True, tag="Unigram"):
    """The model that weighs all ways to cut a text, whose pieces are short."""

    vocab: list[tuple[Annotated[str, Meta(max_length=64)], float]]
    unk_id: Id | None = None
    byte_fallback: bool = False

    @property
    def entries(self) -> int:
        """Tokens."""
        return len(self.vocab)
