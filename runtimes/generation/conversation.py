"""One conversation in a decoder: its states, and the tokens and images that these are certain to hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat

import numpy as np

from ..engines.contract import Decoder, Floats, Ints, States, Step
from ..prompt.prompt_builder import PromptBuilder
from ..prompt.requests import Request
from ..values import whole
from .drafting import DraftHead
from .prefill import chunks, shared, worth_saving


class Conversation:
    """States over the weights that all conversations share, so that the next prompt begins where it parts from these.

    One thread at a time may use it. Behind a step that fails it is empty or shorter, never wrong.
    """

    def __init__(self, decoder: Decoder, prompts: PromptBuilder, chunk: int) -> None:
        self.decoder, self.prompts, self.chunk = decoder, prompts, chunk
        self.states: States = decoder.open_states()
        self.user = threading.current_thread()  # the latest
        self._ids = np.zeros(decoder.capacity, np.int64)  # behind the length of the states without meaning
        self._positions = np.zeros((3, decoder.capacity), np.int64)
        self._images: list[tuple[int, bytes]] = []  # begin and key of the images among them, and of some behind them

    @property
    def length(self) -> int:
        """Tokens in the states."""
        return self.states.length

    @property
    def ids(self) -> Ints:
        """The tokens in the states."""
        return self._ids[: self.length]

    @property
    def hidden_states(self) -> Floats:
        """The hidden states [positions, hidden] of the latest step, where the graph gives them."""
        return self.states.hidden_states

    def forget(self) -> None:
        """Begin with nothing."""
        self.rewind(0)

    def rewind(self, length: int) -> int:
        """Forget all tokens behind the first `length`, and more where there is no way back; how many are left."""
        return self.states.rewind(whole("length", length, 0))

    def reusable(self, request: Request) -> int:
        """Length of the longest common beginning of the states and the prompt, with the same images and positions.

        Behind a video that lasts longer than its text, an answer has other positions than in a later turn's prompt.
        """
        length, known = shared(request.prompt.ids, self.ids), chain(self._images, repeat((0, None)))
        moved = np.flatnonzero((request.positions[:, :length] != self._positions[:, :length]).any(axis=0))
        length = int(moved[0]) if len(moved) else length
        for (begin, _), image, (_, key) in zip(request.prompt.image_spans, request.images, known, strict=False):
            if image.key != key:
                length = min(length, int(begin))
        return length

    def start(self, request: Request, num_logits: int = 1) -> int:
        """How many tokens of a prompt need not be computed again, when its last `num_logits` must be."""
        return self.states.reach(min(self.reusable(request), len(request.prompt) - num_logits))

    def prefill(
        self,
        request: Request,
        *,
        num_logits: int = 1,
        chunk: int | None = None,
        reuse: bool = True,
        head: DraftHead | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Floats:
        """Run a prompt through the decoder in chunks; logits [num_logits, vocab] of its last positions.

        Once `stopped` says so it ends between two chunks, with no logits.

        What the states hold of an earlier turn is used again. All logits come from the last chunk, which is as long as
        they are, if not longer. A draft `head` reads what the decoder reads.
        """
        ids = request.prompt.ids
        last = len(ids) - whole("num_logits", num_logits, 1, len(ids))
        chunk = self.chunk if chunk is None else whole("chunk", chunk, 1)
        start = self.rewind(self.start(request, num_logits) if reuse else 0)
        if head is not None:
            head.states.rewind(max(0, start - 1))  # its last entry knew the token behind
        begins = map(int, request.prompt.image_spans[:, 0])
        self._images = [(begin, image.key) for begin, image in zip(begins, request.images, strict=True)]
        fed, chunk = self.prompts.for_decoder(ids), max(chunk, num_logits)
        stops = worth_saving(request, start, last) if self.states.recurrent else []
        logits: Floats = np.zeros((0, 0), np.float32)
        for begin, end in chunks(start, len(ids), chunk, num_logits, stops):
            if stopped():
                return logits[:0]
            inside = slice(begin, end)
            step = Step(
                ids[inside],
                request.positions[:, inside],
                request.features_between(begin, end),
                num_logits=num_logits if end == len(ids) else 0,
                num_hidden_states=0 if head is None else end - begin,
            )
            logits = self._append(step, fed[inside])
            if head is not None:
                head.follow(fed, request, end, self.hidden_states)
            if end in stops:
                self.states.save()
        return logits

    def run(self, step: Step) -> Floats:
        """Append tokens as `Decoder.run` does. Images that come this way are not used again by another prompt."""
        if step.images is not None:
            self._images = [(begin, key) for begin, key in self._images if begin < self.length]
        return self._append(step, step.ids)

    def _append(self, step: Step, fed: Ints) -> Floats:
        """Append tokens, which the decoder is given as `fed`."""
        self.user = threading.current_thread()
        room = self._ids[self.length : self.length + len(step.ids)]
        room[:] = step.ids[: len(room)]
        begin = self.length
        logits = self.decoder.run(self.states, replace(step, ids=fed))
        self._positions[:, begin : self.length] = step.positions
        return logits
