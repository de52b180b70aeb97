"""A draft head that goes along with one conversation: through prompts in pieces, chosen tokens, and ways back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from ..engines.contract import Decoder, Floats, Ints, Kept, KeptTokens, Step
from ..prompt.positions import text_positions
from ..prompt.requests import Request
from .drafting import Choice, DraftHead, likeliest

HEAD = "head."  # in front of the names of its states, where they are kept with those of the decoder


class FollowingHead:
    """Entries of a draft head by the places of their tokens in a conversation, and hidden states that have none yet.

    The entry of a token knows the hidden state of the one before it. So the latest hidden state waits for a token, and
    so do those of steps behind which nothing was guessed. Some may be missing where a conversation goes on from what
    others computed: guesses are worse then, and never taken for more than guesses.
    """

    def __init__(self, head: DraftHead) -> None:
        self._head = head
        self._places: list[int] = []  # of the tokens that have entries
        self._begin = 0  # the place of the first token of those in `_heard`
        self._heard: Floats = np.zeros((0, head.graph.hidden), np.float32)

    def use(self, graph: Decoder) -> None:
        """Guess with another graph, over the same states."""
        self._head.graph = graph

    @property
    def waiting(self) -> int:
        """Hidden states without entries."""
        return len(self._heard)

    def rewind(self, length: int) -> None:
        """Forget what knows any token behind the first `length` of the conversation."""
        del self._places[bisect_left(self._places, length) :]
        self._head.states.rewind(len(self._places))
        self._heard = self._heard[: max(0, length - self._begin)]

    def hear(self, begin: int, hidden_states: Floats) -> None:
        """Take note of the hidden states [tokens, hidden] of the decoder for its tokens from `begin` on."""
        if begin != self._begin + len(self._heard):
            self._begin, self._heard = begin, self._heard[:0]
        self._heard = np.concatenate([self._heard, hidden_states])

    def read(self, ids: Ints, request: Request) -> None:
        """Enter the tokens of a prompt, ids [seq] as the decoder takes them, as far as was heard."""
        begin = self._begin + 1
        end = min(begin + len(self._heard), len(ids))
        if begin < end:
            images, positions = request.features_between(begin, end), request.positions[:, begin:end]
            known = self._heard[: end - begin]
            self._head.append(Step(ids[begin:end], positions, images, num_logits=0, hidden_states=known))
            self._entered(end - begin)

    def catch_up(self, history: Ints, offset: int) -> None:
        """Enter text tokens that were heard of; `history` and `offset` as of `guess`."""
        begin = self._begin + 1
        ids = history[begin : begin + len(self._heard)]
        if len(ids):
            known, positions = self._heard[: len(ids)], text_positions(len(ids), begin + offset)
            self._head.append(Step(ids, positions, num_logits=0, hidden_states=known))
            self._entered(len(ids))

    def guess(self, history: Ints, offset: int, count: int, choose: Choice = likeliest) -> list[int]:
        """Guess the `count` tokens behind all of a conversation, `history` [n]; none where too little was heard.

        `offset` leads from the places of text to its positions; `choose` is that of `DraftHead.draft`.
        """
        begin = self._begin + 1
        if not len(self._heard) or begin + len(self._heard) != len(history):
            return []
        drafts = self._head.draft(history[begin:], begin + offset, self._heard, count, choose)
        self._entered(len(self._heard))
        return drafts

    def keep(self, begin: int, end: int) -> KeptTokens:
        """Copies of the entries of tokens from `begin` to `end`, with nothing for the first of all, which has none.

        Empty where entries up to there are missing, or lie on a device.
        """
        states, first = self._head.states, max(begin - 1, 0)
        if states.sharing is not Kept.ROWS or end < 2 or self._places[end - 2 : end - 1] != [end - 1]:
            return {}
        rows = {name: array[:, : end - 1 - first] for name, array in states.keep(first).items()}
        return {HEAD + name: np.pad(array, ((0, 0), (begin == 0, 0), (0, 0))) for name, array in rows.items()}

    def adopt(self, parts: Sequence[tuple[int, KeptTokens]], length: int) -> None:
        """Go on from what others kept of the first `length` tokens, parts with the places where they begin."""
        mine = [
            (max(begin - 1, 0), {name.removeprefix(HEAD): array[:, begin == 0 :] for name, array in kept.items()
                                 if name.startswith(HEAD)})
            for begin, kept in parts
        ]  # fmt: skip
        if length < 2 or len(self._places) >= length - 1 or not all(kept for _, kept in mine):
            return
        positions = np.zeros((3, length - 1), np.int64)  # which a cache of rows does not ask for
        self._head.states.adopt(mine, positions, length - 1, 0)
        self._places = list(range(1, length))

    def _entered(self, count: int) -> None:
        self._places += range(self._begin + 1, self._begin + 1 + count)
        self._begin, self._heard = self._begin + count, self._heard[count:]
