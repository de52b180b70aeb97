"""The entries of a draft head, whatever a conversation does, with a graph that writes down what it is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.runtimes.engines.contract import Kept, Step
from lensmith.runtimes.generation.drafting import DraftHead
from lensmith.runtimes.generation.following_head import FollowingHead
from numpy.typing import NDArray

VOCAB, OFFSET = 500, 100


class Entries:
    """States that are a list of entries: token, position and hidden state."""

    sharing = Kept.ROWS

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, float]] = []
        self.hidden_states = np.zeros((1, 1), np.float32)

    @property
    def length(self) -> int:
        return len(self.entries)

    def rewind(self, length: int) -> None:
        del self.entries[length:]

    def keep(self, begin: int) -> dict[str, Any]:
        """Positions, as rows of one head with one value."""
        return {"rows": np.array([entry[1] for entry in self.entries[begin:]])[None, :, None]}


class Graph:
    """Guesses the number behind the last token."""

    hidden = 1

    def open_states(self) -> Entries:
        return Entries()

    def run(self, states: Entries, step: Step) -> NDArray[Any]:
        assert step.hidden_states is not None
        assert len(step.ids) == len(step.hidden_states) == step.positions.shape[1]
        columns = step.ids.tolist(), step.positions[0].tolist(), step.hidden_states[:, 0].tolist()
        states.entries += zip(*columns, strict=True)
        logits: NDArray[Any] = np.eye(VOCAB, dtype=np.float32)[step.ids[len(step.ids) - step.num_logits :] + 1]
        return logits


class Talk:
    """A conversation whose tokens at each place are new ones, and whose hidden states are these, negative."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.head = FollowingHead(DraftHead(self.graph))  # type: ignore[arg-type]
        self.ids: list[int] = []
        self.fresh = iter(range(1, VOCAB - 1))

    def hidden(self, begin: int, end: int) -> Any:
        return -np.array(self.ids[begin:end], np.float32)[:, None]

    def prompt(self, count: int, chunk: int) -> None:
        """`count` more tokens in pieces."""
        begin = len(self.ids)
        self.ids += [next(self.fresh) for _ in range(count)]
        positions = np.arange(len(self.ids)) + OFFSET
        request: Any = SimpleNamespace(positions=np.stack([positions] * 3), features_between=lambda begin, end: None)
        for start in range(begin, len(self.ids), chunk):
            end = min(start + chunk, len(self.ids))
            self.head.hear(start, self.hidden(start, end))
            self.head.read(np.array(self.ids), request)

    def answer(self, accepted: int, count: int, drafting: bool) -> None:
        """A step of an answer, whose first token is chosen here; the drafts that are right are part of it."""
        token = next(self.fresh)
        if drafting and self.head.waiting:
            guesses = self.head.guess(np.array([*self.ids, token]), OFFSET, count)
            assert guesses == [token + 1 + ahead for ahead in range(count)]
        begin = len(self.ids)
        self.ids += [token, *(next(self.fresh) for _ in range(accepted))]
        self.head.hear(begin, self.hidden(begin, len(self.ids)))

    def rewind(self, length: int) -> None:
        del self.ids[length:]
        self.head.rewind(length)

    def check(self) -> None:
        """Each entry is that of a token of the conversation, in order."""
        entries, places = self.head._head.states.entries, self.head._places  # type: ignore[attr-defined]
        assert len(entries) == len(places)
        assert places == sorted(set(places))
        expected = [(self.ids[place], place + OFFSET, -self.ids[place - 1]) for place in places]
        assert [(token, position, int(hidden)) for token, position, hidden in entries] == expected
        assert self.head.waiting + self.head._begin <= len(self.ids) or not self.head.waiting


steps = st.one_of(
    st.tuples(st.just("prompt"), st.integers(1, 9), st.integers(1, 5)),
    st.tuples(st.just("answer"), st.integers(0, 3), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("rewind"), st.integers(0, 40)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=12))
def test_entries_are_those_of_the_conversation(script: list[tuple[Any, ...]]) -> None:
    talk = Talk()
    talk.prompt(3, 2)
    for name, *arguments in script:
        getattr(talk, name)(*(min(*arguments, len(talk.ids)),) if name == "rewind" else arguments)
        talk.check()


def test_none_is_missing_over_turns() -> None:
    """Chunks, accepted and rejected drafts, steps without guesses, a turn behind the answer."""
    talk = Talk()
    talk.prompt(7, 3)
    for accepted, count, drafting in ((0, 2, True), (2, 2, True), (1, 3, False), (0, 1, False), (1, 4, True)):
        talk.answer(accepted, count, drafting)
    talk.prompt(5, 2)
    talk.check()
    assert talk.head._places == list(range(1, len(talk.ids)))
    talk.rewind(9)
    talk.prompt(4, 10)
    talk.check()
    assert set(range(1, len(talk.ids))) - set(talk.head._places) == {9}  # the decoder's state in front is gone


def test_late_entries() -> None:
    talk = Talk()
    talk.prompt(4, 4)
    for _ in range(5):
        talk.answer(0, 1, drafting=False)
    assert talk.head.waiting == 6
    talk.head.catch_up(np.array([*talk.ids, 99]), OFFSET)
    talk.ids.append(99)
    talk.check()
    assert (talk.head.waiting, talk.head._places) == (0, [*range(1, 10)])


def test_nothing_is_guessed_without_what_was_read() -> None:
    head = FollowingHead(DraftHead(Graph()))  # type: ignore[arg-type]
    assert head.guess(np.array([4, 5]), 0, 3) == []
    head.hear(0, np.zeros((1, 1), np.float32))
    assert head.guess(np.array([4, 5, 6]), 0, 3) == []
    assert head.guess(np.array([4, 5]), 0, 3) == [6, 7, 8]


def test_entries_with_a_gap_are_not_kept() -> None:
    """Nor are they taken from where some have none."""
    talk = Talk()
    talk.prompt(6, 6)
    assert set(talk.head.keep(0, 6)) == {"head.rows"}
    assert [array.shape for array in talk.head.keep(2, 6).values()] == [(1, 4, 1)]
    talk.rewind(4)
    assert talk.head.keep(0, 6) == {}
    talk.prompt(2, 2)
    assert talk.head.keep(0, 6) == {}
    assert talk.head.keep(0, 1) == {}
    other = Talk()
    other.head.adopt([(0, {"head.rows": np.zeros((1, 3, 1))}), (3, {"rows": np.zeros((1, 3, 1))})], 6)
    assert other.head._places == []
