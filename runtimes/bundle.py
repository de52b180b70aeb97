"""The bundle: a folder complete on the device, its manifest `lensmith.json`, and how it is opened.

Opening one trusts nothing: names, sizes and hashes are checked first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..targets.errors import InputError, closest
from .files import FileRecord, hash_begin, hash_file, is_safe_name, read_json, stays_inside

FORMAT_VERSION = 1
MANIFEST = "lensmith.json"
HASHED_BYTES = 16_000_000  # of each file, always hashed on opening; the rest of larger ones with check="sha256"

Manifest = dict[str, Any]

# The top level of a manifest. `BundleWriter` fills in format_version and files.
SECTIONS: Mapping[str, type] = {
    "format_version": int,
    "family": str,  # "qwen3_vl"
    "source": dict,  # name, files {name: {size, sha256}}, license
    "target": str,  # name of the target profile
    "precision": dict,  # {tensor: {bits, group_size, symmetric, reason}}
    "graphs": dict,  # {"decoder": {file, inputs, outputs}}
    "image": dict,  # constants of the image processor
    "limits": dict,  # min_pixels, max_pixels, max_image_tokens, context
    "generation": dict,  # defaults of sampling
    "evidence": dict,  # golden traces and figures of parity and calibration
    "tools": dict,  # versions
    "files": dict,  # {relative name: {size, sha256}}, large ones with begin_sha256
}
OPTIONAL: Mapping[str, type] = {
    "prompt": dict,  # special token ids, end-of-sequence ids, file of the chat template; needed with a decoder
    "video": dict,  # constants of the video processor, of models that take videos
    "encoder": dict,  # conventions of a vision encoder that has no decoder
}
FIELDS: Mapping[str, tuple[str, ...]] = {  # what each entry of a section must have
    "precision": ("bits", "group_size", "symmetric", "reason"),
    "graphs": ("file", "inputs", "outputs"),
    "files": ("size", "sha256"),
}


def check_manifest(manifest: Mapping[str, Any], where: str | Path) -> Manifest:
    """The manifest as it is; an InputError names the first thing in it that is missing or of the wrong type."""
    version = manifest.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise InputError(
            f"{where} has format {version} and this lensmith reads up to {FORMAT_VERSION}; "
            "upgrade it: pip install --upgrade lensmith."
        )
    graphs = manifest.get("graphs")
    needed = {"prompt"} if isinstance(graphs, dict) and "decoder" in graphs else set()
    present = {section: kind for section, kind in OPTIONAL.items() if section in manifest or section in needed}
    for section, kind in {**SECTIONS, **present}.items():
        if type(manifest.get(section)) is not kind:
            found = "nothing" if section not in manifest else f"a {type(manifest[section]).__name__}"
            raise _damaged(where, f"{section!r} should be a {kind.__name__}, found {found}")
    if not {"name", "files", "license"} <= manifest["source"].keys():
        raise _damaged(where, "'source' should have name, files, license")
    for section, fields in FIELDS.items():
        for name, entry in manifest[section].items():
            if not isinstance(entry, dict) or not set(fields) <= entry.keys():
                raise _damaged(where, f"{section}[{name!r}] should have {', '.join(fields)}")
    _check_files(manifest, where)
    return dict(manifest)


def _check_files(manifest: Mapping[str, Any], where: str | Path) -> None:
    for name, record in manifest["files"].items():
        if not is_safe_name(name) or name == MANIFEST:
            raise _damaged(where, f"the file name {name!r} should be a relative path inside the bundle")
        size, digest = record["size"], record["sha256"]
        if type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise _damaged(where, f"files[{name!r}] should have a size in bytes and a SHA-256")
    for graph, entry in manifest["graphs"].items():
        if str(entry["file"]) not in manifest["files"]:
            raise _damaged(where, f"the graph {graph!r} is in {entry['file']!r}, which is not one of its files")


def _damaged(where: str | Path, what: str) -> InputError:
    return InputError(f"{where} is not a valid manifest: {what}; export the bundle again.")


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a file of the manifest; an InputError for any other name."""
        files = self.manifest["files"]
        if name not in files:
            raise InputError(f"the bundle {self.path} has no file {name!r}; {closest(name, files) or 'export again.'}")
        return self.path / str(name)

    def graph(self, name: str) -> Path:
        """The file of a graph ("decoder"); an InputError when the bundle has no such graph."""
        graphs = self.manifest["graphs"]
        if name not in graphs:
            raise InputError(f"the bundle {self.path} has no graph {name!r}; {closest(name, graphs)}")
        return self.file(graphs[name]["file"])

    def context(self, wanted: int | None, unit: str, usual: int | None = None) -> int:
        """The `wanted` number of tokens or patches (`unit`), else the limit or a smaller `usual` one.

        An InputError for more than the bundle's limit.
        """
        limit = int(self.manifest["limits"]["context"])
        if wanted is not None and not 0 < wanted <= limit:
            raise InputError(f"context {wanted} is outside the bundle's limit of 1 to {limit} {unit}")
        return wanted or min(limit, usual or limit)


def open_bundle(path: str | Path, *, check: Literal["size", "sha256"] = "size") -> Bundle:
    """Open a bundle and check its files.

    "size" compares all sizes and the hashes of the first 16 MB of each file; "sha256" compares all hashes. Whatever is
    missing, changed or outside the folder is an InputError.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is not a bundle: it has no {MANIFEST}; make one with: lensmith export.")
    manifest = check_manifest(read_json(folder / MANIFEST), folder / MANIFEST)
    for name, record in manifest["files"].items():
        _check_file(folder, name, record, hashed=check == "sha256" or record["size"] < HASHED_BYTES)
    return Bundle(folder, manifest)


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
