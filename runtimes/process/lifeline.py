"""Processes that end with the one that started them, however that ends: it holds the other end of a pipe."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ORPHANED = 1  # the exit code


@contextmanager
def lifeline() -> Iterator[int]:
    """What a child is to take as its standard input: it ends here, or where this process does."""
    ours, theirs = os.pipe()[::-1]
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


def end_with_parent() -> None:
    """In a child that has a lifeline: end once it ends, whatever else runs."""
    threading.Thread(target=_wait, args=(sys.stdin.fileno(),), daemon=True).start()


def _wait(line: int) -> None:
    os.read(line, 1)  # not by sys.stdin, whose lock would end the interpreter with an error
    os._exit(ORPHANED)
