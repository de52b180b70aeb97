"""A bundle's twin without rounding: the same graphs in float32, written beside it for a while to be compared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.bundle.journal import Journal
from ...runtimes.bundle.opening import Bundle
from ..formats.gguf import gguf_files as gguf
from ..formats.lowering import find_lowering
from ..job import Calibrated, Job
from ..storage import weights
from ..storage.scheme import make_policy

FOLDER = ".floats"  # in the folder that the bundle is written into
PRECISIONS = {"gguf": "f32"}  # of the twin, by format; of all others fp32


def float_job(job: Job) -> Job:
    """The same job without rounding of weights, activations, keys and values, in the same dialect."""
    lowering, name = find_lowering(job.options.format), PRECISIONS.get(job.options.format, "fp32")
    options = replace(job.options, precision=name, kv_cache="float", tensor_types=())
    target = replace(job.target, activations="float32")
    policy, dialect = make_policy("fp32"), lowering.dialect(target, "fp32", job.spec)
    graphs = job.family.graphs(job.spec, policy, dialect, dialect.opsets)
    calibrated = Calibrated(parts=job.calibrated.floats)
    return replace(job, options=options, target=target, policy=policy, graphs=graphs, calibrated=calibrated)


@contextmanager
def written(floats: Job, writer: BundleWriter, manifest: Mapping[str, Any]) -> Iterator[Bundle]:
    """The twin of the bundle in `writer`, which has its other files; it is removed at the end."""
    folder = writer.partial / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        _write(floats, folder)
        yield Bundle(writer.partial, _manifest(floats, writer, manifest))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(floats: Job, folder: Path) -> None:
    if floats.options.format == "gguf":
        gguf.write_plain(floats, folder)
    for graph in find_lowering(floats.options.format).graphs(floats):
        data = folder / f"{graph.name}.data"
        jobs, size = weights.plan(graph, floats.checkpoint, data.name)
        weights.write(jobs, size, data, Journal(folder / "journal", graph.name), parts=floats.calibrated.parts)
        ir.save(graph.model, folder / f"{graph.name}.onnx")


def _manifest(floats: Job, writer: BundleWriter, manifest: Mapping[str, Any]) -> dict[str, Any]:
    graphs = {
        name: {**entry, "file": f"{FOLDER}/{entry['file']}"}
        for name, entry in find_lowering(floats.options.format).signatures(floats).items()
    }
    options = {**manifest["options"], "precision": floats.options.precision, "kv_cache": "float"}
    files: dict[str, Any] = {name: {} for name in (*writer.names, *(entry["file"] for entry in graphs.values()))}
    return {**manifest, "graphs": graphs, "precision": {}, "options": options, "files": files}
