"""The bundle: a folder complete on the device, its manifest `lensmith.json`, and how it is opened.

Opening one trusts nothing: names, sizes and hashes are checked first.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from ...targets.errors import InputError, closest
from ..graph_limits.graph_check import check_graph
from ..storage.files import (
    FileRecord,
    hash_begin,
    hash_file,
    stays_inside,
)
from ..values import shown, whole
from .agreement import Disagreement, check_agreement
from .manifest import FORMAT_VERSION, Manifest
from .manifest import MANIFEST as MANIFEST
from .signature import Key, check_signature

HASHED_BYTES = 16_000_000  # of each file, always hashed on opening; the rest of larger ones with check="sha256"
MANIFEST_BYTES = 64_000_000  # those of real models take up to one million
OWN_FILES = re.compile(r"chat_template\.jinja|tokenizer\.json|golden/.*|[^/]*\.(onnx|data|engine|gguf)")

Content = dict[str, Any]  # of a manifest, as its file has it
Mark = tuple[int, ...]  # of a file: where it lies, its size, and when it was changed
Check = Literal["size", "sha256"]


def check_manifest(manifest: Mapping[str, Any], where: str | Path) -> Content:
    """The manifest as it is; an InputError names the first field that is missing, of a wrong type or out of range."""
    version = manifest.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise InputError(
            f"{where} has format {version} and this lensmith reads up to {FORMAT_VERSION}; "
            "upgrade it: pip install --upgrade lensmith."
        )
    try:
        check_agreement(typed(manifest))
    except msgspec.ValidationError as error:
        raise _damaged(where, _in_words(str(error))) from None
    except Disagreement as error:
        raise _damaged(where, str(error)) from None
    return dict(manifest)


def typed(content: Mapping[str, Any]) -> Manifest:
    """The record of a manifest's content; msgspec's ValidationError where they do not fit."""
    return msgspec.convert(_with_kinds(content), Manifest)


def _with_kinds(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest in which what comes in several kinds says of which it is."""
    made = dict(manifest)
    if isinstance(image := made.get("image"), dict):
        made["image"] = {"kind": "patches", **image}
    if isinstance(video := made.get("video"), dict):
        if "kind" in video:
            raise Disagreement("video has the field 'kind', which this lensmith does not know (a newer one may)")
        made["video"] = {**video, "kind": "clips" if "strategy" in video else "frames"}
    evidence = made.get("evidence")
    calibration = evidence.get("calibration") if isinstance(evidence, dict) else None
    if isinstance(calibration, dict) and type(calibration.get("matrices")) is int:  # figures of none of them
        made["evidence"] = {**made["evidence"], "calibration": {**calibration, "matrices": []}}
    return made


def _in_words(message: str) -> str:
    """msgspec's words about a value, the name of the field first; it writes `$.limits.context` and `[...]` for keys."""
    what, _, place = message.partition(" - at `")
    named = place.replace("key` in `", "a key of ").replace("$.", "").replace("$", "").rstrip("`") or "the manifest"
    unknown = re.search("unknown field `(.*)`", what)
    if unknown:
        return f"{named} has the field {unknown[1]!r}, which this lensmith does not know (a newer one may)"
    return f"{named}: {what[:1].lower()}{what[1:300]}"


def _damaged(where: str | Path, what: str) -> InputError:
    return InputError(f"{where} is not a valid manifest: {' '.join(what.split())[:600]}; export the bundle again.")


def _read_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(MANIFEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check that it exists and is readable.") from error
    if len(data) > MANIFEST_BYTES:
        raise InputError(f"{path} has more than {MANIFEST_BYTES} bytes, too many for a manifest; copy it again.")
    return data


def read_manifest(path: Path, data: bytes) -> Content:
    """The manifest that is the content of a file; InputError where it is not one."""
    try:
        manifest = msgspec.json.decode(data)  # refuses NaN, infinity and halves of surrogates, which json reads
        json.loads(data, object_pairs_hook=_without_repeats)
    except Disagreement as error:
        raise _damaged(path, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy or download the file again.") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path} holds a JSON {type(manifest).__name__}, expected an object; copy the file again.")
    return check_manifest(manifest, path)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; readers differ in which of two values of one name they take."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise Disagreement(f"it has the field {repeated[:200]!r} twice")
    return made


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
        files = self.content["files"]
        if name not in files:
            raise InputError(f"the bundle {self.path} has no file {name!r}; {closest(name, files) or 'export again.'}")
        return self.path / str(name)

    def graph(self, name: str) -> Path:
        """The checked file of a graph ("decoder"); an InputError when the bundle has none, or a strange one."""
        graphs = self.content["graphs"]
        if name not in graphs:
            raise InputError(f"the bundle {self.path} has no graph {name!r}; {closest(name, graphs)}")
        path = self.file(graphs[name]["file"])
        if path.suffix == ".onnx":
            check_graph(path, name, self.content)
        return path

    def context(self, wanted: int | None, unit: str, usual: int | None = None) -> int:
        """The `wanted` number of tokens or patches (`unit`), else the limit or a smaller `usual` one.

        An InputError for more than the bundle's limit.
        """
        limit = int(self.content["limits"]["context"])
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
        raise InputError(f"{folder} is not a bundle: it has no {MANIFEST}; make one with: lensmith export.")
    data = _read_bytes(folder / MANIFEST)
    if trusted_keys is not None:
        check_signature(folder, data, trusted_keys)
        check = "sha256"
    manifest = read_manifest(folder / MANIFEST, data)
    _refuse_unlisted(folder, manifest["files"])
    marks = {name: _mark(folder / name) for name in manifest["files"]}  # before anything is read of them
    for name, record in manifest["files"].items():
        _check_file(folder, name, record, hashed=check == "sha256" or record["size"] < HASHED_BYTES)
    return Bundle(folder, manifest, check, marks)


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


def _check_file(folder: Path, name: str, record: FileRecord, *, hashed: bool) -> None:
    path = folder / name
    if not stays_inside(path, folder):
        raise InputError(f"{path} leads out of the bundle through a link; copy the bundle again without links.")
    if not path.is_file():
        raise InputError(f"the bundle {folder} lacks the file {name}; copy or export it again.")
    size = path.stat().st_size
    if size != record["size"]:
        raise InputError(f"{path} has {size} bytes, expected {record['size']}; copy or export the bundle again.")
    begin = record.get("begin_sha256")  # of large files: the header of a GGUF file is in it
    same = hash_file(path)["sha256"] == record["sha256"] if hashed else begin in (None, hash_begin(path, HASHED_BYTES))
    if not same:
        raise InputError(f"{path} was changed: its SHA-256 is not the manifest's; copy or export the bundle again.")
