"""How a prompt goes through the decoder: what it shares with an earlier one, its pieces, and where states are saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..engines.contract import Ints
from ..prompt.requests import Request

SAVING_TOKENS = 64  # fewer are computed again sooner than a copy of the states is made and a chunk cut in two


def shared(one: Ints, other: Ints) -> int:
    """Length of the common beginning of two lists of ids."""
    shortest = min(len(one), len(other))
    differs = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differs[0]) if len(differs) else shortest


def worth_saving(request: Request, start: int, last: int) -> list[int]:
    """Where recurrent states are saved on the way from `start` to `last`: behind the system's messages and tools, the
    images and the turn.

    Another conversation goes on from the first, another question about the same images from the second, the next turn
    from the last.
    """
    stops: list[int] = []
    ends = [request.system_end, *(int(end) for _, end in request.prompt.image_spans[-1:]), request.turn_end]
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
