"""Which tokenizer.json files are taken: byte-level BPE of the components that the supported families use, and what
SentencePiece's models become (Llama 2, Vicuna): pieces with "▁" for spaces, and bytes for what these cannot spell.

Others could take any time or memory (regular expressions that backtrack, replacements that grow) or end the library in
a panic. What was read here is written anew for the library, so that it reads nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from tokenizers import Tokenizer

from ...targets.errors import InputError
from ..bundle.ranges import Token

MOST_BYTES = 40_000_000  # those of published models have up to 33 million
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


class AddedToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token that is found before the text is split."""

    id: Id
    content: Token
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class TokenizerFile(msgspec.Struct, frozen=True):
    """A tokenizer.json but for truncation and padding, which are never wanted."""

    model: BPE | Unigram
    version: Literal["1.0"] = "1.0"
    added_tokens: Annotated[list[AddedToken], Meta(max_length=100_000)] = []
    normalizer: NFC | NFD | NFKC | NFKD | Prepend | Replace | Normalizers | None = None
    pre_tokenizer: Split | ByteLevel | Digits | Metaspace | PreTokenizers | None = None
    post_processor: ByteLevel | TemplateProcessing | PostProcessors | None = None
    decoder: ByteLevel | Decoders | None = None


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, without the truncation and padding it may ask for; raises InputError if it is unusable."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); export the bundle again.") from None
    return make_tokenizer(data, path)


def make_tokenizer(data: bytes, where: object) -> Tokenizer:
    """The tokenizer in the bytes of a tokenizer.json, as `open_tokenizer`."""
    if len(data) > MOST_BYTES:
        raise InputError(f"{where} has more than {MOST_BYTES} bytes, more than any tokenizer of a supported model.")
    try:
        checked = msgspec.json.decode(data, type=TokenizerFile)
        if checked.model.entries > MOST_ENTRIES:
            raise ValueError(f"it has more than {MOST_ENTRIES} tokens")
        text = msgspec.json.encode(checked).decode("utf-8")
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{where} is not a tokenizer that lensmith supports: {reason}; use that of the model."
        ) from None
    with panics_told(f"{where} is not a usable tokenizer"):
        tokenizer = Tokenizer.from_str(text)
    return tokenizer


@contextmanager
def panics_told(what: str) -> Iterator[None]:
    """Whatever the library raises as an InputError; its panics are no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{what} ({reason}); use the tokenizer.json of the model.") from None
