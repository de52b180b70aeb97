"""The tests that `make test` leaves out."""

from __future__ import annotations

from pathlib import Path

LIST = Path(__file__).parents[1] / "slow.txt"


def slow_tests() -> list[str]:
    """Beginnings of their names."""
    return [line for line in LIST.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
