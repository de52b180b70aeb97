"""The tokenizer of a checkpoint as llama.cpp keeps it: tokens, their kinds, merges, special tokens, chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gguf
from gguf import TokenType
from tokenizers import Tokenizer

from ...targets.errors import InputError
from ..checkpoint import Checkpoint
from ..tokenizer_files import SourceTokenizer

# llama.cpp names what splits text into words; each name stands for the pattern in tokenizer.json
# (llama-vocab.cpp quotes them).
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+":
        "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+":
        "qwen35",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+":
        "llama-bpe",
}  # fmt: skip


def check(source: SourceTokenizer) -> str:
    """llama.cpp's name of how the tokenizer splits text; InputError for tokenizers that it is not certain about."""
    values = source.values
    pattern = _pattern(values.get("pre_tokenizer") or {})
    if values.get("model", {}).get("type") != "BPE" or pattern not in SPLITS:
        raise InputError(
            f"{source.checkpoint.tokenizer_path} splits text in a way that llama.cpp has no certain name for "
            f"({pattern or 'no pattern'}); expected a byte-level BPE tokenizer that splits as "
            f"{', '.join(SPLITS.values())}"
        )
    return SPLITS[pattern]


def _pattern(pre_tokenizer: dict[str, Any]) -> str:
    """The regular expression of the first splitting step."""
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    found = (step.get("pattern", {}).get("Regex") for step in steps if step.get("type") == "Split")
    return str(next(found, None) or "")


def add_vocabulary(writer: gguf.GGUFWriter, source: SourceTokenizer, size: int, ends: Sequence[int]) -> None:
    """Add the tokenizer to a file whose token table has `size` rows; answers end at the tokens `ends`."""
    checkpoint, tokenizer = source.checkpoint, source.library
    tokens, kinds = _tokens(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(check(source))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = _special(checkpoint)
    for end in ("bos", "eos"):  # a byte-level tokenizer adds neither, which gguf 0.19 does not say yet
        special.add_special_token.setdefault(end, False)
    eos = tokenizer.token_to_id(checkpoint.special_tokens.get("eos_token", ""))
    special.special_token_ids["eos"] = ends[0] if eos is None else eos
    if special.special_token_ids["eos"] != ends[0]:
        writer.add_eot_token_id(ends[0])
    special.chat_template = checkpoint.chat_template
    special.add_to_gguf(writer, quiet=True)


def _special(checkpoint: Checkpoint) -> gguf.SpecialVocab:
    try:
        return gguf.SpecialVocab(checkpoint.model_path, load_merges=True)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise InputError(
            f"llama.cpp's own library cannot read the special tokens of {checkpoint.path} ({error}); correct "
            "tokenizer_config.json and the token ids of config.json"
        ) from error


def _tokens(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int]]:
    """Text and kind of each id; rows without a token are padding of the table."""
    tokens = [f"[PAD{token}]" for token in range(size)]
    kinds: list[int] = [TokenType.UNUSED] * size
    for text, token in tokenizer.get_vocab(with_added_tokens=True).items():
        if token >= size:
            raise InputError(f"the tokenizer has the token {text!r} with id {token}; the token table has {size} rows")
        tokens[token], kinds[token] = text, TokenType.NORMAL
    for token, added in tokenizer.get_added_tokens_decoder().items():
        text = added.content
        if not added.normalized:  # llama.cpp takes these as they are
            text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        special = added.special or (text.startswith("<|") and text.endswith("|>"))
        tokens[token], kinds[token] = text, TokenType.CONTROL if special else TokenType.USER_DEFINED
    return tokens, kinds
