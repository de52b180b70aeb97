"""Lengths that states can be taken back to, worked out by hand on states that remember the tokens they hold."""

from __future__ import annotations

from typing import Any

import pytest
from lensmith.runtimes.engines.states import EngineStates


class Numbers(EngineStates):
    """A recurrent state that is the sum of its tokens."""

    def __init__(self, *, recurrent: bool = True) -> None:
        super().__init__(recurrent=recurrent)
        self.total, self.copied, self.restored = 0, 0, list[int]()

    def read(self, *tokens: int, fails: bool = False) -> None:
        with self.appending(len(tokens)):
            self.total += sum(tokens)
            if fails:
                raise RuntimeError

    def _copy(self) -> Any:
        self.copied += 1
        return self.total

    def _restore(self, length: int) -> None:
        self.restored.append(length)
        self.total = self._saved.get(length, 0)


def saved(*lengths: int) -> Numbers:
    """Tokens 1, 2, 3, ..., 10, with copies behind some of them."""
    states = Numbers()
    for token in range(1, 11):
        states.read(token)
        if token in lengths:
            states.save()
    return states


@pytest.mark.parametrize(
    ("wanted", "reached", "total"),
    [(99, 10, 55), (10, 10, 55), (9, 8, 36), (8, 8, 36), (7, 3, 6), (3, 3, 6), (2, 0, 0)],
)
def test_the_longest_copy_up_to_a_length(wanted: int, reached: int, total: int) -> None:
    states = saved(3, 8)
    assert states.reach(wanted) == reached
    assert (states.rewind(wanted), states.length, states.total) == (reached, reached, total)
    assert states.restored == ([reached] if reached < 10 else [])
    assert sorted(states._saved) == [length for length in (3, 8) if length <= reached]
    states.read(100)
    assert (states.length, states.reach(99), states.total) == (reached + 1, reached + 1, total + 100)


def test_the_oldest_copy_but_the_shortest_goes() -> None:
    assert list(saved(2, 5, 7, 9)._saved.items()) == [(2, 3), (7, 28), (9, 45)]
    states = saved(3, 5, 10)
    states.rewind(5)
    states.save()  # once more: as good as new
    states.read(1)
    states.save()
    assert list(states._saved) == [3, 5, 6]
    again = saved(3, 5, 10)
    again.save()
    assert list(again._saved) == [3, 5, 10]
    again.rewind(2)  # other messages of the system
    assert list(again._saved) == []


def test_a_step_that_fails_goes_back_to_a_copy() -> None:
    for lengths, reached, total in (((4, 10), 10, 55), ((4,), 4, 10), ((), 0, 0)):
        states = saved(*lengths)
        with pytest.raises(RuntimeError):
            states.read(7, 7, fails=True)
        assert (states.length, states.total, states.restored) == (reached, total, [reached])
        assert states.reach(99) == reached
        states.read(1)
        assert (states.reach(99), states.total) == (reached + 1, total + 1)


def test_caches_need_no_copies() -> None:
    states = Numbers(recurrent=False)
    states.read(1, 2, 3)
    states.save()
    assert (states.copied, states.reach(99), states.rewind(2), states.length) == (0, 3, 2, 2)
