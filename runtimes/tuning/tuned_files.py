"""What `lensmith tune` found, in the user's cache: a file for each bundle and device, as far as speed depends on it."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import platformdirs

from ...targets.errors import InputError
from ..bundle.opening import Bundle
from ..engines.arithmetic import libraries, own_version, processor
from ..engines.engine_table import DEVICES
from ..engines.native import wanted_instructions
from ..process.core_limits import available_cores, usable_cores
from ..storage.files import dump_json
from ..storage.new_file import write_text
from .tuning import USUAL, Tuning

log = logging.getLogger(__name__)
FORMAT, DIGITS = 1, 16  # hexadecimal ones, of a bundle in the names of its files, and of what else counts
MOST_BYTES = 1 << 16


def tuned_folder() -> Path:
    """Where tunings are kept: below XDG_CACHE_HOME, or where the system has the caches of a user."""
    return platformdirs.user_cache_path("lensmith", appauthor=False) / "tuned"


def conditions(bundle: Bundle, *, native: bool | None = None, device: str | None = None) -> str:
    """One line of all that a tuning holds for beside its bundle; arguments as of `load`."""
    cpu = processor() or f"{platform.machine()} {platform.processor()}"
    cores = f"{usable_cores()} usable of {available_cores()} cores"
    kernels = f"{libraries(bundle, native=native, device=device)}, {wanted_instructions(native)} instructions"
    return f"lensmith {own_version()}, {kernels}, {cpu}, {cores}, device {device}"


def tuned_file(bundle: Bundle, *, native: bool | None = None, device: str | None = None) -> Path:
    """The file of a bundle for the conditions of now."""
    line = conditions(bundle, native=native, device=device)
    return tuned_folder() / f"{_mark(bundle)}{hashlib.sha256(line.encode()).hexdigest()[:DIGITS]}.json"


def read_tuning(bundle: Bundle, *, native: bool | None = None, device: str | None = None) -> Tuning | None:
    """What was measured for a bundle under the conditions of now; None where nothing was, or its file is broken.

    The latter is told of in the log, once in a process. Arguments as of `load`.
    """
    if not any(_files(bundle)):
        return None
    try:
        path = tuned_file(bundle, native=native, device=device)
    except ImportError:
        return None  # without its engine there will be no run
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read(MOST_BYTES))
        if [data["format"], data["bundle"]] != [FORMAT, bundle.digest]:
            raise ValueError("it is of another bundle or format")
        return Tuning(**data["tuning"])
    except FileNotFoundError:
        return None
    except Exception as error:  # what stands there may be anything, and must not fail a run
        _warn(path, str(error) or type(error).__name__)
        return None


def tuning_of(bundle: Bundle, *, native: bool | None = None, device: str | None = None) -> Tuning:
    """What a run of a bundle takes as its defaults: what was measured, or else the usual; arguments as of `load`."""
    if device not in (None, *DEVICES):
        return USUAL  # the run says what is wrong
    return read_tuning(bundle, native=native, device=device) or USUAL


def keep_tuning(bundle: Bundle, tuning: Tuning, *, native: bool | None = None, device: str | None = None) -> Path:
    """Write what was measured, in place of what was before; the path. InputError where nothing can be written."""
    check_folder()
    path = tuned_file(bundle, native=native, device=device)
    said = {"format": FORMAT, "bundle": bundle.digest, "name": bundle.path.resolve().name, "tuning": asdict(tuning),
            "conditions": conditions(bundle, native=native, device=device)}  # fmt: skip
    write_text(path, dump_json(said))
    return path


def forget_tunings(bundle: Bundle) -> int:
    """Remove what was measured for a bundle under any conditions; how many files that were."""
    found = list(_files(bundle))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def tuned_elsewhere(bundle: Bundle) -> bool:
    """Whether there is a tuning of a bundle for other conditions than those of now."""
    return set(_files(bundle)) - {tuned_file(bundle)} != set()


def check_folder() -> None:
    """Make the folder of tunings. InputError where it cannot be written to."""
    folder = tuned_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "no right to write there"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise InputError(f"{folder} cannot hold what is measured ({reason}); name a folder that you may write to in "
                         "the variable XDG_CACHE_HOME, or add --dry-run to keep nothing")  # fmt: skip


def _files(bundle: Bundle) -> Iterator[Path]:
    folder = tuned_folder()
    if folder.is_dir():  # the manifest is hashed only where there are tunings at all
        yield from folder.glob(f"{_mark(bundle)}*.json")


def _mark(bundle: Bundle) -> str:
    return f"{bundle.digest[:DIGITS]}-"


@functools.cache
def _warn(path: Path, reason: str) -> None:
    log.warning("%s is no tuning and is left out (%s); measure again with: lensmith tune BUNDLE", path, reason)
