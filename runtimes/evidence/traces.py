"""Golden traces: what PyTorch made of a few built-in conversations, kept in the `golden/` folder of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...targets.errors import InputError
from ..bundle.manifest import DECODER, GoldenEntry, Manifest
from ..bundle.opening import Bundle
from ..engines.contract import Floats, ImageFeatures
from ..storage.array_files import Arrays, read_arrays, take_array, write_arrays
from ..storage.files import write_json
from .trace_entries import (
    FORMAT_VERSION,
    CaseEntry,
    ImageEntry,
    TracesEntry,
    briefly,
    read_entry,
)

CASES, ARRAYS = "golden/cases.json", "golden/traces.npz"
OWN = "the bundle itself"  # the reference of traces that PyTorch took no part in
Doubles = NDArray[np.float64]
TOP = 16  # logits kept of each decode step: the head of the distribution, without the size of the vocabulary
TOPS, DRAFTS = ("top_ids", "top_logits", "log_sums"), ("draft_ids", "draft_logits", "draft_log_sums")  # arrays
DRAFTED = 4  # steps of each answer at which a draft head guesses


class Tops(NamedTuple):
    """The largest logits of some steps, largest first."""

    ids: NDArray[np.int64]  # [steps, TOP]
    logits: Floats  # [steps, TOP]
    log_sums: Doubles  # [steps], log of the sum of the exponentials of all logits


@dataclass(frozen=True)
class ImageTrace:
    """An image and what the vision encoder made of it."""

    file: str  # relative to the bundle
    grid: tuple[int, int, int]
    patches_sha256: str
    features: ImageFeatures
    max_pixels: int | None = None  # in place of the bundle's own limit


@dataclass(frozen=True)
class CaseTrace:
    """A conversation, its prompt and the greedy answer to it, ends of sequence ignored."""

    name: str
    messages: list[dict[str, Any]]  # image blocks name a file of the bundle
    token_ids: list[int]
    logits: Floats  # [vocab], of the last position of the prompt
    answer: list[int]  # [steps]
    tops: Tops  # of each step, the prompt's own first
    drafts: Tops | None = None  # of a draft head behind the first DRAFTED tokens, where one follows the whole prompt


@dataclass(frozen=True)
class Traces:
    """All that was recorded, and by what."""

    reference: str
    images: tuple[ImageTrace, ...]
    cases: tuple[CaseTrace, ...]


def tops_of(logits: Floats) -> Tops:
    """What is kept of logits [steps, vocab]."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    return Tops(ids, np.take_along_axis(logits, ids, axis=1), log_sum(logits))


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
        limit = {} if image.max_pixels is None else {"max_pixels": image.max_pixels}
        data["images"].append({"file": image.file, "grid": image.grid, "patches_sha256": image.patches_sha256, **limit})
        values[f"{image.file}.features"] = image.features.features
        if image.features.deepstack is not None:
            values[f"{image.file}.deepstack"] = image.features.deepstack
    for case in traces.cases:
        plain = ("name", "messages", "token_ids", "answer")
        data["cases"].append({key: getattr(case, key) for key in plain})
        values[f"{case.name}.logits"] = case.logits
        for keys, tops in ((TOPS, case.tops), (DRAFTS, case.drafts)):
            if tops is not None:
                arrays_of: tuple[NDArray[Any], ...] = (tops.ids, tops.logits, tops.log_sums)
                values |= {f"{case.name}.{key}": array for key, array in zip(keys, arrays_of, strict=True)}
    write_json(cases, data)
    with open(arrays, "wb") as file:
        write_arrays(file, values)


def read_traces(bundle: Bundle) -> Traces:
    """The golden traces of a bundle; InputError when there are none, or when they cannot be read."""
    manifest = bundle.manifest
    if CASES not in manifest.files or ARRAYS not in manifest.files:
        golden = manifest.evidence.golden or GoldenEntry(False)
        raise InputError(
            f"the bundle {bundle.path} has no golden traces ({golden.reason or 'none were recorded'})"
            f"{'' if golden.proven else ', so that its graphs were never compared with PyTorch'}; "
            f"{golden.advice or 'record them where PyTorch is installed: lensmith export --golden always'}"
        )
    try:
        entry = read_entry(bundle.file(CASES), TracesEntry)
        _check(entry, manifest)
        arrays = read_arrays(bundle.file(ARRAYS))
        images = tuple(_image(image, arrays) for image in entry.images)
        return Traces(entry.reference, images, tuple(_case(case, arrays, manifest) for case in entry.cases))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the golden traces of {bundle.path} cannot be read ({briefly(error)}); export it again"
        ) from None


def _check(entry: TracesEntry, manifest: Manifest) -> None:
    """ValueError for pictures that are not in the bundle, conversations that it cannot have, and graphs without any."""
    named = [*(image.file for image in entry.images)]
    named += [file for case in entry.cases for turn in case.messages for file in turn.files]
    for file in named:
        if file not in manifest.files:
            raise ValueError(f"the bundle has no file {file[:100]!r}")
    if entry.cases and DECODER not in manifest.graphs:
        raise ValueError("there are conversations, and the bundle has no decoder")
    for graph, shown in (("decoder", entry.cases), ("vision_encoder", entry.images)):
        if graph in manifest.graphs and not shown:
            raise ValueError(f"nothing in them shows what the {graph} gives")
    for case in entry.cases:
        if case.tokens > manifest.limits.context:
            raise ValueError(f"{case.name[:100]!r} has {case.tokens} tokens, the context {manifest.limits.context}")


def _image(entry: ImageEntry, arrays: Arrays) -> ImageTrace:
    name = entry.file
    taps = f"{name}.deepstack"
    deepstack = take_array(arrays, taps, np.float32, None, None, None) if taps in arrays else None
    features = ImageFeatures(take_array(arrays, f"{name}.features", np.float32, None, None), deepstack)
    limit = None if entry.max_pixels is msgspec.UNSET else entry.max_pixels
    return ImageTrace(name, entry.grid, entry.patches_sha256, features, limit)


def _case(entry: CaseEntry, arrays: Arrays, manifest: Manifest) -> CaseTrace:
    vocabulary = manifest.vocab
    for what, ids in (("token_ids", entry.token_ids), ("answer", entry.answer)):
        _check_ids(ids, f"{what} of {entry.name[:100]!r}", vocabulary)
    steps, drafted = len(entry.answer), f"{entry.name}.{DRAFTS[0]}" in arrays
    return CaseTrace(
        name=entry.name,
        messages=msgspec.to_builtins(entry.messages),
        token_ids=entry.token_ids,
        logits=take_array(arrays, f"{entry.name}.logits", np.float32, vocabulary),
        answer=entry.answer,
        tops=_tops(arrays, entry.name, TOPS, steps, vocabulary),
        drafts=_tops(arrays, entry.name, DRAFTS, min(DRAFTED, steps - 1), vocabulary) if drafted else None,
    )


def _tops(arrays: Arrays, case: str, keys: tuple[str, str, str], steps: int, vocabulary: int) -> Tops:
    ids = take_array(arrays, f"{case}.{keys[0]}", np.int64, steps, min(TOP, vocabulary))
    _check_ids(ids, f"{keys[0]} of {case[:100]!r}", vocabulary)
    logits = take_array(arrays, f"{case}.{keys[1]}", np.float32, *ids.shape)
    return Tops(ids, logits, take_array(arrays, f"{case}.{keys[2]}", np.float64, steps))


def _check_ids(ids: Any, what: str, vocabulary: int) -> None:
    if np.min(ids, initial=0) < 0 or np.max(ids, initial=0) >= vocabulary:
        raise ValueError(f"{what} has ids beyond the vocabulary of {vocabulary} tokens")
