"""The special tokens of a tokenizer as transformers names them and hands them to the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...targets.errors import InputError

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(usual: Mapping[str, str], config: Mapping[str, Any], legacy: Mapping[str, Any]) -> dict[str, str]:
    """Of a tokenizer_config.json and a special_tokens_map.json, which only counts where the former lists no tokens.

    `usual` are those of the tokenizer's class, for keys that are left out; null stays none.

    InputError for one that is no text, as a half of a surrogate pair is none.
    """
    values = {**usual, **config}
    if "added_tokens_decoder" not in config:
        values |= legacy
    named = values.get("extra_special_tokens")
    values |= named if isinstance(named, dict) else {}
    tokens = {key: _content(value) for key, value in values.items() if key in NAMES or key.endswith("_token")}
    for key, token in tokens.items():
        if token is not None and not is_text(token):
            raise InputError(f"tokenizer_config.json or special_tokens_map.json names the {key} {ascii(token)[:100]}, "
                             "which holds half of a surrogate pair; expected text")  # fmt: skip
    return {key: token for key, token in tokens.items() if token is not None}


def is_text(value: str) -> bool:
    """Whether a text has no halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _content(value: Any) -> str | None:
    """The text of a token, which may be an object."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
