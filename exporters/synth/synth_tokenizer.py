"""A byte-level BPE tokenizer made by code: true special tokens and rules, an invented ordinary vocabulary.

Any text can be encoded. Common English words are one token; the tokens after them are invented words that no text
produces but that a random model may, so that its output can be decoded and streamed like that of a real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

WORDS = Path(__file__).parent / "synth_configs" / "words.txt"  # common English, most frequent first

LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
CONSONANTS, VOWELS = "bdfghjklmnprstvwyzcq", "aeiou"


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for the bytes in a byte-level BPE, in GPT-2's order of ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def merges() -> Iterator[tuple[str, str]]:
    """Merge rules, best first: prefixes of common words behind a space, then all pairs of letters."""
    for word in WORDS.read_text(encoding="utf-8").split():
        for end in range(len(word)):
            yield ("Ġ" + word[:end], word[end])
    yield from ((a, b) for a, b in product(LETTERS, LETTERS))
    yield from (("Ġ", letter.upper()) for letter in LETTERS)


def invented_words() -> Iterator[str]:
    """Tokens of three syllables behind a space: 1,000,000 of them."""
    syllables = [c + v for c, v in product(CONSONANTS, VOWELS)]
    return ("Ġ" + "".join(parts) for parts in product(syllables, repeat=3))


def vocabulary(size: int) -> tuple[dict[str, int], list[str]]:
    """An ordinary vocabulary of exactly `size` (at least 256) tokens, and the merges whose results are in it."""
    tokens = dict.fromkeys(byte_alphabet())
    rules: dict[str, None] = {}
    for left, right in merges():
        if len(tokens) < size or left + right in tokens:
            tokens[left + right] = None
            rules[f"{left} {right}"] = None
    for word in invented_words():
        if len(tokens) >= size:
            break
        tokens[word] = None
    return {token: i for i, token in enumerate(tokens)}, list(rules)


def fill_tokenizer(skeleton: dict[str, Any], size: int) -> dict[str, Any]:
    """A tokenizer.json from one without vocabulary: `size` ordinary tokens, the added ones right behind them."""
    vocab, rules = vocabulary(size)
    added = [token | {"id": size + i} for i, token in enumerate(skeleton["added_tokens"])]
    return skeleton | {"added_tokens": added, "model": skeleton["model"] | {"vocab": vocab, "merges": rules}}
