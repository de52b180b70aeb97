"""A draft head that goes along with one conversation: through prompts in pieces, chosen tokens, and ways back."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from ..engines.contract import Decoder, Floats, Ints, Step
from ..prompt.positions import text_positions
from ..prompt.requests import Request
from .drafting import Choice, DraftHead, likeliest


class FollowingHead:
    """Entries of a draft head by the places of their tokens in a conversation, and hidden states that have none yet.

    The entry of a token knows the hidden state of the one before it. So the latest hidden state waits for a token, and
    so do those of steps behind which nothing was guessed. Entries are missing for what other conversations computed:
    guesses are worse then, and never taken for more than guesses.
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

    def _entered(self, count: int) -> None:
        self._places += range(self._begin + 1, self._begin + 1 + count)
        self._begin, self._heard = self._begin + count, self._heard[count:]
