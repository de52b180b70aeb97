"""The tokenizer of a checkpoint as transformers completes it: tokenizer.json, and tokens that other files add."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from ..runtimes.files import read_json
from ..runtimes.tokenizer_check import make_tokenizer
from ..runtimes.tokenizer_check import open_tokenizer as read_tokenizer
from ..targets.errors import InputError
from .checkpoint import Checkpoint
from .processor_files import json_file

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token


def tokenizer_values(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of tokenizer.json with the tokens that transformers adds behind its own; InputError without one."""
    values, known = read_json(checkpoint.tokenizer_path), checked_tokenizer(checkpoint.tokenizer_path)
    size, names = known.get_vocab_size(), set(known.get_vocab())
    added: list[dict[str, Any]] = []
    for number, token in sorted(_listed(checkpoint).items()):
        if token["content"] not in names and number == size + len(added):  # the next id is the only one that is free
            added.append({"id": number, "content": token["content"], **{f: bool(token.get(f)) for f in FLAGS}})
    return {**values, "added_tokens": [*(values.get("added_tokens") or []), *added]} if added else values


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The same as a tokenizer, without truncation and padding."""
    return make_tokenizer(json.dumps(tokenizer_values(checkpoint)).encode(), checkpoint.tokenizer_path)


def checked_tokenizer(path: Any) -> Tokenizer:
    """A tokenizer.json as it is; InputError for one that the library does not take, whatever it raises."""
    return read_tokenizer(path)


def _listed(checkpoint: Checkpoint) -> dict[int, dict[str, Any]]:
    """Tokens by id, of tokenizer_config.json or else of added_tokens.json."""
    listed = checkpoint.tokenizer_config.get("added_tokens_decoder")
    if listed is None:
        older = json_file(checkpoint.model_path / "added_tokens.json")
        listed = {number: {"content": content, "normalized": True} for content, number in older.items()}
    try:
        found = {int(number): dict(token) for number, token in listed.items()}
        usable = all(isinstance(token["content"], str) for token in found.values())
    except (AttributeError, KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise InputError(f"{checkpoint.path} lists added tokens wrongly; expected their content by number")
    return found
