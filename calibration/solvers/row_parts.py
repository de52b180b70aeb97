"""Rows of a matrix that do not depend on each other, worked on by all processors at once.

NumPy's BLAS would share out each small product instead, and wait for its slowest thread thousands of times a matrix:
beside any other program that takes three to eight times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from ...runtimes.process.core_limits import available_cores
from .levels import cuts

# Always cut alike, so that a result does not depend on the number of processors. Few enough for one part's temporaries
# to stay in the second-level cache, enough for Python's share of the time to be small.
PART = 1024

Part = TypeVar("Part")


def by_rows(work: Callable[[slice], Part], rows: int) -> list[Part]:
    """What `work` makes of each PART of the rows, in order."""
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(work, cuts(0, rows, PART)))
