"""Multi-token prediction: a small head that guesses tokens ahead from the decoder's hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..engines.contract import Decoder, Floats, Ints, States, Step
from ..prompt.positions import text_positions
from ..prompt.requests import Request

Choice: TypeAlias = Callable[[Floats, int], int]  # an id from logits [vocab], for the guess with this index


def likeliest(logits: Floats, _: int) -> int:
    """The id with the highest of `logits` [vocab]."""
    return int(logits.argmax())


class DraftHead:
    """The graph `mtp` of a bundle with a KV cache of its own, for the one conversation that it follows.

    An entry of its cache stands for the decoder's hidden state of a token and the token behind that with its position,
    from which it predicts the one behind both. What it guesses is never certain, the decoder says what is right: so
    entries may be missing where a prompt goes on from an earlier one.
    """

    def __init__(self, graph: Decoder) -> None:
        self.graph = graph
        self.states: States = graph.open_states()

    def follow(self, ids: Ints, request: Request, end: int, hidden_states: Floats) -> None:
        """Append what the decoder has just read of a prompt: ids [seq] of all of it as the decoder takes them.

        `hidden_states` [tokens, hidden] are those of the tokens in front of `end`. The last of a prompt has no token
        behind it yet.
        """
        begin = end - len(hidden_states)
        inside = slice(begin + 1, min(end + 1, len(ids)))
        if ids[inside].size:
            images = request.features_between(inside.start, inside.stop)
            known = hidden_states[: inside.stop - inside.start]
            self.append(Step(ids[inside], request.positions[:, inside], images, num_logits=0, hidden_states=known))

    def append(self, step: Step) -> Floats:
        """Append tokens, each with the hidden state of the token before it among `hidden_states`.

        Returns logits [num_logits, vocab] of what follows the last of them. Raises InputError behind the capacity.
        """
        return self.graph.run(self.states, step)

    def draft(
        self, ids: Ints, position: int, hidden_states: Floats, count: int, choose: Choice = likeliest
    ) -> list[int]:
        """Append text tokens [seq] from `position` on, as `append` does, and guess the `count` tokens behind them.

        Each is what `choose` makes of its logits. The guesses do not stay in the cache.
        """
        logits = self.append(Step(ids, text_positions(len(ids), position), hidden_states=hidden_states))
        length, drafts = self.states.length, [choose(logits[-1], 0)]
        for ahead in range(1, count):
            last, place = np.array(drafts[-1:], np.int64), text_positions(1, position + len(ids) + ahead - 1)
            logits = self.append(Step(last, place, hidden_states=self.states.hidden_states))
            drafts.append(choose(logits[-1], ahead))
        self.states.rewind(length)
        return drafts
