"""Which of the weights that calibration made are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .judge import Judgement, worse_groups
from .store import Store

NEAREST, SEARCHED = "nearest", "mse"  # names of judgements beside that of the method: of rounding, and its fallback


@dataclass(frozen=True)
class Verdict:
    """The last method that was looked at, the weakest if none is kept, and on which groups each was worse."""

    method: str
    store: Store | None  # None: nothing was calibrated
    judged: Mapping[str, Judgement]  # "float", NEAREST, and by method
    tried: Mapping[str, list[str]]

    @property
    def kept(self) -> bool:
        """Whether the method is kept; else weights are rounded to nearest."""
        return self.store is not None and not self.tried[self.method]

    @property
    def methods(self) -> dict[str, str]:
        """What each matrix was left to, by name; tables are not among them."""
        return {} if self.store is None else {row.name: row.method for row in self.store.journal.outcomes}

    @property
    def measured(self) -> Judgement:
        """Of the weights that are kept."""
        return self.judged[self.method if self.kept else NEAREST]


def choose(method: str, stores: Mapping[str, Store], judged: Mapping[str, Judgement]) -> Verdict:
    """The first of some methods, `method` and weaker ones, that is worse than none behind it and rounding to nearest.

    Without any, weights are rounded to nearest.
    """
    tried: dict[str, list[str]] = {}
    methods = list(stores)
    for index, method in enumerate(methods):
        weaker = [judged[name] for name in (*methods[index + 1 :], NEAREST)]
        tried[method] = worse_groups(judged[method], *weaker)
        if not tried[method]:
            break
    return Verdict(method, stores.get(method), judged, tried)
