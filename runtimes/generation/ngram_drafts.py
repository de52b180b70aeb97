"""Guesses at how an answer goes on: as it, or its prompt, went on where its latest tokens stood before."""

from __future__ import annotations

from collections.abc import Collection
from itertools import cycle, islice, takewhile

from ..engines.contract import Ints

SIZES = (5, 3)  # tokens that must have stood before, the longer ones first: shorter ones are seldom right
FIRST_DRAFTS, MOST_DRAFTS = 3, 7  # with the token in front of them, as many rows as a product takes at little more cost
LONGEST_PAUSE = 32  # steps without drafts behind some that were all wrong, so that they cost a few percent at most


class NgramDrafts:
    """Prompt look-up, as of Saxena (2023): no model guesses, the text so far does.

    The number of drafts follows how many were right: twice as many behind a step whose drafts all were, and behind one
    whose drafts were all wrong none for a while, each time for twice as long.
    """

    def __init__(self, never: Collection[int] = ()) -> None:
        """`never`: ids that are no drafts, since a step with them needs more than their ids."""
        self._never = frozenset(never)
        self._places: dict[tuple[int, ...], int] = {}  # of the token behind the latest place of some tokens
        self._read = 0  # tokens before this one stand in `_places`
        self._count, self._wait, self._pause = FIRST_DRAFTS, 0, 1

    def propose(self, history: Ints, room: int) -> list[int]:
        """Up to `room` tokens that may follow `history` [n], which begins as that of the latest call did."""
        self._note(history)
        if self._wait:
            self._wait -= 1
            return []
        place = self._place(history)
        if place is None:
            return []
        count = min(self._count, room)
        drafts = islice(cycle(history[place : place + count].tolist()), count)  # what repeats itself goes on repeating
        return list(takewhile(lambda token: token not in self._never, drafts))

    def learn(self, drafted: int, accepted: int) -> None:
        """Note how many of the drafts of a step were right."""
        if accepted == drafted:
            self._count = min(2 * self._count, MOST_DRAFTS)
        elif accepted:
            self._count = accepted + 1
        else:
            self._wait, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        if accepted:
            self._pause = 1

    def _note(self, history: Ints) -> None:
        for size in SIZES:
            for end in range(max(self._read, size), len(history)):
                self._places[tuple(history[end - size : end].tolist())] = end
        self._read = len(history)

    def _place(self, history: Ints) -> int | None:
        ends = (tuple(history[-size:].tolist()) for size in SIZES)
        return next((self._places[end] for end in ends if end in self._places), None)
