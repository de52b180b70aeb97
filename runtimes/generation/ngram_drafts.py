"""Guesses at how an answer goes on: as it, or its prompt, went on where its latest tokens stood before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import cycle, islice, takewhile

from ..engines.contract import Ints
from .draft_pace import DraftPace

SIZES = (5, 3)  # tokens that must have stood before, the longer ones first: shorter ones are seldom right
LONG = SIZES[:1]  # next to a head, which is right more often than what stood behind three tokens
FIRST_DRAFTS, MOST_DRAFTS = 3, 7  # with the token in front of them, as many rows as a product takes at little more cost


class NgramDrafts:
    """Prompt look-up, as of Saxena (2023): no model guesses, the text so far does."""

    def __init__(self, never: Collection[int] = (), sizes: Sequence[int] = SIZES, most: int = MOST_DRAFTS) -> None:
        """`never`: ids that are no drafts: a step with them needs more than their ids, or none comes behind them.

        `most`: drafts of a step.
        """
        self._never, self._sizes = frozenset(never), sizes
        self._places: dict[tuple[int, ...], int] = {}  # of the token behind the latest place of some tokens
        self._read = 0  # tokens before this one stand in `_places`
        self._pace = DraftPace(min(FIRST_DRAFTS, most), most)

    def propose(self, history: Ints, room: int) -> list[int]:
        """Up to `room` tokens that may follow `history` [n], which begins as that of the latest call did."""
        self._note(history)
        if self._pace.pausing():
            return []
        drafts = self.look_up(history, min(self._pace.count, room))
        return list(takewhile(lambda token: token not in self._never, drafts))

    def look_up(self, history: Ints, count: int) -> Iterable[int]:
        """The `count` tokens behind the latest place where those at the end of `history` stood before."""
        if (place := self._place(history)) is None:
            return ()
        return islice(cycle(history[place : place + count].tolist()), count)  # what repeats itself goes on repeating

    def learn(self, drafted: int, accepted: int) -> None:
        """Note how many of the drafts of a step were right."""
        self._pace.learn(drafted, accepted)

    def _note(self, history: Ints) -> None:
        for size in self._sizes:
            for end in range(max(self._read, size), len(history)):
                self._places[tuple(history[end - size : end].tolist())] = end
        self._read = len(history)

    def _place(self, history: Ints) -> int | None:
        ends = (tuple(history[-size:].tolist()) for size in self._sizes)
        return next((self._places[end] for end in ends if end in self._places), None)
