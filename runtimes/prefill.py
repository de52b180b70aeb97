"""How a prompt goes through the decoder: what it shares with an earlier one, its pieces, and where states are saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, repeat

import numpy as np

from .engine import Decoder, Floats, Ints
from .mtp import DraftHead
from .prompt import PromptBuilder
from .requests import Request

SAVING_TOKENS = 64  # fewer are computed again sooner than a copy of the states is made and a chunk cut in two


class PromptCache:
    """The decoder with what it has read of prompts, so that the next one begins where they part."""

    def __init__(self, decoder: Decoder, prompts: PromptBuilder, chunk: int) -> None:
        self.decoder, self.prompts, self.chunk = decoder, prompts, chunk
        self.ids: Ints = np.zeros(0, np.int64)  # certain to be in the states of the decoder, as far as these reach
        self._images: tuple[bytes, ...] = ()

    def forget(self) -> None:
        """Begin with nothing."""
        self.decoder.rewind(0)
        self.ids, self._images = np.zeros(0, np.int64), ()

    def reusable(self, request: Request) -> int:
        """Length of the longest common beginning of the cache and the prompt, with the same images in it."""
        length = shared(request.prompt.ids, self.ids[: self.decoder.length])
        keys = chain(self._images, repeat(b""))
        for (begin, _), image, key in zip(request.prompt.image_spans, request.images, keys, strict=False):
            if image.key != key:
                length = min(length, int(begin))
        return length

    def start(self, request: Request, num_logits: int = 1) -> int:
        """How many tokens of a prompt need not be computed again, when its last `num_logits` must be."""
        return self.decoder.reach(min(self.reusable(request), len(request.prompt) - num_logits))

    def prefill(
        self, request: Request, *, num_logits: int, chunk: int | None, reuse: bool, head: DraftHead | None
    ) -> Floats:
        """See `Model.prefill`."""
        ids, last = request.prompt.ids, len(request.prompt) - num_logits
        start = self.decoder.rewind(self.start(request, num_logits) if reuse else 0)
        if head is not None:
            head.graph.rewind(max(0, start - 1))  # its last entry knew the token behind
        self.ids, self._images = ids[:start], ()
        fed, chunk = self.prompts.for_decoder(ids), max(chunk or self.chunk, num_logits)
        stops = worth_saving(request, start, last) if self.decoder.states.recurrent else []
        logits: Floats = np.zeros((0, 0), np.float32)
        for begin, end in chunks(start, len(ids), chunk, num_logits, stops):
            logits = self.decoder.run(
                fed[begin:end],
                request.positions[:, begin:end],
                request.features_between(begin, end),
                num_logits=num_logits if end == len(ids) else 0,
                num_hidden_states=0 if head is None else end - begin,
            )
            if head is not None:
                head.follow(fed, request, end, self.decoder.hidden_states)
            if end in stops:
                self.decoder.save()
        self.ids, self._images = ids, tuple(image.key for image in request.images)
        return logits


def shared(one: Ints, other: Ints) -> int:
    """Length of the common beginning of two lists of ids."""
    shortest = min(len(one), len(other))
    differs = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differs[0]) if len(differs) else shortest


def worth_saving(request: Request, start: int, last: int) -> list[int]:
    """Where recurrent states are saved on the way from `start` to `last`: behind the images and behind the turn.

    Another question about the same images goes on from the one, the next turn from the other.
    """
    stops: list[int] = []
    ends = [*(int(end) for _, end in request.prompt.image_spans[-1:]), request.turn_end]
    for end in sorted(ends):
        if end - (stops[-1] if stops else start) >= SAVING_TOKENS and end <= last:
            stops.append(end)
    return stops


def chunks(start: int, end: int, chunk: int, last: int, stops: Sequence[int] = ()) -> Iterator[tuple[int, int]]:
    """Cut start..end at the stops and into chunks, the last of them with at least `last` tokens."""
    for stop in stops:
        yield from chunks(start, stop, chunk, 0)
        start = stop
    while end - start > chunk:
        stop = min(start + chunk, end - last)
        yield start, stop
        start = stop
    yield start, end
