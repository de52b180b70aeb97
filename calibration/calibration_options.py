"""What a user can choose of calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .samples.own_answers import Wording


@dataclass(frozen=True)
class CalibrationOptions:
    """What the user chose of calibration."""

    method: str = "descent"
    samples: Path | None = None  # None: a generated set
    limit: int = 64  # samples to calibrate on; a third as many are held out besides
    only_samples: bool = False  # without built-in ones beside them
    seed: int = 0
    budget: int | None = None  # bytes of the bundle: bits and group sizes are chosen for each matrix
    max_kl: float | None = None  # nats on held-out positions, likewise
    answer_tokens: int = Wording.tokens  # of answers that the model gives itself where samples have none; 0: no answers
    answer_temperature: float = Wording.temperature  # 0: greedily
    threads: int | None = None

    @property
    def wording(self) -> Wording:
        """How the model answers samples without an answer."""
        return Wording(self.answer_tokens, self.answer_temperature, self.seed)
