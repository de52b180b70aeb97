"""How well rounded matrices do on inputs that calibration never saw, layer by layer and group by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .prepared_samples import ANSWER, KINDS
from .shares import Kinds
from .streams import Floats, SampleStream

GROUPS = ("own kinds", "foreign kinds", "answers")  # of positions; what is kept is no worse than rounding on each
ROWS = 64  # inputs of each group and kind of token that are looked at
Errors = Mapping[str, float]  # by group


@dataclass(frozen=True)
class Cell:
    """Inputs of one group and kind of token: where they lie in some samples, as parts of these samples' lengths."""

    group: str
    places: Mapping[int, NDArray[np.float64]]

    def rows(self, stream: SampleStream, value: str, columns: int) -> Floats:
        """float32 [rows, columns], of a value."""
        found = []
        for index, places in self.places.items():
            rows = stream.samples[index][value].reshape(-1, columns)
            found.append(rows[(places * len(rows)).astype(np.int64)])
        return np.concatenate(found)


@dataclass(frozen=True)
class Trial:
    """The inputs that methods are compared on: some of each group and kind of token."""

    cells: tuple[Cell, ...] = ()

    @staticmethod
    def of(kinds: Kinds, foreign: Sequence[bool], first: int) -> Trial:
        """Of samples whose places in the streams begin at `first`."""
        return Trial(tuple(_cells(kinds, foreign, first)))

    def see(self, streams: Sequence[SampleStream], value: str, columns: int) -> Unseen:
        """A value of the float32 model (the first stream) and behind the layers quantized so far (the last one)."""
        plain, other = streams[0], streams[-1]
        return Unseen(
            [(c.group, c.rows(plain, value, columns), c.rows(other, value, columns)) for c in self.cells],
        )


@dataclass(frozen=True)
class Unseen:
    """Inputs by group, as the float32 model has them and as the quantized layers in front give them."""

    cells: Sequence[tuple[str, Floats, Floats]]

    def errors(self, weights: Mapping[str, Floats], others: Mapping[str, Floats]) -> Errors:
        """The relative mean square error that matrices make in their outputs, by group; kinds of tokens count the same.

        It is of `others` on the inputs that the quantized model has, next to `weights` on those of the float32 model.
        """
        found: dict[str, list[float]] = {}
        for group, plain, other in self.cells:
            lost = total = 0.0
            for name, weight in weights.items():
                wanted = plain @ weight.T
                total += float(np.square(wanted).sum(dtype=np.float64))
                wanted -= other @ others[name].T
                lost += float(np.square(wanted).sum(dtype=np.float64))
            found.setdefault(group, []).append(lost / max(total, 1e-30))
        return {group: float(np.mean(errors)) for group, errors in found.items()}


def no_worse(errors: Errors, than: Errors) -> bool:
    """On each group."""
    return all(error <= than[group] for group, error in errors.items())


def _cells(kinds: Kinds, foreign: Sequence[bool], first: int) -> Iterator[Cell]:
    for group in GROUPS:
        for kind in range(len(KINDS)):
            members = [
                np.flatnonzero(own == kind) if _belongs(group, kind, strange) else np.zeros(0, np.int64)
                for own, strange in zip(kinds, foreign, strict=True)
            ]
            if places := dict(_spread(members, [len(own) for own in kinds], first)):
                yield Cell(group, places)


def _belongs(group: str, kind: int, foreign: bool) -> bool:
    return kind == ANSWER if group == "answers" else foreign is (group == "foreign kinds")


def _spread(
    members: Sequence[NDArray[np.int64]], lengths: Sequence[int], first: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """ROWS of the members of all samples at most, evenly."""
    total = sum(map(len, members))
    chosen = np.unique(np.linspace(0, total - 1, min(ROWS, total)).astype(np.int64))
    start = 0
    for index, (own, length) in enumerate(zip(members, lengths, strict=True)):
        here = own[chosen[(chosen >= start) & (chosen < start + len(own))] - start]
        start += len(own)
        if len(here):
            yield first + index, (here + 0.5) / length
