"""What long work needs: its extra installed, and a progress bar for each stage."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from rich.progress import BarColumn, Progress, Task, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..targets.errors import MissingExtra
from .screen import console

QUIET = 60.0  # seconds between two lines about the same work where nobody watches a bar


@contextlib.contextmanager
def needs(extra: str, feature: str) -> Iterator[None]:
    """Turn a failed import of another package within the block into a MissingExtra that names the extra."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("", "lensmith"):
            raise
        raise MissingExtra(f"{feature} (no module {error.name!r})", extra) from error


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage on stderr, with the time left; the function to call with (stage, done, total).

    Where stderr is no terminal, long work says how far it is by a line every QUIET seconds.
    """
    columns = (TextColumn("{task.description:<16}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    target = console(stderr=True)
    tasks: dict[str, TaskID] = {}
    lock = threading.Lock()  # the writers of weights call from several threads
    said = time.monotonic()
    bars = Progress(*columns, console=target, disable=not target.is_terminal)
    # Before rich 15, bars that are off end in an empty line, too.
    with bars if target.is_terminal else contextlib.nullcontext():

        def advance(stage: str, done: int, total: int) -> None:
            nonlocal said
            with lock:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage.replace("_", " "), total=total)
            bars.update(tasks[stage], completed=done, total=total)
            now = time.monotonic()
            if not target.is_terminal and now - said >= QUIET:
                said = now
                target.print(_line(bars.tasks[tasks[stage]]), soft_wrap=True)

        yield advance


def _line(task: Task) -> str:
    left = "" if task.time_remaining is None else f", about {timedelta(seconds=round(task.time_remaining))} left"
    return f"{task.description}: {task.completed:.0f} of {task.total or 0:.0f}{left}"
