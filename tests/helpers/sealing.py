"""Bundles that were changed after they were built, with a manifest that agrees."""

from __future__ import annotations

import json
from pathlib import Path

from lensmith.runtimes.bundle.opening import MANIFEST, Bundle
from lensmith.runtimes.evidence.built import RECORD, settings_of
from lensmith.runtimes.storage.files import dump_json, hash_file


def seal(bundle: Path) -> None:
    """Make the manifest agree with changed files; the record of the build knows the old ones."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"] = {name: hash_file(bundle / name) for name in manifest["files"]}
    (bundle / MANIFEST).write_text(dump_json(manifest))


def seal_as_built(bundle: Path) -> None:
    """Make the record agree as well: what is left is a device on which the files of the build give other values."""
    seal(bundle)
    record = json.loads((bundle / RECORD).read_text())
    record["settings"] = settings_of(Bundle(bundle, json.loads((bundle / MANIFEST).read_text())))
    (bundle / RECORD).write_text(dump_json(record))
    seal(bundle)
