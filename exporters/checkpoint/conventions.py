"""What transformers' classes for a type of model do to its files, whatever the files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .names import Rules

END = "<|endoftext|>"
QWEN_TOKENS = {"eos_token": END, "unk_token": END, "pad_token": END}  # of Qwen2Tokenizer


@dataclass(frozen=True)
class Conventions:
    """Of one model_type."""

    names: Rules = ()  # of tensors; empty: as they are
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # where tokenizer_config.json leaves them out
    words: str | None = None  # the pattern that the tokenizer's class splits text by; None: that of tokenizer.json
    named_tokenizer: bool = False  # tokenizer_config.json may name another class of tokenizers
    text_only: bool = False  # a tokenizer takes the place of a processor
    files_first: bool = False  # settings of processors have files of their own before processor_config.json
    one_size: bool = False  # images all have one size, and positions do not depend on them
    tiled: bool = False  # and the encoder takes all tiles of an image at once


def conventions_of(model_type: object) -> Conventions:
    """Those of a family; none for types that lensmith does not compile."""
    from ..families.families import FAMILIES  # which open checkpoints themselves

    found = FAMILIES.get(str(model_type))
    return Conventions() if found is None else found.conventions
