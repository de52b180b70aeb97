"""The tokenizer of a checkpoint as transformers completes it: tokenizer.json, and tokens that other files add."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from tokenizers import Tokenizer

from ...runtimes.bundle.ranges import Token
from ...runtimes.prompt.tokenizer_check import make_tokenizer, open_tokenizer
from ...runtimes.prompt.tokenizer_parts import Id
from ...runtimes.storage.files import read_json
from ...targets.errors import InputError
from .folder import Checkpoint
from .processor_files import json_file

COMPOSED = ({"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]})
OWN, GPT2, LLAMA = "Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer"  # classes of transformers, without "Fast"
AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend")  # those that read tokenizer.json
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token


class ListedToken(msgspec.Struct, frozen=True):
    """A token as tokenizer_config.json lists it; flags that it leaves out are those of tokenizer.json."""

    content: Token
    single_word: bool | UnsetType = UNSET
    lstrip: bool | UnsetType = UNSET
    rstrip: bool | UnsetType = UNSET
    normalized: bool | UnsetType = UNSET
    special: bool | UnsetType = UNSET


@dataclass(frozen=True)
class SourceTokenizer:
    """The tokenizer of a checkpoint, of which each form is made once; all raise InputError for an unusable one."""

    checkpoint: Checkpoint

    @property
    def is_here(self) -> bool:
        """Whether the checkpoint has one; a folder of configurations alone may have none."""
        return (self.checkpoint.path / "tokenizer.json").is_file() or not self.checkpoint.outline

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        """The content of tokenizer.json with what transformers changes in it."""
        return completed(self.checkpoint, self._stored, self._plain)

    @functools.cached_property
    def library(self) -> Tokenizer:
        """The same as a tokenizer, without truncation and padding."""
        return self._plain if self.values == self._stored else make_tokenizer(self.data, self._path)

    @property
    def data(self) -> bytes:
        """The same as JSON, half the size of the usual indentation."""
        return msgspec.json.encode(self.values)

    @property
    def _path(self) -> Path:
        return self.checkpoint.tokenizer_path

    @functools.cached_property
    def _stored(self) -> dict[str, Any]:
        return read_json(self._path)

    @functools.cached_property
    def _plain(self) -> Tokenizer:
        return open_tokenizer(self._path)


def completed(checkpoint: Checkpoint, values: dict[str, Any], known: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json, `known` to the library, with what transformers changes in it.

    Tokens that tokenizer_config.json lists are found in the text as it says, and those that are not in tokenizer.json
    come behind it. InputError where no place is left for one, and for words that would be split in another way.
    """
    values = _as_its_class(checkpoint, values)
    _check_words(checkpoint, values)
    listed, size = _listed(checkpoint), known.get_vocab_size()
    added = [_flagged(token, listed, _plain(checkpoint)) for token in values.get("added_tokens") or []]
    more: set[str] = set()
    for number, token in sorted(listed.items()):
        content = token["content"]
        if content in more or known.token_to_id(content) is not None:
            continue
        if number != size + len(more):  # the next id is the only one that is free
            raise InputError(
                f"{checkpoint.path} lists the token {content[:100]!r} as number {number}, which "
                "tokenizer.json does not have; the two files do not belong together: save the tokenizer again with "
                "transformers"
            )
        more.add(content)
        added.append({"id": number, "content": content, **{f: bool(token.get(f)) for f in FLAGS}})
    return {**values, "added_tokens": added}


def _class(checkpoint: Checkpoint) -> str:
    """The class of transformers that makes the tokenizer of a checkpoint, which may name another."""
    name = str(checkpoint.tokenizer_config.get("tokenizer_class") or OWN).removesuffix("Fast")
    if name not in (OWN, GPT2, LLAMA, *AS_IT_IS):
        raise InputError(
            f"{checkpoint.path} has tokenizer_class {name[:100]!r}, which lensmith does not know; expected {OWN}, "
            f"{GPT2}, or TokenizersBackend for tokenizer.json as it is"
        )
    return name


def _as_its_class(checkpoint: Checkpoint, values: dict[str, Any]) -> dict[str, Any]:
    """With what transformers' class builds anew, of which it takes vocabulary and merges alone."""
    if checkpoint.conventions.words is None:
        return values
    if checkpoint.conventions.named_tokenizer and _class(checkpoint) != OWN:
        if _class(checkpoint) != GPT2:  # a LlamaTokenizer of bytes is read as it is, too
            return values
        prefixed = bool(checkpoint.tokenizer_config.get("add_prefix_space"))
        words = {"type": "ByteLevel", "add_prefix_space": prefixed, "trim_offsets": True, "use_regex": True}
        values = {**values, "normalizer": None, "pre_tokenizer": words}
    model = values.get("model")
    if isinstance(model, dict) and any(model.get(wish) for wish in ("ignore_merges", "byte_fallback", "fuse_unk")):
        model = {**model, "ignore_merges": False, "byte_fallback": False, "fuse_unk": False}
    return {**values, "model": model}


def _flagged(token: dict[str, Any], listed: dict[int, dict[str, Any]], plain: set[str]) -> dict[str, Any]:
    """An added token with the flags that count."""
    other = listed.get(token["id"])
    if token["content"] in plain:
        return {**token, **dict.fromkeys(FLAGS, False), "special": True}
    if other is None or other["content"] != token["content"]:
        return token
    return {**token, **{flag: bool(other[flag]) for flag in FLAGS if flag in other}}


def _plain(checkpoint: Checkpoint) -> set[str]:
    """The special tokens that Qwen2Tokenizer adds once more, without their flags."""
    if not _own_words(checkpoint) or not checkpoint.conventions.named_tokenizer:
        return set()
    config = checkpoint.tokenizer_config
    more = config.get("additional_special_tokens") or []
    given = [config.get(name) for name in NAMED] + (more if isinstance(more, list) else [more])
    texts: list[Any] = [token.get("content") if isinstance(token, dict) else token for token in given if token]
    for text in texts:
        if not isinstance(text, str):
            raise InputError(
                f"tokenizer_config.json of {checkpoint.path} names the special token {str(text)[:100]!r}; expected a "
                "text, or an object with its content"
            )
    return set(texts)


def _own_words(checkpoint: Checkpoint) -> bool:
    """Whether transformers' class of the tokenizer splits words in its own way, whatever tokenizer.json says."""
    own = checkpoint.conventions
    return own.words is not None and (not own.named_tokenizer or _class(checkpoint) == OWN)


def _check_words(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    """InputError where the class of the tokenizer would not do what tokenizer.json says."""
    if not _own_words(checkpoint):
        return
    pattern, before = checkpoint.conventions.words, values.get("pre_tokenizer") or {}
    parts = [{k: v for k, v in part.items() if k != "trim_offsets"} for part in before.get("pretokenizers", [before])]
    usual = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
             {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]  # fmt: skip
    prefixed = bool(checkpoint.tokenizer_config.get("add_prefix_space"))
    if values.get("normalizer") not in COMPOSED or parts != usual or prefixed:
        where = "tokenizer_config.json asks for add_prefix_space" if prefixed else "tokenizer.json splits words"
        raise InputError(
            f"{checkpoint.path}: {where} unlike the models of this type, which transformers' tokenizer for them would "
            "not do in the same way; use the tokenizer files of the model"
        )


def _listed(checkpoint: Checkpoint) -> dict[int, dict[str, Any]]:
    """Tokens by id, of tokenizer_config.json or else of added_tokens.json."""
    listed = checkpoint.tokenizer_config.get("added_tokens_decoder")
    try:
        if listed is None:
            older = json_file(checkpoint.model_path / "added_tokens.json")
            listed = {str(number): {"content": content, "normalized": True} for content, number in older.items()}
        entries = msgspec.convert(listed, dict[Id, ListedToken], str_keys=True)
        for token in entries.values():
            token.content.encode()  # halves of surrogates are no text
    except ValueError:
        raise InputError(f"{checkpoint.path} lists added tokens wrongly; expected their content by number") from None
    return {number: msgspec.to_builtins(token) for number, token in entries.items()}
