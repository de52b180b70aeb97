"""A folder that appears whole or not at all: what it may replace, where it is prepared, how it gets its name."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ...targets.errors import InputError
from .files import sync_folder
from .locks import BESIDE

PARTIAL, CALIBRATION = "partial", "calibration"  # folders beside it while it is made
# What goes, beside it or inside of one that must not be moved, and there what comes, too.
REPLACED, READY = "replaced", "ready"


def check_out(out: str | Path, kind: str, is_kind: Callable[[Path], bool], *, force: bool = False) -> Path:
    """The real path of a folder to make; InputError unless it is new or empty, or of the `kind` and to be replaced."""
    if not str(out):
        raise InputError(f"the name of the new {kind} is empty; expected the path of a folder")
    real = Path(os.path.realpath(out))
    aside = real.parent / _hidden(real.name, REPLACED)  # the root of all folders has no name
    if aside.is_dir() and not real.exists():  # stopped between the two moves of `put_in_place`
        aside.rename(real)
    if real.is_dir():
        # Bring to an end, or undo, what was stopped in the middle of `_fill`
        replaced, ready, new = (real / _hidden("", purpose) for purpose in (REPLACED, READY, PARTIAL))
        if ready.is_dir():
            _complete(real, "")
        elif replaced.is_dir() and new.is_dir():
            _move(replaced, real, os.listdir(replaced))
            replaced.rmdir()
        elif replaced.is_dir():
            shutil.rmtree(replaced)
    if not real.exists() or (real.is_dir() and not _content(real)):
        return real
    if not real.is_dir() or not is_kind(real):
        raise InputError(f"{out} exists and is not a {kind}; choose another folder, or remove it first.")
    if not force:
        raise InputError(f"{out} is a {kind} already; replace it with --force (in Python: force=True), or choose "
                         "another folder.")  # fmt: skip
    return real


def workplace(out: Path, purpose: str) -> Path:
    """Where a real path is prepared: a hidden sibling, or a hidden folder inside of one that cannot be exchanged."""
    return out / _hidden("", purpose) if _stays(out) else out.with_name(_hidden(out.name, purpose))


def put_in_place(new: Path, final: Path, *, last: str) -> None:
    """Give `new` the name `final`, whose old content goes: atomic where Linux or macOS can exchange two names.

    Elsewhere the old folder is moved away first, which Windows refuses while a program has one of its files open: then
    nothing has changed. A folder that must not be moved is emptied and filled, the file `last` at the end. What stops
    that in the middle leaves all of both, and `check_out` makes one of them whole again.
    """
    if new.parent == final:
        _fill(new, final, last)
    elif final.exists() and _exchange(new, final):
        shutil.rmtree(new, ignore_errors=True)  # now the old content
    else:
        aside = final.with_name(_hidden(final.name, REPLACED))
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier one that could not go
        if final.exists():
            final.rename(aside)
        new.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(final.parent)


def _hidden(name: str, purpose: str) -> str:
    return f".{name}.{purpose}" if name else f".{purpose}"


def _content(folder: Path) -> set[str]:
    """What is in a folder, but for what an interrupted run left."""
    own = {_hidden("", purpose) for purpose in (PARTIAL, PARTIAL + BESIDE, CALIBRATION, REPLACED, READY)}
    return set(os.listdir(folder)) - own


def _stays(folder: Path) -> bool:
    """Whether a folder must not be moved: a disk of its own is mounted there, or this process or its shell is in it."""
    return folder.is_dir() and (os.path.ismount(folder) or Path.cwd().is_relative_to(folder))


def _fill(new: Path, final: Path, last: str) -> None:
    replaced = final / _hidden("", REPLACED)
    replaced.mkdir()
    _move(final, replaced, sorted(_content(final), key=lambda name: name != last))  # without it, the rest is nothing
    new.rename(final / _hidden("", READY))  # from here on forward, before that back
    _complete(final, last)


def _complete(final: Path, last: str) -> None:
    ready = final / _hidden("", READY)
    _move(ready, final, sorted(os.listdir(ready), key=lambda name: name == last))
    ready.rmdir()
    sync_folder(final)
    shutil.rmtree(final / _hidden("", REPLACED))


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (source / name).rename(target / name)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; whether the system could."""
    here, flag = -100, 2  # AT_FDCWD; RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, flag) == 0)
        return bool(library.renameat2(here, names[0], here, names[1], flag) == 0)
    except (AttributeError, OSError, TypeError):
        return False
