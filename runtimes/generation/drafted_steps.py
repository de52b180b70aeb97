"""The steps of an answer: one token each, or several where drafts foresee what the decoder will choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..engines.contract import Floats, Ints, Step
from ..prompt.positions import text_positions
from .conversation import Conversation
from .timings import Timings


class DraftSource(Protocol):
    """What guesses at how an answer goes on."""

    def propose(self, history: Ints, room: int, /) -> list[int]:
        """Up to `room` tokens that may follow `history` [n], which begins as that of the latest call did."""

    def learn(self, drafted: int, accepted: int, /) -> None:
        """Note how many of the drafts of a step were right."""


class DraftedSteps:
    """Logits behind one token after the other.

    A step appends a token and the drafts behind it, and gives logits behind each of them. Those behind a draft count
    only where it was then chosen: so answers are those without drafts, greedy or sampled, as every token is chosen from
    the decoder's own logits. For drafts that are certain of themselves this is the rejection sampling of Leviathan et
    al. (2023); those that a head samples share the random number of the token that they stand for, so that they are
    right where its distribution is near, and one seed gives one answer. With temperature 0.8, top-k 20 and top-p 0.95,
    83 to 99 % as many are right as there could be. Tokens of drafts that were not chosen are forgotten.
    """

    def __init__(
        self, conversation: Conversation, position: int, timings: Timings, sources: Sequence[DraftSource] = ()
    ) -> None:
        """`position`: of the first token of the answer; of the sources the first that has drafts is believed."""
        self._conversation, self._timings, self._sources = conversation, timings, sources
        self._source: DraftSource | None = None  # of the drafts of the latest step
        self._offset = position - conversation.length  # from a place in the conversation to a position
        self.certain = conversation.length  # tokens in the states that were chosen
        self._ahead: list[int] = []  # drafts in the states behind these
        self._rows: Floats = np.zeros((0, 0), np.float32)
        self._row = 0

    def run(self, history: Ints, room: int) -> Floats:
        """Logits float32 [vocab] behind `history` [n], whose last token was chosen now; `room` more are wanted at most.

        They are valid until the next call.
        """
        token = int(history[-1])
        if self._ahead and self._ahead[0] == token:
            del self._ahead[0]
            self._row += 1
            self._timings.accepted_tokens += 1
        else:
            self._step(history, room)
        self.certain += 1
        row: Floats = self._rows[self._row]
        return row

    def close(self) -> None:
        """Leave in the states what was chosen."""
        self._settle()

    def _step(self, history: Ints, room: int) -> None:
        self._settle()
        free = self._conversation.decoder.capacity - self.certain - 1
        drafts = self._propose(history, min(room - 1, free))  # the last token comes from logits behind the one before
        ids = np.array([history[-1], *drafts], np.int64)
        positions = text_positions(len(ids), self.certain + self._offset)
        self._rows = self._conversation.run(Step(ids, positions, num_logits=len(ids), undoable=len(drafts)))
        self._ahead, self._row = drafts, 0
        self._timings.drafted_tokens += len(drafts)

    def _propose(self, history: Ints, wanted: int) -> list[int]:
        for source in self._sources if wanted > 0 else ():
            if drafts := source.propose(history, wanted):
                self._source = source
                return drafts
        return []

    def _settle(self) -> None:
        """Learn from the latest step, and forget those of its tokens that were not chosen."""
        if self._source is not None and self._row + len(self._ahead):
            self._source.learn(self._row + len(self._ahead), self._row)
        if len(self._rows):
            self._conversation.hear(self.certain - self._row - 1, self._row + 1)
        if self._ahead:
            self._conversation.rewind(self.certain)
        self._rows, self._ahead, self._row = self._rows[:0], [], 0
