"""Tokenizers of GGUF files that llama.cpp would end the process for, or read beyond their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.engines.llamacpp.header import Header
from lensmith.runtimes.engines.llamacpp.token_list import check_tokens
from lensmith.targets.errors import InputError

BPE: dict[str, Any] = {
    "model": "gpt2", "pre": "qwen2", "tokens": [b"a", b"b", b"ab"], "token_type": np.array([1, 1, 1], np.int32),
    "merges": [b"a b"], "eos_token_id": 2, "add_bos_token": False,
}  # fmt: skip
PIECES: dict[str, Any] = {
    "model": "llama", "pre": "default", "tokens": [b"<0x0A>", b"a", b""], "token_type": np.array([6, 1, 5], np.int32),
    "scores": np.zeros(3, np.float32), "add_space_prefix": True,
}  # fmt: skip
LONGER = np.zeros(4, np.float32)
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a text twice": (BPE, {"tokens": [b"a", b"b", b"a"]}, "its tokens 0 and 2 have the same text 'a'"),
    "the same up to a zero byte": (BPE, {"tokens": [b"a", b"b", b"a\0b"]}, "its tokens 0 and 2 have the same"),
    "what an empty one is called": (BPE, {"tokens": [b"", b"[EMPTY_0]", b"a"]}, "its tokens 0 and 1 have the same"),
    "fewer tokens": (BPE, {"tokens": [b"a", b"b"]}, "tokens is not an array of texts, one for each of the 3"),
    "tokens that are numbers": (BPE, {"tokens": np.zeros(3, np.int32)}, "tokens is not an array of texts"),
    "fewer types": (BPE, {"token_type": np.zeros(2, np.int32)}, "token_type is not an array of 3 int32"),
    "narrow types": (BPE, {"token_type": np.zeros(3, np.int8)}, "token_type is not an array of 3 int32"),
    "types that are texts": (BPE, {"token_type": [b"a"] * 3}, "token_type is not an array of 3 int32"),
    "fewer scores": (PIECES, {"scores": np.zeros(2, np.float32)}, "scores is not an array of 3 float32"),
    "more scores": (PIECES, {"scores": LONGER}, "scores is not an array of 3 float32"),
    "wide scores": (PIECES, {"scores": np.zeros(3)}, "scores is not an array of 3 float32"),
    "one score": (PIECES, {"scores": 1.0}, "scores is not an array of 3 float32"),
    "no merges": (BPE, {"merges": None}, "it does not say tokenizer.ggml.merges"),
    "merges that are numbers": (BPE, {"merges": np.zeros(3, np.int32)}, "merges is not an array of texts"),
    "merges that are one text": (BPE, {"merges": "a b"}, "merges is not an array of texts"),
    "no model": (BPE, {"model": None}, "it does not say tokenizer.ggml.model"),
    "another model": (BPE, {"model": "bert"}, "model is 'bert', expected gpt2 or llama"),
    "models": (BPE, {"model": [b"gpt2"]}, "expected gpt2 or llama"),
    "a number for a truth value": (BPE, {"add_bos_token": 1}, "add_bos_token is '1', expected a value of type bool"),
    "an end beyond the tokens": (BPE, {"eos_token_id": 3}, "eos_token_id is '3' of 3 tokens"),
    "another key": (BPE, {"precompiled_charsmap": "x"}, "precompiled_charsmap is unknown to this lensmith"),
    "a byte in other words": (PIECES, {"tokens": [b"<0x", b"a", b"b"]}, "its token 0 is a byte of the text '<0x'"),
}


def header(values: dict[str, Any]) -> Header:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}
    return Header(Path("model.gguf"), metadata, {})


@pytest.mark.parametrize("values", [BPE, PIECES])
def test_right_ones_are_taken(values: dict[str, Any]) -> None:
    check_tokens(header(values), 3)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_ones_are_refused(case: str) -> None:
    values, change, words = WRONG[case]
    with pytest.raises(InputError) as caught:
        check_tokens(header(values | change), 3)
    assert words in str(caught.value)
    assert "model.gguf" in str(caught.value)
