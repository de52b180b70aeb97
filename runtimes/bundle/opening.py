"""The bundle: a folder complete on the device, its manifest `lensmith.json`, and how it is opened.

Opening one trusts nothing: names, sizes and hashes are checked first.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ...targets.errors import InputError, closest
from ..graph_limits.graph_check import check_graph
from ..storage.files import (
    dump_json,
    hash_begin,
    hash_file,
    stays_inside,
)
from ..values import shown, whole
from .checked_manifest import Content, read_manifest, typed
from .graph_entries import GraphEntry
from .manifest import MANIFEST as MANIFEST
from .manifest import Manifest
from .origin import FileEntry
from .signature import Key, check_signature

HASHED_BYTES = 16_000_000  # of each file, always hashed on opening; the rest of larger ones with check="sha256"
MANIFEST_BYTES = 64_000_000  # those of real models take up to one million
OWN_FILES = re.compile(r"chat_template\.jinja|tokenizer\.json|golden/.*|[^/]*\.(onnx|data|engine|gguf)")

Mark = tuple[int, ...]  # of a file: where it lies, its size, and when it was changed
Check = Literal["size", "sha256"]


def _read_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MANIFEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check that it exists and is readable.") from error
    if len(data) > MANIFEST_BYTES:
        raise InputError(f"{path} has more than {MANIFEST_BYTES} bytes, too many for a manifest; copy it again.")
    return data


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle; `marks` tell whether a file is still the one that was checked."""

    path: Path
    content: Content  # of the manifest
    check: Check = "size"
    marks: Mapping[str, Mark] = field(default_factory=dict)

    @cached_property
    def manifest(self) -> Manifest:
        """What the manifest says."""
        return typed(self.content)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of what the manifest says, by which caches know a bundle wherever it lies."""
        return hashlib.sha256(dump_json(self.content).encode()).hexdigest()

    def again(self) -> Bundle:
        """The same bundle opened and checked once more; an InputError where it was replaced by another one."""
        opened = open_bundle(self.path, check=self.check)
        if opened.content != self.content:
            raise InputError(f"the bundle {self.path} was replaced since it was loaded; load it again")
        return opened

    def check_unchanged(self) -> None:
        """An InputError where a file is no longer the one that was checked: for when all of them have been loaded."""
        for name, mark in self.marks.items():
            if _mark(self.path / name) != mark:
                raise InputError(f"{self.path / name} was changed while the bundle was loaded; load it again")

    def file(self, name: str) -> Path:
        """The path of a file of the manifest; an InputError for any other name."""
        files = self.manifest.files
        if name not in files:
            raise InputError(f"the bundle {self.path} has no file {name!r}; {closest(name, files) or 'export again.'}")
        return self.path / str(name)

    def entry(self, name: str) -> GraphEntry:
        """What the manifest says of a graph ("decoder"); an InputError when the bundle has none of this name."""
        graphs = self.manifest.graphs
        if name not in graphs:
            raise InputError(f"the bundle {self.path} has no graph {name!r}; {closest(name, graphs)}")
        return graphs[name]

    def graph(self, name: str) -> Path:
        """The checked file of a graph; an InputError when the bundle has none, or a strange one."""
        path = self.file(self.entry(name).file)
        if path.suffix == ".onnx":
            check_graph(path, name, self.manifest)
        return path

    def context(self, wanted: int | None, unit: str, usual: int | None = None) -> int:
        """The `wanted` number of tokens or patches (`unit`), else the limit or a smaller `usual` one.

        An InputError for more than the bundle's limit.
        """
        limit = self.manifest.limits.context
        if wanted is not None and not 0 < (wanted := whole(f"the context in {unit}", wanted, 1)) <= limit:
            raise InputError(f"context {wanted} is outside the bundle's limit of 1 to {limit} {unit}")
        return wanted or min(limit, usual or limit)


def open_bundle(path: str | Path, *, check: Check = "size", trusted_keys: Iterable[Key] | None = None) -> Bundle:
    """Open a bundle and check its files.

    "size" compares all sizes and the hashes of the first 16 MB of each file; "sha256" compares all hashes. Whatever is
    missing, changed or outside the folder is an InputError. With `trusted_keys`, public keys of Ed25519 (paths of PEM
    files or of 32 raw bytes, or their content), one of these must have signed it, and all hashes are compared.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"a bundle is {shown(path)}; expected the path of its folder")
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        lacks = f"it has no {MANIFEST}" if folder.exists() else "there is no such folder"
        source = folder if (folder / "config.json").is_file() else "CHECKPOINT"
        raise InputError(f"{folder} is not a bundle: {lacks}; make one with: lensmith export {source} -o BUNDLE")
    data = _read_bytes(folder / MANIFEST)
    if trusted_keys is not None:
        check_signature(folder, data, trusted_keys)
        check = "sha256"
    marks: dict[str, Mark] = {}
    bundle = Bundle(folder, read_manifest(folder / MANIFEST, data), check, marks)
    files = bundle.manifest.files
    _refuse_unlisted(folder, files)
    marks.update({name: _mark(folder / name) for name in files})  # before anything is read of them
    for name, entry in files.items():
        _check_file(folder, name, entry, hashed=check == "sha256" or entry.size < HASHED_BYTES)
    return bundle


def _mark(path: Path) -> Mark:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _refuse_unlisted(folder: Path, listed: Mapping[str, Any]) -> None:
    """An InputError for a file that looks like one of the bundle but has no hash in the manifest."""
    for path in (*folder.iterdir(), *(folder / "golden").rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in listed and OWN_FILES.fullmatch(name) and not path.is_dir():
            raise InputError(f"{path} is not listed in {MANIFEST}, so nobody vouches for it; remove it.")


def _check_file(folder: Path, name: str, entry: FileEntry, *, hashed: bool) -> None:
    path = folder / name
    if not stays_inside(path, folder):
        raise InputError(f"{path} leads out of the bundle through a link; copy the bundle again without links.")
    if not path.is_file():
        raise InputError(f"the bundle {folder} lacks the file {name}; copy or export it again.")
    size = path.stat().st_size
    if size != entry.size:
        raise InputError(f"{path} has {size} bytes, expected {entry.size}; copy or export the bundle again.")
    begin = entry.begin_sha256  # of large files: the header of a GGUF file is in it
    same = hash_file(path)["sha256"] == entry.sha256 if hashed else begin in (None, hash_begin(path, HASHED_BYTES))
    if not same:
        raise InputError(f"{path} was changed: its SHA-256 is not the manifest's; copy or export the bundle again.")
