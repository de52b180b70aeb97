"""How work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # stage, done, total
Steps = Callable[[int, int], None]  # done, total, of one stage
Advance = Callable[[int], None]  # elements that are done besides
