"""The tokenizer of a checkpoint as llama.cpp keeps it: tokens, their kinds, merges, special tokens, chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gguf
from gguf import TokenType
from tokenizers import Tokenizer

from ....targets.errors import InputError
from ...checkpoint.folder import Checkpoint
from ...checkpoint.tokenizer_files import SourceTokenizer

DIGITS = "single digits, then words as GPT-2 has them"
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
    DIGITS: "smollm",
}  # fmt: skip


PIECES = "default"  # how llama.cpp calls the splitting of SentencePiece's tokenizers


def check(source: SourceTokenizer) -> str:
    """llama.cpp's name of how the tokenizer splits text; InputError for tokenizers that it is not certain about."""
    values = source.values
    if _of_pieces(values):
        scores(values["model"])
        return PIECES
    pattern = _pattern(values.get("pre_tokenizer") or {})
    if values.get("model", {}).get("type") != "BPE" or pattern not in SPLITS:
        raise InputError(
            f"{source.checkpoint.tokenizer_path} splits text in a way that llama.cpp has no certain name for "
            f"({pattern or 'no pattern'}); expected a byte-level BPE tokenizer that splits as "
            f"{', '.join(SPLITS.values())}"
        )
    return SPLITS[pattern]


def _of_pieces(values: dict[str, Any]) -> bool:
    """Whether a tokenizer is what a BPE model of SentencePiece becomes."""
    decoders = (values.get("decoder") or {}).get("decoders", [])
    return values.get("model", {}).get("type") == "BPE" and any(part["type"] == "ByteFallback" for part in decoders)


def scores(model: dict[str, Any]) -> list[float]:
    """What SentencePiece gives each token, by its id: of two neighbours llama.cpp joins those that make the best token.

    tokenizer.json has an order of merges instead. InputError unless that says the same: all ways to make a token follow
    each other, and there are all of them.
    """
    vocab, found = model["vocab"], dict[str, int]()
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = [left + right for left, right in merges]
    for rank, token in enumerate(made):
        if token in found and made[rank - 1] != token:
            raise _unlike(token)
        found.setdefault(token, rank)
    ways = set(merges)
    for token in found:
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if any(left in vocab and right in vocab and (left, right) not in ways for left, right in splits):
            raise _unlike(token)
    ranks = [0.0] * (max(vocab.values()) + 1)
    for token, number in vocab.items():
        ranks[number] = -float(found[token]) if token in found else 0.0
    return ranks


def _unlike(token: str) -> InputError:
    return InputError(
        f"the merges of tokenizer.json for {token[:100]!r} are not those of a SentencePiece model, by whose scores "
        "llama.cpp would cut texts in another way; use --format onnx"
    )


def _pattern(pre_tokenizer: dict[str, Any]) -> str:
    """The regular expression of the first splitting step, or DIGITS for the steps of that name."""
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    digits, words = ({"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False})
    if len(steps) == 2 and steps[0] == digits and words.items() <= steps[1].items() and steps[1].get("use_regex", True):
        return DIGITS
    found = (step.get("pattern", {}).get("Regex") for step in steps if step.get("type") == "Split")
    return str(next(found, None) or "")


def add_vocabulary(writer: gguf.GGUFWriter, source: SourceTokenizer, size: int, ends: Sequence[int]) -> None:
    """Add the tokenizer to a file whose token table has `size` rows; answers end at the tokens `ends`."""
    checkpoint, tokenizer = source.checkpoint, source.library
    tokens, kinds = _tokens(tokenizer, size)
    pieces = _of_pieces(source.values)
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre(check(source))
    writer.add_token_list(tokens)
    if pieces:
        found = scores(source.values["model"])
        writer.add_token_scores([*found, *[0.0] * (size - len(found))])
        # A space in front of texts, which llama.cpp puts behind every special token, too, as Llama's older way did.
        normalizer, splitter = source.values.get("normalizer") or {}, source.values.get("pre_tokenizer") or {}
        prepends = any(part["type"] == "Prepend" for part in normalizer.get("normalizers", [normalizer]) if part)
        writer.add_add_space_prefix(prepends or splitter.get("prepend_scheme", "never") != "never")
        kinds = [_kind_of_piece(text, kind, tokenizer) for text, kind in zip(tokens, kinds, strict=True)]
    writer.add_token_types(kinds)
    special = _special(checkpoint, load_merges=not pieces)
    for end, token in zip(("bos", "eos"), _added(source), strict=True):  # gguf 0.19 does not say it of all
        special.add_special_token[end] = token
    eos = tokenizer.token_to_id(checkpoint.special_tokens.get("eos_token", ""))
    special.special_token_ids["eos"] = ends[0] if eos is None else eos
    if special.special_token_ids["eos"] != ends[0]:
        writer.add_eot_token_id(ends[0])
    special.chat_template = checkpoint.chat_template
    special.add_to_gguf(writer, quiet=True)


def _kind_of_piece(text: str, kind: int, tokenizer: Tokenizer) -> int:
    """The kind of a token that is a byte, or what stands for unknown ones, and else as it is."""
    if kind == TokenType.NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return TokenType.BYTE
    return TokenType.UNKNOWN if text == getattr(tokenizer.model, "unk_token", None) else kind


def _added(source: SourceTokenizer) -> tuple[bool, bool]:
    """Whether the tokenizer itself puts a token in front of a text, and one behind it."""
    ids = source.library.encode("", add_special_tokens=True).ids
    bos = source.library.token_to_id(source.checkpoint.special_tokens.get("bos_token", ""))
    eos = source.library.token_to_id(source.checkpoint.special_tokens.get("eos_token", ""))
    return bool(ids) and ids[0] == bos, bool(ids) and ids[-1] == eos and (len(ids) > 1 or bos != eos)


def _special(checkpoint: Checkpoint, *, load_merges: bool) -> gguf.SpecialVocab:
    try:
        return gguf.SpecialVocab(checkpoint.model_path, load_merges=load_merges)
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
