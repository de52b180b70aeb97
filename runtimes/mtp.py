"""Multi-token prediction: a small head that guesses tokens ahead from the decoder's hidden states."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .engine import Decoder, Floats, ImageFeatures, Ints
from .positions import text_positions
from .requests import Request


class DraftHead:
    """The graph `mtp` of a bundle with a KV cache of its own.

    Entry i of its cache stands for the decoder's hidden state of token i and token i + 1 with its position, from which
    it predicts token i + 2. What it guesses is never certain: only the decoder says what is right.
    """

    def __init__(self, path: Path, *, capacity: int, threads: int | None = None) -> None:
        self.graph = Decoder(path, capacity=capacity, threads=threads)

    def follow(self, ids: Ints, request: Request, end: int, hidden_states: Floats) -> None:
        """Append what the decoder has just read of a prompt: ids [seq] of all of it as the decoder takes them.

        `hidden_states` [tokens, hidden] are those of the tokens in front of `end`. The last of a prompt has no token
        behind it yet.
        """
        begin = end - len(hidden_states)
        self.graph.rewind(begin)
        inside = slice(begin + 1, min(end + 1, len(ids)))
        if ids[inside].size:
            images = request.features_between(inside.start, inside.stop)
            known = hidden_states[: inside.stop - inside.start]
            self.append(ids[inside], request.positions[:, inside], known, images, num_logits=0)

    def append(
        self,
        ids: Ints,
        positions: Ints,
        hidden_states: Floats,
        images: ImageFeatures | None = None,
        *,
        num_logits: int = 1,
    ) -> Floats:
        """Append tokens [seq] at positions [3, seq], each with the hidden state [seq, hidden] of the token before it.

        Returns logits [num_logits, vocab] of what follows the last of them. Raises InputError behind the capacity.
        """
        return self.graph.run(ids, positions, images, num_logits=num_logits, hidden_states=hidden_states)

    def draft(self, token: int, position: int, hidden_state: Floats, count: int) -> Ints:
        """Guess the `count` tokens behind `token`, from the hidden state [1, hidden] of the token before it.

        `position` is that of the token. Afterwards the cache holds what it held before and the token itself.
        """
        drafts = np.zeros(count, np.int64)
        for index in range(count):
            ids = np.array([token], np.int64)
            drafts[index] = self.append(ids, text_positions(1, position + index), hidden_state)[-1].argmax()
            token, hidden_state = int(drafts[index]), self.graph.hidden_states
        self.graph.rewind(self.graph.length - count + 1)
        return drafts
