"""What long work needs: its extra installed, a progress bar for each stage, and the memory that it took."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..targets.errors import MissingExtra
from .screen import console


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
    """A progress bar for each stage on stderr, with the time left; the function to call with (stage, done, total)."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    target = console(stderr=True)
    tasks: dict[str, TaskID] = {}
    lock = threading.Lock()  # the writers of weights call from several threads
    with Progress(*columns, console=target, disable=not target.is_terminal) as bars:

        def advance(stage: str, done: int, total: int) -> None:
            with lock:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage.replace("_", " "), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
