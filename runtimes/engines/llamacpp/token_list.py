"""Whether the tokenizer of a GGUF file is one that llama.cpp can read, which trusts some of it and ends the process.

What it asserts or reads without looking stands in `llama_vocab::impl::load` of its llama-vocab.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .header import Header, damaged

PREFIX = "tokenizer.ggml."
MODELS = ("gpt2", "llama")  # as llama.cpp calls byte-level BPE, and that of SentencePiece
PLAIN: Mapping[str, type] = {"model": str, "pre": str, "add_bos_token": bool, "add_eos_token": bool,
                             "add_sep_token": bool, "add_space_prefix": bool}  # fmt: skip
NUMBERS: Mapping[str, str] = {"token_type": "int32", "scores": "float32"}  # one for each token
BYTE = 6  # a token type
SPELLED = re.compile(rb"<0x[0-9A-F]{2}>")


def check_tokens(header: Header, size: int) -> None:
    """InputError unless the file has `size` different tokens, and of each what belongs to it."""
    found = {key.removeprefix(PREFIX): value for key, value in header.metadata.items() if key.startswith(PREFIX)}
    for key in ("model", "tokens", "token_type", *(("merges",) if found.get("model") == "gpt2" else ())):
        if key not in found:
            raise damaged(header.path, f"it does not say {PREFIX}{key}")
    for key, value in found.items():
        wrong = _wrong(key, value, size)
        if wrong:
            raise damaged(header.path, f"{PREFIX}{key} {wrong}")
    # llama.cpp finds tokens by their text, which to it ends at a zero byte
    texts = found["tokens"]
    kinds = found["token_type"]
    numbers: dict[bytes, int] = {}
    for number, text in enumerate(texts):
        word = text.partition(b"\0")[0] or b"[EMPTY_%d]" % number
        other = numbers.setdefault(word, number)
        if other != number:
            raise damaged(header.path, f"its tokens {other} and {number} have the same text {_shown(word)}")
    for byte in np.flatnonzero(kinds == BYTE):
        if not SPELLED.fullmatch(texts[byte]):
            raise damaged(header.path, f"its token {byte} is a byte of the text {_shown(texts[byte])}")


def _wrong(key: str, value: Any, size: int) -> str:
    """What is wrong with a value; nothing where it is right."""
    if key in PLAIN:
        expected = " or ".join(MODELS) if key == "model" else f"a value of type {PLAIN[key].__name__}"
        right = type(value) is PLAIN[key] and (key != "model" or value in MODELS)
        return "" if right else f"is {str(value)[:80]!r}, expected {expected}"
    if key in NUMBERS:
        right = isinstance(value, np.ndarray) and value.dtype == NUMBERS[key] and len(value) == size
        return "" if right else f"is not an array of {size} {NUMBERS[key]}"
    if key in ("tokens", "merges"):
        right = isinstance(value, list) and (key == "merges" or len(value) == size)
        return "" if right else f"is not an array of texts, one for each of the {size} tokens of its table"
    if key.endswith("_token_id"):
        right = type(value) is int and 0 <= value < size
        return "" if right else f"is {str(value)[:80]!r} of {size} tokens"
    return "is unknown to this lensmith"


def _shown(text: bytes) -> str:
    """The beginning of a text as people read it."""
    return repr(text[:80].decode("utf-8", "replace"))
