"""A trained head drafts, and answers are those without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes import Model, load, user_message
from lensmith.runtimes.engines.contract import Decoder
from lensmith.runtimes.engines.onnx.bound_states import BoundStates
from lensmith.runtimes.generation.draft_pace import LONGEST_PAUSE
from lensmith.runtimes.generation.drafting import DraftHead
from lensmith.runtimes.generation.following_head import HEAD
from lensmith.runtimes.generation.mtp_drafts import MtpDrafts
from PIL import Image

TRAINED, HELDOUT = (Path(__file__).parents[2] / "tiny_vlm" / name for name in ("qwen3_5", "heldout_long"))
TASKS = ("list", "copy", "describe")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(precision: str) -> Path:
        folder = tmp_path_factory.mktemp(precision) / "bundle"
        return export(prepare(TRAINED, Options(precision=precision)), folder, golden="never").path

    return make


def opened(path: Path, **chosen: Any) -> Model:
    model = load(path, threads=1, context=512, **chosen)
    assert isinstance(model, Model)
    return model


def questions() -> Iterator[Any]:
    rows = [json.loads(line) for line in (HELDOUT / "tasks.jsonl").read_text().splitlines()]
    for task in TASKS:
        row = next(row for row in rows if row["task"] == task)
        yield user_message(row["prompt"], [Image.open(HELDOUT / image) for image in row["images"]])


@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_answers_are_those_without(bundles: Callable[[str], Path], precision: str) -> None:
    """Two turns each; most guesses of the trained head are right."""
    model, other = (opened(bundles(precision)) for _ in range(2))
    drafted = accepted = 0
    for question in questions():
        turns = [question]
        for _ in range(2):
            answers = [
                each.generate(turns, max_new_tokens=100, draft=draft) for each, draft in ((model, True), (other, False))
            ]
            texts = [answer.read() for answer in answers]
            assert answers[0].ids == answers[1].ids
            assert answers[1].timings.drafted_tokens == 0
            drafted += answers[0].timings.drafted_tokens
            accepted += answers[0].timings.accepted_tokens
            turns += [{"role": "assistant", "content": texts[0]}, user_message("And now say it again.")]
    assert drafted > 100
    assert accepted > drafted / 2


def test_the_head_has_read_what_the_decoder_has(bundles: Callable[[str], Path]) -> None:
    """Behind two turns: its keys and values are those of a head that reads all tokens at once."""
    model = opened(bundles("int4"))
    question = next(questions())
    text = model.generate([question], max_new_tokens=60, draft=True).read()
    turns = [question, {"role": "assistant", "content": text}, user_message("Once more: list the shapes.")]
    model.generate(turns, max_new_tokens=1, draft=True).read()
    with model.conversation() as conversation:
        length, head = conversation.length, conversation.head
    assert head is not None
    assert head._places == list(range(1, length))
    whole = model.open_draft_head()
    opened(bundles("int4"), prefix_bytes=0).prefill(model.prepare(turns), head=whole)
    ours, theirs = (_cached(each, length - 1) for each in (head._head, whole))
    for layer, pair in ours.items():
        for kept, expected in zip(pair, theirs[layer], strict=True):
            assert np.abs(kept - expected).max() <= 1e-4 * np.abs(expected).max()


def test_another_conversation_goes_on_with_the_head(bundles: Callable[[str], Path]) -> None:
    """The message of the system that was kept has the head's keys and values, too, so that it guesses as before."""
    model = opened(bundles("int4"))
    system = {"role": "system", "content": "List the shapes and read all the words. " * 12}
    talks = [[system, question] for question in islice(questions(), 2)]
    answers = [model.generate(talk, max_new_tokens=60, draft=True) for talk in talks]
    for answer in answers:
        next(iter(answer))
    reused = answers[1].timings.reused_tokens
    assert reused > 64
    (head,) = (each.head for each in model.conversations._used if each.reused == reused)
    assert head is not None
    request = model.prepare(talks[1])
    last = len(request.prompt) - 1
    assert {*range(1, last + 1)} - {*head._places} == {reused}  # what the decoder said in front of it was not kept
    whole = model.open_draft_head()
    opened(bundles("int4"), prefix_bytes=0).prefill(request, head=whole)
    assert isinstance(head._head.states, BoundStates)
    for kept, expected in zip(head._head.states.cached(reused - 1)[0], _cached(whole, last)[0], strict=True):
        assert np.abs(kept - expected[:, : reused - 1]).max() <= 1e-4 * np.abs(expected).max()


def test_an_answer_that_ends_leaves_its_entries(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    """All of them, for other conversations and in files."""
    model = opened(bundles("int4"), cache_folder=tmp_path)
    question = next(questions())
    model.generate([question], max_new_tokens=20, draft=True).read()
    turns = [question, {"role": "assistant", "content": "red circle"}, user_message("Say it once more. " * 20)]
    model.generate(turns, max_new_tokens=60, draft=True).read()
    model.flush()
    with model.conversation() as conversation:
        tokens, states = conversation.tokens, conversation.states
    later = opened(bundles("int4"), cache_folder=tmp_path).prefixes.find(tokens, len(tokens), exact=True)
    assert later.length == len(tokens)
    kept = [
        (begin, {name: each for name, each in part.items() if name.startswith(HEAD)}) for begin, part in later.parts
    ]
    assert all(len(part) == 2 for _, part in kept)
    ends = [*(begin for begin, _ in kept[1:]), len(tokens)]
    for (begin, part), end in zip(kept, ends, strict=True):
        assert {array.shape[1] for array in part.values()} == {end - begin}
    assert conversation.head is not None
    head = conversation.head._head.states
    assert isinstance(head, BoundStates)
    whole = [np.concatenate([part[HEAD + name] for _, part in kept], axis=1) for name in head._caches.arrays]
    for found, expected in zip(whole, head.cached(len(tokens) - 1)[0], strict=True):
        assert np.array_equal(found[:, 1:], expected)
    assert states.length == len(tokens)


def _cached(head: DraftHead, length: int) -> Any:
    assert isinstance(head.states, BoundStates)
    assert head.states.length == length
    return head.states.cached(length)


def test_when_the_head_drafts(bundles: Callable[[str], Path]) -> None:
    """By default where weights are small and kernels are there; not where it is told not to."""
    model = opened(bundles("int4"))

    def heads(**chosen: Any) -> Decoder | None:
        return model.draft_head(model.prepare([user_message("Hi")]), **chosen)

    assert (heads() is None) == (not model.kernels)
    assert heads(wished=True) is not None
    assert heads(wished=False) is None
    without, wide = opened(bundles("int4"), native=False), opened(bundles("fp32"))
    for other in (without, wide):
        assert other.draft_head(other.prepare([user_message("Hi")])) is None


class Wrong:
    """A head that is always wrong."""

    waiting, asked = 0, 0

    def guess(self, history: Any, offset: int, count: int, choose: Any) -> list[int]:
        self.asked += 1
        return [1] * count


def test_a_head_that_is_always_wrong_is_seldom_asked() -> None:
    head: Any = Wrong()
    drafts = MtpDrafts(head, 0)
    for end in range(1, 1001):
        if proposed := drafts.propose(np.zeros(end, np.int64), 9):
            drafts.learn(len(proposed), 0)
    assert 1000 / (LONGEST_PAUSE + 2) - 4 <= head.asked <= 1000 / LONGEST_PAUSE + 10


def test_guesses_that_are_no_drafts_end_them() -> None:
    """The first step of an answer has none anyway."""
    head: Any = Wrong()
    for never, expected in (((), [1, 1]), ((1,), [])):
        drafts = MtpDrafts(head, 0, never)
        assert [drafts.propose(np.zeros(3, np.int64), 9) for _ in range(2)] == [[], expected]
