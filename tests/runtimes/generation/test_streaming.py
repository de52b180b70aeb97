"""Streamed pieces join to what the tokenizer decodes at once, whole characters only, and stop strings never show."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.runtimes.generation.streaming import (
    ByteSpelling,
    PieceSpelling,
    TextStream,
    byte_alphabet,
)
from lensmith.targets.errors import InputError
from tokenizers import Tokenizer, decoders, models

from tests.helpers import hf
from tests.paths import DATA

TOKENIZER = Tokenizer.from_file(str(hf.TOKENIZER / "tokenizer.json"))
BYTE_IDS: dict[int, Any] = {byte: TOKENIZER.token_to_id(char) for char, byte in byte_alphabet().items()}
VOCABULARY = TOKENIZER.get_vocab_size()
TEXTS = json.loads((DATA / "conversation_parts.json").read_text(encoding="utf-8"))["texts"]
some_text = st.one_of(st.text(max_size=30), st.sampled_from(TEXTS))


def stream(ids: list[int], stop: list[str] | None = None) -> list[str]:
    text = TextStream(TOKENIZER, stop or [])
    return [*(text.push(token) for token in ids), text.finish()]


def without_special(ids: list[int]) -> Any:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


@settings(max_examples=300, deadline=None)
@given(st.lists(some_text, max_size=4).map("".join))
def test_text_survives(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    pieces = stream(ids)
    assert "".join(pieces) == without_special(ids)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(list(BYTE_IDS.values())), max_size=12))
def test_random_bytes_decode_as_the_tokenizer_does(ids: list[int]) -> None:
    assert "".join(stream(ids)) == without_special(ids)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, VOCABULARY + 30), max_size=20))
def test_random_tokens_decode_as_the_tokenizer_does(ids: list[int]) -> None:
    """Among them special tokens, added tokens in plain text and ids beyond the vocabulary."""
    assert "".join(stream(ids)) == without_special(ids)


def test_every_token_decodes_as_the_tokenizer_does() -> None:
    for token in range(VOCABULARY):
        assert "".join(stream([token])) == without_special([token]), token


def test_pieces_come_as_early_as_characters_are_whole() -> None:
    ids = [BYTE_IDS[byte] for byte in "aé👍".encode()]
    assert stream(ids) == ["a", "", "é", "", "", "", "👍", ""]
    invalid = [BYTE_IDS[byte] for byte in b"\xff\xe0\xa4b\xf0\x9f"]
    assert stream(invalid) == ["\ufffd", "", "", "\ufffdb", "", "", "\ufffd"]


def test_plain_tokens_end_an_unfinished_character() -> None:
    """An added token that is written as itself comes behind the bytes in front of it."""
    spelling = ByteSpelling()
    assert [spelling.push(token) for token in ("â", "a b", "Ã", "©", "Ä")] == ["", "\ufffda b", "", "é", ""]
    assert spelling.finish() == "\ufffd"


def test_one_space_is_left_out_at_the_beginning() -> None:
    spelling = PieceSpelling(1)
    assert [spelling.push(token) for token in ("▁▁a", "▁b")] == [" a", " b"]


def test_special_tokens_are_silent() -> None:
    ids = TOKENIZER.encode("a<|im_end|>b<think>c").ids
    assert "".join(stream(ids)) == "ab<think>c"


def cut(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "c", " aab", "\n\n", "é", "👍"]), max_size=25).map("".join),
    st.lists(st.sampled_from(["ab", "aab", "ba", "\n\n", "abc", "b", "👍", "é\n", "aaaa"]), max_size=3),
    st.booleans(),
)
def test_stop_strings_are_cut_and_never_shown(text: str, stops: list[str], by_bytes: bool) -> None:
    small = [BYTE_IDS[byte] for byte in text.encode()]
    pieces = stream(small if by_bytes else TOKENIZER.encode(text).ids, stops)
    assert "".join(pieces) == cut(text, stops)
    shown = ""
    for piece in pieces:  # at no time is a part of the stop string out
        shown += piece
        assert cut(text, stops).startswith(shown)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    """However the text is cut into tokens: one token may hold a stop string within another."""
    ids = TOKENIZER.encode(" the").ids
    assert len(ids) == 1
    for some in (ids, [BYTE_IDS[byte] for byte in b" the"]):
        for stops in ([" the", "h"], ["h", " the"]):
            assert "".join(stream(some, stops)) == " t"


def test_text_that_only_began_a_stop_string_comes_at_last() -> None:
    text = TextStream(TOKENIZER, ["abcd"])
    pieces = [text.push(token) for token in TOKENIZER.encode("x abc").ids]
    assert "".join(pieces) == "x "
    assert text.finish() == "abc"
    assert text.stopped_by is None


def test_nothing_follows_a_stop_string() -> None:
    text = TextStream(TOKENIZER, ["END"])
    pieces = [text.push(token) for token in TOKENIZER.encode("a END b c").ids]
    assert "".join(pieces) + text.finish() == "a "
    assert text.stopped_by is not None


def test_work_per_token_does_not_grow() -> None:
    text = TextStream(TOKENIZER, ["never"])
    token = TOKENIZER.encode(" the").ids[0]

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(5000):
            text.push(token)
        return time.perf_counter() - begin

    first = min(measure() for _ in range(3))
    assert min(measure() for _ in range(10)) < 3 * first


@pytest.mark.parametrize("stop", ["END", [""], [1]])
def test_stop_must_be_strings(stop: Any) -> None:
    with pytest.raises(InputError, match="list of strings"):
        TextStream(TOKENIZER, stop)


def test_other_decoders_are_refused() -> None:
    other = Tokenizer(models.BPE())
    other.decoder = decoders.Metaspace()
    with pytest.raises(InputError, match="Metaspace"):
        TextStream(other)
