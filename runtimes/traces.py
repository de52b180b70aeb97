"""Golden traces: what PyTorch made of a few built-in conversations, kept in the `golden/` folder of a bundle."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.errors import InputError
from .bundle import Bundle
from .engine import Floats, ImageFeatures
from .files import read_json, write_json

CASES, ARRAYS = "golden/cases.json", "golden/traces.npz"
FORMAT_VERSION = 1
Doubles = NDArray[np.float64]
TOP = 16  # logits kept of each decode step: the head of the distribution, without the size of the vocabulary


@dataclass(frozen=True)
class ImageTrace:
    """An image and what the vision encoder made of it."""

    file: str  # relative to the bundle
    grid: tuple[int, int, int]
    patches_sha256: str
    features: ImageFeatures


@dataclass(frozen=True)
class CaseTrace:
    """A conversation, its prompt and the greedy answer to it, ends of sequence ignored."""

    name: str
    messages: list[dict[str, Any]]  # image blocks name a file of the bundle
    token_ids: list[int]
    logits: Floats  # [vocab], of the last position of the prompt
    answer: list[int]  # [steps]
    top_ids: NDArray[np.int64]  # [steps, TOP], largest logits of each step, the prompt's own first
    top_logits: Floats  # [steps, TOP]
    log_sums: Doubles  # [steps], log of the sum of the exponentials of all logits


@dataclass(frozen=True)
class Traces:
    """All that was recorded, and by what."""

    reference: str
    images: tuple[ImageTrace, ...]
    cases: tuple[CaseTrace, ...]


def head_of(logits: Floats) -> tuple[NDArray[np.int64], Floats, Doubles]:
    """Ids and values of the TOP largest logits of each row, largest first, and the log of each row's sum of exp."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    top = np.take_along_axis(logits, ids, axis=1)
    return ids, top, log_sum(logits)


def log_sum(logits: Floats) -> Doubles:
    """log(sum(exp(row))) of each row of [rows, vocab]; in float64, or its own rounding would be the divergence."""
    largest = logits.max(axis=1).astype(np.float64)
    sums: Doubles = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    return sums


def write_traces(traces: Traces, cases: Path, arrays: Path) -> None:
    """Write the JSON file and the arrays; the same traces give the same bytes."""
    data: dict[str, Any] = {"format_version": FORMAT_VERSION, "reference": traces.reference, "images": [], "cases": []}
    values: dict[str, NDArray[Any]] = {}
    for image in traces.images:
        data["images"].append({"file": image.file, "grid": image.grid, "patches_sha256": image.patches_sha256})
        values[f"{image.file}.features"] = image.features.features
        if image.features.deepstack is not None:
            values[f"{image.file}.deepstack"] = image.features.deepstack
    for case in traces.cases:
        plain = ("name", "messages", "token_ids", "answer")
        data["cases"].append({key: getattr(case, key) for key in plain})
        for key in ("logits", "top_ids", "top_logits", "log_sums"):
            values[f"{case.name}.{key}"] = getattr(case, key)
    write_json(cases, data)
    with open(arrays, "wb") as file:
        np.savez(file, allow_pickle=False, **values)


def read_traces(bundle: Bundle) -> Traces:
    """The golden traces of a bundle; InputError when there are none, or when they cannot be read."""
    if CASES not in bundle.manifest["files"] or ARRAYS not in bundle.manifest["files"]:
        golden = bundle.manifest["evidence"].get("golden") or {}
        raise InputError(
            f"the bundle {bundle.path} has no golden traces ({golden.get('reason', 'none were recorded')})"
            f"{'' if golden.get('proven') else ', so that its graphs were never compared with PyTorch'}; "
            f"{golden.get('advice', 'record them where PyTorch is installed: lensmith export --golden always')}"
        )
    data = read_json(bundle.file(CASES))
    try:
        with open_arrays(bundle.file(ARRAYS)) as arrays:
            images = tuple(_image(entry, arrays) for entry in data["images"])
            return Traces(data["reference"], images, tuple(_case(entry, arrays) for entry in data["cases"]))
    except (KeyError, ValueError, TypeError, OSError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"the golden traces of {bundle.path} cannot be read ({error}); export it again") from error


def open_arrays(path: Path) -> Any:
    """The arrays of a .npz file; ValueError for compressed ones, of which a few bytes become any number."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its arrays are compressed")
    return np.load(path, allow_pickle=False)


def _image(entry: Mapping[str, Any], arrays: Mapping[str, Any]) -> ImageTrace:
    name = entry["file"]
    frames, height, width = map(int, entry["grid"])
    features = ImageFeatures(arrays[f"{name}.features"], arrays.get(f"{name}.deepstack"))
    return ImageTrace(name, (frames, height, width), entry["patches_sha256"], features)


def _case(entry: Mapping[str, Any], arrays: Mapping[str, Any]) -> CaseTrace:
    kept = {key: arrays[f"{entry['name']}.{key}"] for key in ("logits", "top_ids", "top_logits", "log_sums")}
    plain = {key: entry[key] for key in ("name", "messages", "token_ids", "answer")}
    return CaseTrace(**plain, **kept)
