"""The content of a manifest as its record: what does not fit is told by the name of the field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ...targets.errors import InputError
from .agreement import Disagreement, check_agreement
from .manifest import FORMAT_VERSION, InputSections, Manifest

Content: TypeAlias = dict[str, Any]  # of a manifest, as its file has it


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


def inputs_of(sections: Mapping[str, Any]) -> InputSections:
    """The record of the sections that say what a bundle takes, of which the others are left aside.

    Raises InputError for a value out of its range, which the files of a checkpoint may have.
    """
    known = {name: sections[name] for name in InputSections.__struct_fields__ if name in sections}
    try:
        return msgspec.convert(_with_kinds(known), InputSections)
    except msgspec.ValidationError as error:
        raise InputError(
            f"the checkpoint's settings do not fit into a bundle: {_in_words(str(error))}; correct its config.json or "
            "the file of its processor"
        ) from None


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
    if isinstance(calibration, dict) and type(count := calibration.get("matrices")) is int:  # figures of none
        made["evidence"] = {**made["evidence"], "calibration": {**calibration, "matrices": [], "measured": count}}
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
