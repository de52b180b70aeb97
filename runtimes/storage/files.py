"""What lensmith knows about files: their hashes, JSON that is always the same, safe names, room on the disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

from ...targets.errors import InputError
from .locks import held
from .reading import read_limited

MOST_JSON_BYTES = 1 << 28
_NOT_ON_WINDOWS = re.compile(r"^(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)|[. ]$", re.IGNORECASE)  # and ".." nowhere


class FileRecord(TypedDict):
    """What is kept about a file: its size in bytes and the SHA-256 of its content in hexadecimal."""

    size: int
    sha256: str
    begin_sha256: NotRequired[str]  # of the first bytes, in manifests, where a file is too large to hash on opening


def hash_file(path: str | Path) -> FileRecord:
    """The size and SHA-256 of one file, read as a stream; a missing file is an InputError."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"size": file.tell(), "sha256": digest}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check that it exists and is readable.") from error


def hash_begin(path: Path, size: int) -> str:
    """The SHA-256 of the first `size` bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()


def hash_files(paths: Iterable[Path]) -> dict[Path, FileRecord]:
    """The record of each of `paths`."""
    return {path: hash_file(path) for path in paths}


def hash_in_background(paths: Iterable[Path]) -> Future[dict[Path, FileRecord]]:
    """Start `hash_files` in a thread of its own, which never delays the end of the process."""
    future: Future[dict[Path, FileRecord]] = Future()
    chosen = list(paths)

    def work() -> None:
        try:
            future.set_result(hash_files(chosen))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="hash_files", daemon=True).start()
    return future


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; anything else there is an InputError that names the file."""
    content = read_limited(path, MOST_JSON_BYTES, "a file of JSON that exists and is readable")
    try:
        data = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy or download the file again.") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a JSON {type(data).__name__}, expected an object; copy the file again.")
    return data


def dump_json(data: object) -> str:
    """JSON text that is the same for the same data: sorted keys, two spaces, one final newline."""
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, data: object) -> None:
    """Write `dump_json(data)` so that the file is on disk when this returns."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(dump_json(data))
        file.flush()
        os.fsync(file.fileno())


def is_safe_name(name: str) -> bool:
    """Whether `name` is a plain relative path below its folder, on every system: no `..`, root, drive or backslash.

    Nor is it one of those that Windows takes for a device (NUL), for a part of a file (a:b), or for another name (a. ).
    """
    path = PurePosixPath(name)
    plain = bool(name) and str(path) == name and name != "." and not set("\\:\0") & set(name)
    return plain and not path.is_absolute() and not any(map(_NOT_ON_WINDOWS.search, path.parts))


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether a file of a folder lies in it, or where huggingface_hub's cache keeps what it links into the folder."""
    real = Path(os.path.realpath(path))  # Path.resolve fails on links that lead to themselves
    return any(real.is_relative_to(place) for place in (folder.resolve(), *_blobs(folder)))


def _blobs(folder: Path) -> list[Path]:
    """`blobs` of the cache that a folder is a snapshot of, or lies in one: models--NAME/snapshots/REVISION."""
    place = folder.absolute()
    return [
        each.parent.parent.resolve() / "blobs" for each in (place, *place.parents) if each.parent.name == "snapshots"
    ]


def files_in(folder: Path) -> list[str]:
    """The relative names of all files and links below a folder."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files, and the folders below `folder` that become empty."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
        for parent in list(PurePosixPath(name).parents)[:-1]:
            with contextlib.suppress(OSError):  # something else is in it
                (folder / parent).rmdir()


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the system knows how."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_space(folder: Path, needed_bytes: int) -> None:
    """An InputError when the disk of `folder` (or of its nearest existing parent) has fewer bytes free than needed."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise InputError(
            f"{folder} needs {needed_bytes / 1e9:.2f} GB but its disk has {free_bytes / 1e9:.2f} GB free; "
            "free some space or choose another folder."
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or the one it was raised from, is the system's "disk full" or "quota exceeded"."""
    if not isinstance(error, OSError):
        return error is not None and is_disk_full(error.__cause__)
    # numpy's tofile gives no number, only a text
    told = error.errno is None and re.search("Not enough free space|requested and .* written", str(error)) is not None
    return told or error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def disk_full_is_input(folder: Path) -> Iterator[None]:
    """Turn the system's "disk full" into an InputError that names `folder`."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise InputError(
            f"the disk became full while {folder} was being written, and nothing was kept; "
            "free some space or choose another folder."
        ) from error


def sync_file(path: Path) -> None:
    """Return when the content of a file is on disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` against a second process; an InputError when one has it. A killed process lets go."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(folder, wait=False))
        except BlockingIOError as error:
            raise InputError(f"another process is writing {folder}; wait for it or choose another folder.") from error
        yield
