"""Golden traces and records that a stranger wrote: read with the values of their types, or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.engines.contract import ImageFeatures
from lensmith.runtimes.evidence.built import (
    RECORD,
    SAMPLES,
    Built,
    Spread,
    read_built,
    write_built,
)
from lensmith.runtimes.evidence.traces import (
    ARRAYS,
    CASES,
    CaseTrace,
    ImageTrace,
    Tops,
    Traces,
    read_traces,
    tops_of,
    write_traces,
)
from lensmith.runtimes.storage.array_files import read_arrays
from lensmith.targets.errors import InputError

from tests.helpers.contents import content
from tests.helpers.manifests import DAMAGES, DELETE, damaged, fields

VOCAB, PICTURE = 40, "golden/a.png"
LOGITS = np.random.default_rng(3).normal(size=(3, VOCAB)).astype(np.float32)
FEATURES = ImageFeatures(np.ones((6, 8), np.float32), np.ones((2, 6, 8), np.float32))
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]}]
CASE = CaseTrace("case", MESSAGES, [1, 2], LOGITS[0], [int(row.argmax()) for row in LOGITS], tops_of(LOGITS),
                 tops_of(LOGITS[:2] + 1))  # fmt: skip
TRACES = Traces("PyTorch", (ImageTrace(PICTURE, (1, 4, 6), "0" * 64, FEATURES),), (CASE,))
BUILT = Built({"cpu": {"a": "b"}}, {"a": LOGITS[0]}, {"decoder": Spread(0.5, 0.25)}, {"limits": "c"})
NAMES = (CASES, ARRAYS, RECORD, SAMPLES, PICTURE)
OUTPUTS = {"logits": {"dtype": "FLOAT", "shape": ["batch", "num_logits", VOCAB]}}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "golden").mkdir()
    write_traces(TRACES, tmp_path / CASES, tmp_path / ARRAYS)
    write_built(BUILT, tmp_path / RECORD, tmp_path / SAMPLES)
    files: dict[str, Any] = {name: {} for name in NAMES}
    return Bundle(tmp_path, content({"decoder": {"outputs": OUTPUTS}}, files=files, limits={"context": 5}))


def refusal(read: Callable[[Bundle], object], bundle: Bundle) -> str:
    """The sentence of a refusal, nothing where the files are read; any other error fails the test."""
    try:
        read(bundle)
    except InputError as error:
        told = str(error)
        assert "\n" not in told
        assert "export it again" in told
        assert len(told) < 700
        return told
    return ""


def test_what_was_written_is_read(bundle: Bundle) -> None:
    found, built = read_traces(bundle), read_built(bundle)
    assert (found.reference, found.images[0].grid, found.images[0].file) == ("PyTorch", (1, 4, 6), PICTURE)
    case = found.cases[0]
    assert (case.messages, case.token_ids, case.answer) == (MESSAGES, [1, 2], CASE.answer)
    np.testing.assert_array_equal(case.logits, CASE.logits)
    assert case.drafts is not None
    assert CASE.drafts is not None
    for found_, written in zip((*case.tops, *case.drafts), (*CASE.tops, *CASE.drafts), strict=True):
        np.testing.assert_array_equal(found_, written)
    assert found.images[0].features.deepstack is not None
    assert (built.digests, built.spread, built.settings) == (BUILT.digests, BUILT.spread, BUILT.settings)
    np.testing.assert_array_equal(built.samples["a"], LOGITS[0])


def test_traces_without_drafts_are_read(bundle: Bundle) -> None:
    cases = (replace(CASE, drafts=None),)
    write_traces(replace(TRACES, cases=cases), bundle.path / CASES, bundle.path / ARRAYS)
    assert read_traces(bundle).cases[0].drafts is None


@pytest.mark.parametrize("array", [0, 1, 2])
def test_drafts_are_of_so_many_steps(array: int, bundle: Bundle) -> None:
    tops: Any = tops_of(LOGITS[:2] + 1)
    short = tops._replace(**{Tops._fields[array]: tops[array][:1]})
    write_traces(replace(TRACES, cases=(replace(CASE, drafts=short),)), bundle.path / CASES, bundle.path / ARRAYS)
    assert f"'case.{('draft_ids', 'draft_logits', 'draft_log_sums')[array]}'" in refusal(read_traces, bundle)
    ids = tops.ids + VOCAB
    write_traces(replace(TRACES, cases=(replace(CASE, drafts=tops._replace(ids=ids)),)), bundle.path / CASES,
                 bundle.path / ARRAYS)  # fmt: skip
    assert "draft_ids of 'case' has ids beyond" in refusal(read_traces, bundle)


@pytest.mark.parametrize(("lost", "graph"), [("cases", "decoder"), ("images", "vision_encoder")])
def test_each_graph_has_traces(lost: str, graph: str, bundle: Bundle) -> None:
    """A verdict on nothing would be good."""
    bundle.content["graphs"] |= content({"vision_encoder": {}})["graphs"]
    assert not refusal(read_traces, bundle)
    whole = json.loads((bundle.path / CASES).read_text())
    (bundle.path / CASES).write_text(json.dumps({**whole, lost: []}))
    assert f"nothing in them shows what the {graph} gives" in refusal(read_traces, bundle)


@pytest.mark.parametrize(("name", "read"), [(CASES, read_traces), (RECORD, read_built)])
def test_every_field_is_typed(name: str, read: Callable[[Bundle], object], bundle: Bundle) -> None:
    """Whatever stands in place of a field; most of it cannot stand there."""
    path = bundle.path / name
    whole = json.loads(path.read_text())
    refused = read_as_it_is = 0
    for place in fields(whole):
        for what, damage in DAMAGES.items():
            path.write_text(json.dumps(damaged(whole, place, damage)))
            told = refusal(read, bundle)
            refused, read_as_it_is = refused + bool(told), read_as_it_is + (not told)
            assert told or damage is not DELETE or place[-1] in (0, "cpu", "a", "decoder", "limits"), (place, what)
    assert refused > 2 * read_as_it_is > 0


WRONG: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "an id beyond the vocabulary": (("cases", 0, "answer", 1), VOCAB, "answer of 'case' has ids beyond"),
    "a prompt beyond it": (("cases", 0, "token_ids", 0), VOCAB, "token_ids of 'case' has ids beyond"),
    "an id below it": (("cases", 0, "answer", 1), -1, "Expected `int` >= 0"),
    "fewer steps": (("cases", 0, "answer"), [1, 2], r"'case.top_ids' is int64 \[3, 16\], expected int64 \[2, 16\]"),
    "more than the context": (("cases", 0, "token_ids"), [1, 2, 3], "'case' has 6 tokens, the context 5"),
    "no answer": (("cases", 0, "answer"), [], "length >= 1"),
    "another picture": (("images", 0, "file"), "golden/b.png", "no file 'golden/b.png'"),
    "a picture that is not there": (("cases", 0, "messages", 0, "content", 0, "image"), "b.png", "no file 'b.png'"),
    "half a surrogate": (("reference",), "\ud800", "cannot be read"),
    "another name": (("cases", 0, "name"), "other", "no array 'other.logits'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_do_not_go_with_the_arrays_or_the_bundle(case: str, bundle: Bundle) -> None:
    place, value, words = WRONG[case]
    path = bundle.path / CASES
    path.write_text(json.dumps(damaged(json.loads(path.read_text()), place, value)))
    with pytest.raises(InputError, match=words):
        read_traces(bundle)


def test_conversations_need_a_decoder(bundle: Bundle) -> None:
    bundle.content["graphs"] = content({"vision_encoder": {}})["graphs"]
    with pytest.raises(InputError, match="has no decoder"):
        read_traces(bundle)


ODD = {
    "text": np.array(["x"] * 3), "numbers": np.zeros(3, np.float16), "other ids": np.full((3, 16), VOCAB),
    "one number": np.float32(1), "more axes": np.zeros((1,) * 5, np.float32), "nothing": np.zeros(0, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_every_array_is_typed(odd: str, bundle: Bundle) -> None:
    for name, read in ((ARRAYS, read_traces), (SAMPLES, read_built)):
        arrays = read_arrays(bundle.path / name)
        for key in arrays:
            changed: dict[str, Any] = {**arrays, key: ODD[odd]}
            with open(bundle.path / name, "wb") as file:
                np.savez(file, **changed)
            assert refusal(read, bundle) or (name, odd) == (SAMPLES, "nothing"), key


HEADERS = {
    "a text that does not end": b"{'descr': '<f4', 'fortran_order': '''",
    "brackets that do not end": b"{'descr': ((((((",
    "another shape": b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 99999999, 99999999), }",
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (40,), }",
    "no type": b"{'descr': None, 'fortran_order': False, 'shape': (40,), }",
    "a number": b"1" * 60,
    "a deep nest": b"[" * 117,
    "zeros": bytes(100),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_arrays(case: str, bundle: Bundle) -> None:
    """numpy reads them with Python's own parser, which raises errors of many kinds."""
    for name, read in ((ARRAYS, read_traces), (SAMPLES, read_built)):
        path = bundle.path / name
        data = path.read_bytes()
        at = data.index(b"{'descr'")
        path.write_bytes(data[:at] + HEADERS[case].ljust(117) + data[at + 117 :])
        assert path.name in refusal(read, bundle)


@pytest.mark.parametrize("data", [b"", b"PK", b"\x93NUMPY\x01\x00", b"x" * 100])
def test_files_that_are_no_archives(data: bytes, bundle: Bundle) -> None:
    (bundle.path / ARRAYS).write_bytes(data)
    assert ARRAYS.rpartition("/")[2] in refusal(read_traces, bundle)
