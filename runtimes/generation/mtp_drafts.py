"""Guesses at how an answer goes on by the head that a model was trained with for this."""

from __future__ import annotations

from collections.abc import Collection
from itertools import takewhile

from ..engines.contract import Ints
from .depth_pace import DepthPace
from .drafting import Choice, likeliest
from .following_head import FollowingHead

MOST_DRAFTS = 4  # each takes a step of the head, and the later ones are right more seldom
LATE = 64  # hidden states that wait for their entries while nothing is guessed


class MtpDrafts:
    """Multi-token prediction: each draft follows from the hidden state behind the one before it."""

    def __init__(
        self,
        head: FollowingHead,
        offset: int,
        never: Collection[int] = (),
        choose: Choice = likeliest,
        most: int = MOST_DRAFTS,
    ) -> None:
        """`offset`: from places in the conversation to positions; `never` and `most` as of NgramDrafts; `choose` is
        that of `DraftHead.draft`.
        """
        self._head, self._offset, self._never, self._choose = head, offset, frozenset(never), choose
        self._pace, self._begun = DepthPace(most), False

    def propose(self, history: Ints, room: int) -> list[int]:
        """Up to `room` tokens that may follow `history` [n], the whole conversation."""
        if not self._begun:  # many answers are one word, and a guess would only foresee their end
            self._begun = True
            return []
        count = min(self._pace.next_count(), room)
        if not count:
            if self._head.waiting >= LATE:
                self._head.catch_up(history, self._offset)
            return []
        drafts = self._head.guess(history, self._offset, count, self._choose)
        return list(takewhile(lambda token: token not in self._never, drafts))

    def learn(self, drafted: int, accepted: int) -> None:
        """As of NgramDrafts."""
        self._pace.learn(drafted, accepted)
