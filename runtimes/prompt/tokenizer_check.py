"""Which tokenizer.json files are taken: byte-level BPE of the components that the supported families use, and what
SentencePiece's models become (Llama 2, Vicuna): pieces with "▁" for spaces, and bytes for what these cannot spell.

Others could take any time or memory (regular expressions that backtrack, replacements that grow) or end the library in
a panic. What was read here is written anew for the library, so that it reads nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from tokenizers import Tokenizer

from ...targets.errors import InputError
from ..bundle.ranges import Token
from .tokenizer_parts import (
    BPE,
    MOST_ENTRIES,
    NFC,
    NFD,
    NFKC,
    NFKD,
    ByteLevel,
    Decoders,
    Digits,
    Id,
    Metaspace,
    Normalizers,
    PostProcessors,
    Prepend,
    PreTokenizers,
    Replace,
    Split,
    TemplateProcessing,
    Unigram,
)

MOST_BYTES = 40_000_000  # those of published models have up to 33 million


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
