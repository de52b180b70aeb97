"""A folder of files of arrays that may be lost: up to a limit of bytes, the least used going first.

Several processes may have one folder. A file appears whole or not at all, whenever its writer is killed; each says
whose it is and its own name, and zip's checksums are compared on reading. Files that are not of a cache stay untouched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...targets.errors import InputError
from ..process.forks import computing
from .array_files import Arrays, read_arrays, write_arrays
from .files import sync_folder
from .locks import held

log = logging.getLogger(__name__)
Result = TypeVar("Result")
CACHE_BYTES = 2_000_000_000
MOST_WAITING = 64  # files still to be written, behind which further ones are left out
FORMAT = 1
OWNER, NAME = 16, 40  # hexadecimal digits
FILES = re.compile(rf"[0-9a-f]{{{OWNER}}}-[0-9a-f]{{{NAME}}}\.npz")
PARTIAL = re.compile(rf"\.{FILES.pattern}\.\d+\.partial")
LOCK, HEADER = ".lock", "header"


class CacheFolder:
    """The files of one `owner`, a text that says all they depend on, in a folder that others may have files in, too.

    Raises InputError where no folder can be made. What fails later is logged, and costs no more than its file.
    """

    def __init__(self, folder: str | Path, most_bytes: int, owner: str) -> None:
        self.folder, self.most_bytes, self.owner = Path(folder), most_bytes, owner
        self._mine = hashlib.sha256(owner.encode()).hexdigest()[:OWNER]
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / LOCK).touch(mode=0o600)
        except OSError as error:
            raise InputError(
                f"{folder} cannot be a cache ({error.strerror}); name a folder that you may write to"
            ) from None
        self._writer = ThreadPoolExecutor(1, "lensmith-cache")
        self._waiting = list[Future[None]]()
        self._lock = threading.Lock()

    def names(self) -> set[str]:
        """The names of the owner's files."""
        return {entry.name[OWNER + 1 : -4] for entry in self._files() if entry.name.startswith(self._mine)}

    def changed(self) -> int:
        """A number that is another one when a file came or went."""
        with suppress(OSError):
            return self.folder.stat().st_mtime_ns
        return 0

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._path(name).is_file()

    def read(
        self, name: str, made_of: Callable[[dict[str, Any], Arrays], Result], only: Collection[str] | None = None
    ) -> Result | None:
        """What is `made_of` what a file says and its arrays, or `only` some of these; None where there is no file.

        One that is broken, or not the owner's under this name, is told of in the log and removed.
        """
        path = self._path(name)
        try:
            arrays = read_arrays(path, None if only is None else {HEADER, *only})
            header = json.loads(bytes(arrays.pop(HEADER)).decode())
            if [header.pop(key, None) for key in ("format", "owner", "name")] != [FORMAT, self.owner, name]:
                raise ValueError("it belongs to another cache")
            return made_of(header, arrays)
        except Exception as error:
            if path.is_file():
                log.warning("%s is no whole file of this cache and is left out (%s)", path, error)
                with suppress(OSError):  # Windows removes no file that another process has open
                    path.unlink()
            return None

    def put(self, name: str, said: dict[str, Any], arrays: Arrays, behind: str | None = None) -> None:
        """Write a file in a thread of its own, unless the one that it comes `behind` is not there then.

        The arrays must stay as they are. Nothing is written while too many files wait.
        """
        with self._lock:
            self._waiting = [each for each in self._waiting if not each.done()]
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(self._writer.submit(self._write, name, said, arrays, behind))

    def touch(self, names: Sequence[str]) -> None:
        """Mark files as used, the last one latest."""
        now = time.time_ns()
        for later, name in enumerate(names):
            with suppress(OSError):
                os.utime(self._path(name), ns=(now + later, now + later))

    def flush(self) -> None:
        """Return when all that was put is on disk, or will never be."""
        with self._lock:
            waiting = list(self._waiting)
        wait(waiting)

    def _path(self, name: str) -> Path:
        return self.folder / f"{self._mine}-{name}.npz"

    def _files(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder) as entries:
                return [entry for entry in entries if FILES.fullmatch(entry.name)]
        except OSError:
            return []

    def _write(self, name: str, said: dict[str, Any], arrays: Arrays, behind: str | None) -> None:
        path = self._path(name)
        partial = self.folder / f".{path.name}.{os.getpid()}.partial"
        header = json.dumps({**said, "format": FORMAT, "owner": self.owner, "name": name}).encode()
        contents = {HEADER: np.frombuffer(header, np.uint8), **arrays}
        try:
            (self.folder / LOCK).touch(mode=0o600)
            with computing(), held(self.folder / LOCK, wait=True):
                if behind is not None and not self.has(behind):
                    return
                self._remove_partial()
                if not self._make_room(sum(array.nbytes + 1024 for array in contents.values()), path.name):
                    return
                with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    write_arrays(file, contents)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
                sync_folder(self.folder)
        except OSError as error:
            log.warning("%s could not be written (%s); it will be computed again", path, error.strerror or error)
            partial.unlink(missing_ok=True)

    def _remove_partial(self) -> None:
        """Remove what writers left that were killed: whoever writes holds the lock."""
        for name in os.listdir(self.folder):
            if PARTIAL.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)

    def _make_room(self, needed: int, replaced: str) -> bool:
        """Remove the least used files until so many bytes fit; whether they do."""
        if needed > self.most_bytes:
            return False
        sizes = list[tuple[int, int, str]]()
        for entry in self._files():
            with suppress(OSError):
                status = entry.stat()
                sizes.append((status.st_mtime_ns, status.st_size, entry.name))
        total = sum(size for _, size, name in sizes if name != replaced)
        for _, size, name in sorted(sizes):
            if total + needed <= self.most_bytes:
                break
            if name != replaced:
                (self.folder / name).unlink(missing_ok=True)
                total -= size
        return True
