"""The golden data of the Arlow encoder, and its checkpoint compiled with one thing changed."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lensmith.exporters.pipeline import (
    Job,
    Options,
    export,
    prepare,
)
from lensmith.runtimes.engines.contract import Floats, ImageFeatures
from lensmith.runtimes.engines.run_wishes import usable_device
from lensmith.runtimes.generation.encoder import Encoder
from numpy.typing import NDArray

from tests.paths import DATA

FOLDER = DATA / "arlow"
CHECKPOINT = FOLDER / "checkpoint-10"
CASES = ("square", "wide", "tall", "video4", "video6")
CHANGES = ("no_deformable", "no_progressive", "no_deepstack", "all_off")  # of the configuration, for the case "wide"


@cache
def case(name: str) -> dict[str, NDArray[Any]]:
    """The arrays of a golden case; "wide__all_off" has those of "wide" where it has none of its own."""
    with np.load(FOLDER / "cases" / f"{name}.npz", allow_pickle=False) as arrays:
        own = dict(arrays)
    return own if "__" not in name else {**case(name.partition("__")[0]), **own}


def config_of(name: str) -> dict[str, Any]:
    """The configuration that a case was made with."""
    change = name.partition("__")[2]
    path = FOLDER / "configs" / f"{change}.json" if change else CHECKPOINT / "vision_encoder" / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def expected(name: str, revision: str, suffix: str = "_exactdist") -> ImageFeatures:
    """What the class made of a case: with exact distances, or as it runs where the suffix is empty."""
    arrays = case(name)
    taps = arrays[f"{revision}_deepstack{suffix}"]
    return ImageFeatures(arrays[f"{revision}_embeds{suffix}"], taps if len(taps) else None)


def patches_of(name: str, revision: str) -> tuple[Floats, tuple[int, int, int]]:
    """What the revision's processor made of a case, and the grid in patches."""
    arrays = case(name)
    times, height, width = (int(size) for size in arrays["grid_thw"][0])
    return arrays[f"{revision}_processor_patches"].reshape(times * height * width, -1), (times, height, width)


def difference(found: ImageFeatures, wanted: ImageFeatures) -> float:
    """The largest absolute difference in all outputs; infinite where one has other outputs."""
    pairs = [(found.features, wanted.features)]
    if (found.deepstack is None) != (wanted.deepstack is None):
        return float("inf")
    if found.deepstack is not None and wanted.deepstack is not None:
        pairs.append((found.deepstack, wanted.deepstack))
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")
    return max(float(np.abs(one - other).max()) for one, other in pairs)


def changed(folder: Path, **changes: Any) -> Path:
    """A copy of the checkpoint with changes to its configuration; None removes a key."""
    shutil.copytree(CHECKPOINT, folder)
    path = folder / "vision_encoder" / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def compiled(source: Path, out: Path, **options: Any) -> tuple[Job, Encoder]:
    """Exported in float32 unless told, without golden traces, and loaded."""
    job = prepare(source, Options(**{"precision": "fp32", **options}))
    bundle = export(job, out, golden="never")
    return job, Encoder(bundle, threads=1, device=usable_device(bundle.manifest))


def run(encoder: Encoder, patches: Floats, grid: tuple[int, int, int]) -> ImageFeatures:
    """The graph alone."""
    return encoder.vision(patches, grid)


def random_patches(grid: tuple[int, int, int], width: int) -> Floats:
    """Noise in place of pixels, the same for the same grid."""
    times, height, columns = grid
    return np.random.default_rng([*grid, width]).standard_normal((times * height * columns, width), dtype=np.float32)
