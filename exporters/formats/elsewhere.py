"""Bundles that cannot be run where they are built."""

from __future__ import annotations

from dataclasses import dataclass

COMPARE = "compare it with its checkpoint on that GPU: lensmith compare BUNDLE --against CHECKPOINT"


@dataclass(frozen=True)
class Elsewhere:
    """Why a bundle runs on its device alone, and how it is checked there."""

    reason: str
    advice: str = COMPARE
