"""How a bundle is written: it appears whole or not at all.

It is written into a hidden sibling folder, which a rerun can resume stage by stage, and takes the final name at the
end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ...targets.errors import CheckFailed, InputError, LensmithError
from ..storage.files import (
    FileRecord,
    disk_full_is_input,
    files_in,
    hash_begin,
    hash_file,
    is_disk_full,
    is_safe_name,
    only_writer,
    read_json,
    remove_files,
    sync_file,
    write_json,
)
from ..storage.new_folder import (
    PARTIAL,
    check_out,
    put_in_place,
    workplace,
)
from .checked_manifest import check_manifest
from .journal import SUFFIX, Journal
from .manifest import FORMAT_VERSION, MANIFEST
from .opening import HASHED_BYTES, Bundle

STAGES = "stages.json"

log = logging.getLogger(__name__)


@dataclass
class BundleWriter:
    """Writes the bundle `out` as a context manager; an existing bundle there is an InputError without `force`.

    With it, the old bundle stays until `close` replaces it.
    Stages that were finished before an interruption are kept, and so are files with a journal; a rerun with the same
    keys reuses them.
    """

    out: Path
    force: bool = False
    partial: Path = field(init=False)
    _names: set[str] = field(init=False, default_factory=set)
    _records: dict[str, FileRecord] = field(init=False, default_factory=dict)
    _stages: dict[str, dict[str, FileRecord]] = field(init=False, default_factory=dict)
    _closed: bool = field(init=False, default=False)
    _lock: contextlib.ExitStack = field(init=False, default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.out = check_new_bundle(self.out, force=self.force)
        self.partial = workplace(self.out, PARTIAL)

    def __enter__(self) -> BundleWriter:
        with disk_full_is_input(self.out):
            self.partial.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(only_writer(self.partial))
        self._stages = _finished_stages(self.partial)
        kept = {STAGES, *(name for files in self._stages.values() for name in files), *_journaled(self.partial)}
        remove_files(self.partial, set(files_in(self.partial)) - kept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._closed:
                return
            usable = not isinstance(error, CheckFailed) and not is_disk_full(error)  # as far as it was written
            if error is not None and usable and (self._stages or _journaled(self.partial)):
                log.warning("%s is kept: the same command run again resumes from there", self.partial)
                return
            shutil.rmtree(self.partial, ignore_errors=True)
        if isinstance(error, OSError) and is_disk_full(error):
            with disk_full_is_input(self.out):
                raise error
        if error is None:
            raise LensmithError(f"the bundle {self.out} was not closed; call close(manifest) last.")

    def add(self, name: str) -> Path:
        """Announce a file, by its relative name, and get the path to write it to."""
        if not is_safe_name(name) or name in (MANIFEST, STAGES):
            raise ValueError(f"not a name for a file of a bundle: {name!r}")
        self._names.add(name)
        path = self.partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def names(self) -> tuple[str, ...]:
        """The files that were announced."""
        return tuple(sorted(self._names))

    def leave_out(self, names: Iterable[str]) -> None:
        """Take files back that others were made of: `close` removes them."""
        self._names -= set(names)

    def journal(self, name: str, key: str) -> Journal:
        """The journal of a file: what an interrupted run with the same key has finished of it."""
        return Journal(self.partial / (name + SUFFIX), key)

    @contextlib.contextmanager
    def stage(self, key: str, names: Iterable[str]) -> Iterator[bool]:
        """Announce the files of a stage; gives whether they are there already, made by a stage of the same key.

        The key must contain everything that the content depends on, such as a hash of the inputs. Where the block gets
        False it writes the files; when it ends they are hashed and recorded.
        """
        paths = {name: self.add(name) for name in sorted(names)}
        reused = _is_intact(self._stages.get(key), paths)
        yield reused
        if not reused:
            self._stages[key] = {name: self._seal(name) for name in paths}
            write_json(self.partial / (STAGES + ".new"), self._stages)
            os.replace(self.partial / (STAGES + ".new"), self.partial / STAGES)
            remove_files(self.partial, [name + SUFFIX for name in paths])
        self._records |= self._stages[key]

    def preview(self, manifest: Mapping[str, Any]) -> Bundle:
        """What was written so far as a bundle, for checks that belong into the manifest; not all files have hashes."""
        files: dict[str, Any] = {name: self._records.get(name, {}) for name in sorted(self._names)}
        return Bundle(self.partial, {"format_version": FORMAT_VERSION, **manifest, "files": files})

    def close(self, manifest: Mapping[str, Any]) -> Path:
        """Write the manifest, to which format_version and files are added, and give the bundle its final name."""
        with disk_full_is_input(self.out):
            stale = {name for files in self._stages.values() for name in files} | _journaled(self.partial)
            remove_files(self.partial, (stale - self._names) | {STAGES})
            records = {name: self._record(name) for name in sorted(self._names)}
            complete = dict(manifest) | {"format_version": FORMAT_VERSION, "files": records}
            strays = sorted(name for name in files_in(self.partial) if name not in self._names)
            if strays:
                raise LensmithError(f"the bundle file {strays[0]} was written but not announced with add().")
            write_json(self.partial / MANIFEST, check_manifest(complete, MANIFEST))
            put_in_place(self.partial, self.out, last=MANIFEST)
        self._closed = True
        return self.out

    def _record(self, name: str) -> FileRecord:
        """What the manifest keeps of a file."""
        record = self._records.get(name) or self._seal(name)
        if record["size"] < HASHED_BYTES:
            return record
        return {**record, "begin_sha256": hash_begin(self.partial / name, HASHED_BYTES)}

    def _seal(self, name: str) -> FileRecord:
        if not (self.partial / name).is_file() or (self.partial / name).is_symlink():
            raise LensmithError(f"the bundle file {name} was announced but not written as a plain file.")
        sync_file(self.partial / name)
        return hash_file(self.partial / name)


def check_new_bundle(out: str | Path, *, force: bool = False) -> Path:
    """The real path of a bundle to write; an InputError unless it is new, an empty folder, or a bundle with `force`."""
    return check_out(out, "bundle", _is_bundle, force=force)


def _is_bundle(folder: Path) -> bool:
    try:
        return "format_version" in read_json(folder / MANIFEST)
    except InputError:
        return False


def _finished_stages(partial: Path) -> dict[str, dict[str, FileRecord]]:
    """The stages of an interrupted run; none when their record cannot be read."""
    try:
        stages = json.loads((partial / STAGES).read_text(encoding="utf-8"))
        names = [name for files in stages.values() for name in files]
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return stages if all(is_safe_name(name) for name in names) else {}


def _journaled(partial: Path) -> set[str]:
    """The files with a journal, and their journals."""
    found = set(files_in(partial))
    return {name for name in found if name.removesuffix(SUFFIX) + SUFFIX in found}


def _is_intact(recorded: Mapping[str, FileRecord] | None, paths: Mapping[str, Path]) -> bool:
    """Whether exactly the files of a stage are there, with the content that was recorded."""
    if recorded is None or recorded.keys() != paths.keys() or not all(path.is_file() for path in paths.values()):
        return False
    return all(recorded[name] == hash_file(path) for name, path in paths.items())
