"""Generated ids into text, piece by piece: whole characters only, and nothing of a stop string.

Byte-level tokenizers spell each token in 256 printable characters, one for each byte. So a token's bytes are looked up
and go through an incremental UTF-8 decoder: constant work for each token, and the joined pieces equal
`tokenizer.decode(ids, skip_special_tokens=True)`. Bytes that are no UTF-8 give U+FFFD, one for each maximal invalid
part (the Unicode standard's practice, section 3.9), as soon as they cannot become a character any more.

SentencePiece's tokenizers spell texts in pieces with "▁" for a space, and single bytes as "<0x0A>". A run of these is
text only once its end is known, since one wrong byte makes U+FFFD of all; the first space of an answer is left out.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence, Set
from typing import Protocol

from tokenizers import Tokenizer, decoders

from ...targets.errors import InputError


def byte_alphabet() -> dict[str, int]:
    """The byte of each character (GPT-2's bytes_to_unicode): printable Latin-1 itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = byte_alphabet()
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # as Rust reads two hexadecimal digits
_PIECES = (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"])


class Spelling(Protocol):
    """How tokens spell a text."""

    def spelled(self, token: str) -> bytes:
        """What a token alone stands for."""

    def push(self, token: str) -> str:
        """The text that is certain after one more token."""

    def finish(self) -> str:
        """The rest."""


class ByteSpelling:
    """Of byte-level tokenizers."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def spelled(self, token: str) -> bytes:
        try:
            return bytes([_BYTES[char] for char in token])
        except KeyError:  # an added token in plain text
            return token.encode()

    def push(self, token: str) -> str:
        return self._utf8.decode(self.spelled(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class PieceSpelling:
    """Of SentencePiece's tokenizers."""

    def __init__(self, stripped: int) -> None:
        """`stripped`: how many spaces at the beginning of a text are left out, 0 or 1."""
        self._stripped = stripped
        self._run = bytearray()

    def spelled(self, token: str) -> bytes:
        piece = token.replace("▁", " ")
        byte = _BYTE.fullmatch(piece)
        return piece.encode() if byte is None else bytes([int(byte[1], 16)])

    def push(self, token: str) -> str:
        piece = token.replace("▁", " ")
        if (byte := _BYTE.fullmatch(piece)) is not None:
            self._run.append(int(byte[1], 16))
            return ""
        return self._without_first(self._spelled() + piece)

    def finish(self) -> str:
        return self._without_first(self._spelled())

    def _spelled(self) -> str:
        run = bytes(self._run)
        self._run.clear()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _without_first(self, text: str) -> str:
        if not text or not self._stripped:
            return text
        self._stripped = 0
        return text.removeprefix(" ")


def spelling_of(tokenizer: Tokenizer) -> Spelling:
    """How a tokenizer spells; InputError for decoders of other kinds."""
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        return ByteSpelling()
    parts = [] if tokenizer.decoder is None else json.loads(tokenizer.decoder.__getstate__()).get("decoders", [])
    if [part["type"] for part in parts] in _PIECES:
        return PieceSpelling(sum(part.get("start", 0) for part in parts))
    raise InputError(
        f"the tokenizer's decoder is {type(tokenizer.decoder).__name__}; expected ByteLevel, as Qwen's tokenizers "
        "have, or that of SentencePiece's pieces, as Llama 2 has"
    )


def special_tokens(tokenizer: Tokenizer) -> Set[int]:
    """The ids of tokens that are no text."""
    return {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}


class TextStream:
    """Text of one answer. At the first stop string `stopped_by` becomes it, after which nothing more comes out."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), kept: Set[int] = frozenset()) -> None:
        """`kept`: special tokens that have a text all the same, such as tags around thoughts.

        Raises InputError for an empty stop string and for a tokenizer that spells in another way.
        """
        self._spelling = spelling_of(tokenizer)
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop is {stop!r}; expected a list of strings that are not empty")
        self.stopped_by: str | None = None
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer) - kept
        self._stop = tuple(stop)
        self._held = ""  # the end of the text so far, while it may begin a stop string

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token, often empty or more than the token's own.

        Special tokens and ids beyond the vocabulary have none, as in `decode`.
        """
        token = None if token_id in self._special else self._tokenizer.id_to_token(token_id)
        return "" if token is None else self._emit(self._spelling.push(token), final=False)

    def finish(self) -> str:
        """The rest of the text; an unfinished character becomes U+FFFD."""
        return self._emit(self._spelling.finish(), final=True)

    def _emit(self, new: str, *, final: bool) -> str:
        if self.stopped_by is not None:
            return ""
        text = self._held + new
        found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self._stop if stop in text]
        if found:  # the one complete first wins, however the text was cut into tokens
            _, begin, self.stopped_by = min(found)
            self._held = ""
            return text[:begin]
        keep = 0 if final else self._unsure(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _unsure(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)
