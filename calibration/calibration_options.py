"""What a user can choose of calibration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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
    def asked(self) -> dict[str, Any]:
        """The method, and what differs from the usual and changes bytes: what makes the same weights again.

        Samples are left out, whose name and hash stand elsewhere.
        """
        others = [field for field in fields(self) if field.name not in ("samples", "threads")]
        chosen = {each.name: value for each in others if (value := getattr(self, each.name)) != each.default}
        return {"method": self.method, **chosen}

    @property
    def wording(self) -> Wording:
        """How the model answers samples without an answer."""
        return Wording(self.answer_tokens, self.answer_temperature, self.seed)
