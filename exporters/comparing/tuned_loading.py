"""How a bundle is opened that is compared: with the threads of all contenders, or as it was tuned for this device."""

from __future__ import annotations

from typing import Any

from ...runtimes.bundle.opening import Bundle
from ...runtimes.tuning.tuned_files import tuning_of
from ...runtimes.tuning.tuning import USUAL, Tuning


def loading_of_bundle(bundle: Bundle, threads: int, *, tuned: bool) -> dict[str, Any]:
    """Options of loading: `threads`, or what `lensmith tune` found here where that is to count and differs."""
    tuning = tuning_of(bundle) if tuned else USUAL
    return {"threads": threads if tuning == USUAL else None, "tuning": tuning}


def told_tuning(tuning: Tuning) -> str:
    """What stands behind the name of an engine."""
    return f", tuned here: {tuning.words}" if tuning.words else ""
