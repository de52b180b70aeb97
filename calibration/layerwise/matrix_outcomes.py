"""What became of each matrix, and which of them an interrupted calibration has finished."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """Of one matrix; errors are relative mean squares of its outputs on the calibration tokens, next to those that the
    method aimed at."""

    name: str
    error: float
    nearest_error: float  # of rounding to nearest on the same grid
    outliers: float  # largest of the inputs' magnitudes over their median
    method: str  # that was kept: no worse on unseen inputs than rounding to nearest


class OutcomeJournal:
    """Outcomes as lines of JSON beside the weights that they are about; lines are written when these are."""

    def __init__(self, path: Path) -> None:
        self.path, self.outcomes = path, _read(path)

    @property
    def finished(self) -> set[str]:
        """Names of the matrices that are done."""
        return {outcome.name for outcome in self.outcomes}

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Note matrices whose weights are in the store."""
        self.outcomes += outcomes
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines("\n" + json.dumps(asdict(outcome)) for outcome in outcomes)  # "\n" ends a line cut off


def _read(path: Path) -> list[Outcome]:
    """The outcomes of a file; a line that an interruption cut off counts for nothing."""
    found: dict[str, Outcome] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, TypeError):
            outcome = Outcome(**json.loads(line))
            found[outcome.name] = outcome
    return list(found.values())
