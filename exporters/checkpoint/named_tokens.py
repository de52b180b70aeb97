"""A stand-in for a tokenizer that is not here: it knows the tokens that configurations number."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from .folder import Checkpoint
from .tokenizer_files import SourceTokenizer

NUMBERS = re.compile(r"(\w+)_token_(?:id|index)")  # keys of config.json, with the role of the token
UNKNOWN = "<unknown>"


def open_source_tokenizer(checkpoint: Checkpoint) -> SourceTokenizer:
    """The tokenizer of a checkpoint; a stand-in where only a plan is wanted and there is none."""
    tokenizer = SourceTokenizer(checkpoint)
    return tokenizer if tokenizer.is_here else NamedTokens(checkpoint)


class NamedTokens(SourceTokenizer):
    """Tokens that configurations name or number, and no others."""

    @functools.cached_property
    def library(self) -> Tokenizer:
        """A tokenizer of whole words."""
        words = {name: number for number, name in _names(self.checkpoint).items()}
        return Tokenizer(WordLevel({UNKNOWN: max(words.values(), default=0) + 1, **words}, unk_token=UNKNOWN))


def _names(checkpoint: Checkpoint) -> dict[int, str]:
    """Tokens by number: as tokenizer_config.json or the processor calls them, else by their roles."""
    listed = checkpoint.tokenizer_config.get("added_tokens_decoder") or {}
    known = {int(number): str(token["content"]) for number, token in listed.items()}
    for role, number in _numbered(checkpoint.config):
        known.setdefault(number, str(checkpoint.processor_config.get(f"{role}_token", f"<{role}>")))
    known |= {number: f"<end {number}>" for number in _ends(checkpoint) if number not in known}
    return known


def _numbered(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        found = NUMBERS.fullmatch(key)
        if found and type(value) is int and found[1] != "eos":
            yield found[1], value


def _ends(checkpoint: Checkpoint) -> set[int]:
    sources = (checkpoint.generation_config, checkpoint.config, checkpoint.config.get("text_config") or {})
    given = (source.get("eos_token_id") for source in sources)
    return {number for each in given for number in (each if isinstance(each, list) else [each]) if type(number) is int}
