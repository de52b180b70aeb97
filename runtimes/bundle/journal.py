"""What an interrupted build of one large file has finished, so that the next run continues inside the file."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

SUFFIX = ".journal"


class Journal:
    """The finished items of the file beside which it lies, as lines of JSON; items count for the same key only.

    Nothing here is trusted: whoever resumes compares the hashes with what the file holds.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.finished: dict[str, list[str]] = _read(path, key)
        self._lock = threading.Lock()

    def restart(self) -> None:
        """Forget all items."""
        self.finished = {}
        self.path.unlink(missing_ok=True)

    def record(self, item: str, hashes: list[str]) -> None:
        """Note an item whose bytes were written, with the hashes of its parts. May be called by several threads."""
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(json.dumps({"key": self.key}) + "\n")
            file.write(json.dumps({"item": item, "hashes": hashes}) + "\n")


def _read(path: Path, key: str) -> dict[str, list[str]]:
    """The items of a journal of this key; the last line may be half written."""
    finished: dict[str, list[str]] = {}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(lines[0])["key"] != key:
            return {}
        for line in lines[1:]:
            entry = json.loads(line)
            finished[str(entry["item"])] = [str(value) for value in entry["hashes"]]
    return finished
