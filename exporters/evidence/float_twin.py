"""A bundle's twin without rounding: the same graphs in float32, written beside it for a while to be compared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...runtimes.bundle.bundle_writer import BundleWriter
from ...runtimes.bundle.opening import Bundle
from ..job import Calibrated, Job
from ..storage.scheme import make_policy

FOLDER = ".floats"  # in the folder that the bundle is written into


def float_job(job: Job) -> Job:
    """The same job without rounding of weights, activations, keys and values, in the same dialect."""
    options = replace(job.options, precision=job.lowering.float_precision, kv_cache="float", tensor_types=())
    target = replace(job.target, activations="float32")
    policy, dialect = make_policy("fp32"), job.lowering.dialect(target, "fp32", job.spec)
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
        floats.lowering.write_plain(floats, folder)
        graphs = {
            name: {**entry, "file": f"{FOLDER}/{entry['file']}"}
            for name, entry in floats.lowering.signatures(floats).items()
        }
        options = {**manifest["options"], "precision": floats.options.precision, "kv_cache": "float"}
        files: dict[str, Any] = {name: {} for name in (*writer.names, *(entry["file"] for entry in graphs.values()))}
        content = {
            **writer.preview(manifest).content,
            "graphs": graphs,
            "precision": {},
            "options": options,
            "files": files,
        }
        yield Bundle(writer.partial, content)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
