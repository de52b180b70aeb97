"""Tokenizers from strangers: only what the supported families use reaches the library."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from lensmith.runtimes.prompt import tokenizer_check
from lensmith.runtimes.prompt.tokenizer_check import make_tokenizer, panics_told
from lensmith.targets.errors import InputError
from tokenizers import Tokenizer

from tests.paths import TINY

CPU_SECONDS = 5
Values = dict[str, Any]


def regex(text: str) -> Callable[[Values], None]:
    return lambda v: v["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": text})


def replaces(content: str, pattern: dict[str, str]) -> Callable[[Values], None]:
    return lambda v: v.update(normalizer={"type": "Replace", "pattern": pattern, "content": content})


BOMBS: dict[str, Callable[[Values], Any]] = {
    "growing": replaces("a" * 10_000, {"String": "a"}),
    "growing twice": lambda v: v.update(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 9}),
    "replacing nothing": replaces("aa", {"String": ""}),
    "backtracking replacement": replaces("", {"Regex": "(a+)+b"}),
    "backtracking": regex("(a+)+b"),
    "backtracking deep": regex("(" * 5000 + "a*" + ")*" * 5000),
    "squares": regex("a+a+a+b"),
    "normalizer": lambda v: v.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "bert": lambda v: v.update(normalizer={"type": "BertNormalizer"}),
    "other model": lambda v: v.update(model={"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}),
    "word model": lambda v: v.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
    "drops": lambda v: v["model"].update(dropout=0.5),
    "infinite drops": lambda v: v["model"].update(dropout=-1),
    "merges": lambda v: v["model"].update(merges=[["never", "there"]]),
    "merges of a number": lambda v: v["model"].update(merges=[1]),
    "merges of a text": lambda v: v["model"].update(merges="a b"),
    "vocabulary": lambda v: v["model"].update(vocab={"a": -1}),
    "huge ids": lambda v: v["model"]["vocab"].update({"a": 1 << 62}),
    "many tokens": lambda v: v["model"].update(vocab={f"{n}": n for n in range(2_000_001)}),
    "affix": lambda v: v["model"].update(continuing_subword_prefix="#" * 1000),
    "unknown": lambda v: v["model"].update(unk_token=5),
    "added ids": lambda v: v["added_tokens"][0].update(id=1 << 32),
    "added nothing": lambda v: v["added_tokens"][0].update(content=""),
    "added long": lambda v: v["added_tokens"][0].update(content="x" * 100_000),
    "added unknown": lambda v: v["added_tokens"][0].update(regex="(a+)+b"),
    "template": lambda v: v.update(post_processor={"type": "TemplateProcessing", "special_tokens": {}, "pair": [],
                                                   "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}] * 100}),
    "ids of a template": lambda v: v.update(post_processor={
        "type": "TemplateProcessing", "single": [], "pair": [],
        "special_tokens": {"x": {"id": "x", "ids": [1] * 100_000, "tokens": ["x"]}}}),
    "decoder": lambda v: v.update(decoder={"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""}),
    "nested": lambda v: v.update(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Sequence", "normalizers": []}]}),
    "version": lambda v: v.update(version="2.0"),
    "no model": lambda v: v.pop("model"),
}  # fmt: skip


def values(family: str = "qwen3_vl") -> Values:
    found: Values = json.loads((TINY / family / "tokenizer.json").read_text())
    return found


@pytest.mark.parametrize("case", BOMBS)
def test_bombs(case: str) -> None:
    made = values()
    BOMBS[case](made)
    data = json.dumps(made).encode()
    started = time.process_time()
    with pytest.raises(InputError, match="here is") as caught:
        make_tokenizer(data, "here").encode("a" * 50_000)
    assert time.process_time() - started < CPU_SECONDS
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


# The largest that is taken, and what is larger: refused before the library sees it, which would take more.
LARGEST: dict[str, tuple[Callable[[Values, int], Any], int]] = {
    "prefix": (lambda v, n: v["model"].update(continuing_subword_prefix="#" * n), 32),
    "suffix": (lambda v, n: v["model"].update(end_of_word_suffix="#" * n), 32),
    "added": (lambda v, n: v["added_tokens"][0].update(content="x" * n), 1000),
    "added id": (lambda v, n: v["added_tokens"][0].update(id=n), (1 << 24) - 1),
    "normalizers": (lambda v, n: v.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * n}), 8),
    "splits": (lambda v, n: v["pre_tokenizer"].update(pretokenizers=v["pre_tokenizer"]["pretokenizers"][:1] * n), 8),
    "pieces": (lambda v, n: v.update(post_processor={
        "type": "TemplateProcessing", "special_tokens": {"x": {"id": "x", "ids": [1], "tokens": ["x"]}}, "pair": [],
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * n}), 16),
    "ids of a piece": (lambda v, n: v.update(post_processor={
        "type": "TemplateProcessing", "single": [], "pair": [],
        "special_tokens": {"x": {"id": "x", "ids": [1] * n, "tokens": ["x"] * 16}}}), 16),
}  # fmt: skip


@pytest.mark.parametrize("case", LARGEST)
def test_what_is_larger_is_not_asked_of_the_library(case: str) -> None:
    change, largest = LARGEST[case]
    for size, refused in ((largest, False), (largest + 1, True)):
        made = values()
        change(made, size)
        try:
            make_tokenizer(json.dumps(made).encode(), "here")
            said = ""
        except InputError as error:  # what fits may still be a tokenizer that the library cannot use
            said = str(error)
        assert ("is not a tokenizer that lensmith supports" in said) == refused, said


def test_files_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (TINY / "qwen3_vl" / "tokenizer.json").read_bytes()
    monkeypatch.setattr(tokenizer_check, "MOST_BYTES", len(data))
    make_tokenizer(data, "here")
    monkeypatch.setattr(tokenizer_check, "MOST_BYTES", len(data) - 1)
    with pytest.raises(InputError, match=f"here has more than {len(data) - 1} bytes"):
        make_tokenizer(data, "here")


def test_what_is_not_checked_does_not_reach_the_library() -> None:
    cut = {**values(), "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}}
    made = make_tokenizer(json.dumps(cut).encode(), "here")
    assert made.truncation is None
    assert len(made.encode("one two three four").ids) > 2


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": {"type": "BPE"}}'])
def test_files_that_are_none(data: bytes) -> None:
    with pytest.raises(InputError):
        make_tokenizer(data, "here")


def test_two_values_of_one_name_are_both_checked() -> None:
    text = json.dumps(values())
    bomb = '"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "' + "a" * 1000 + '"}'
    for made in (text[:-1] + f", {bomb}}}", "{" + bomb + ", " + text[1:]):
        with pytest.raises(InputError, match=r"Invalid (enum )?value '(Replace|a)'"):
            make_tokenizer(made.encode(), "here")


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5", "llava"])
def test_tokenizers_of_the_families_are_what_they_were(family: str) -> None:
    path = TINY / family / "tokenizer.json"
    text = "It's 1234 \r\n\n  naïve ﬁ 日本 <|im_start|>user\n" * 3
    expected, found = Tokenizer.from_file(str(path)), make_tokenizer(path.read_bytes(), path)
    assert found.encode(text).ids == expected.encode(text).ids
    assert found.decode(found.encode(text).ids) == expected.decode(expected.encode(text).ids)
    assert found.get_vocab() == expected.get_vocab()


def test_panics_are_told() -> None:
    class Panic(BaseException):
        pass

    with pytest.raises(InputError, match=r"it fails \(index out of range\)"), panics_told("it fails"):
        raise Panic("index\nout of range")
    with pytest.raises(KeyboardInterrupt), panics_told("it fails"):
        raise KeyboardInterrupt
