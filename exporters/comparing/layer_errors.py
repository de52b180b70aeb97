"""How far rounding moved the weights of each layer, read from the files of a bundle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from ...runtimes.bundle.calibration_evidence import place
from ...runtimes.bundle.opening import Bundle
from ..checkpoint.folder import Checkpoint
from ..evidence.written_weights import SAMPLE, StoredGraph
from ..graphs.blocks import SourceTensor
from ..job import Job
from ..reports.lineup_records import LayerError
from .recorded_options import job_of

LARGE_BYTES = 1 << 30  # of a checkpoint, from which on only a part of its rows is read
ROWS = 64  # read at once


def layer_errors(bundle: Bundle, checkpoint: Checkpoint) -> tuple[LayerError, ...]:
    """The relative root mean square error of the matrices of each layer; empty for formats other than ONNX.

    Calibrated weights make up for each other, so that the distance of single ones says nothing: empty, too.
    """
    if bundle.manifest.options.format != "onnx" or bundle.content["evidence"].get("calibration"):
        return ()
    job = job_of(bundle, checkpoint.path, checkpoint.adapter)
    every = SAMPLE if sum(tensor.nbytes for tensor in checkpoint.tensors.values()) > LARGE_BYTES else 1
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for graph in job.lowering.graphs(job):
        files = StoredGraph(graph, bundle.path)
        for source in graph.sources:
            where = place(source.name)
            if where is not None and source.matrix is not None:
                for off, whole in _squares(job, source, files, every):
                    sums[where.stack, where.layer][0] += off
                    sums[where.stack, where.layer][1] += whole
    return tuple(
        LayerError(stack, layer, float(np.sqrt(off / max(whole, 1e-30))))
        for (stack, layer), (off, whole) in sorted(sums.items())
    )


def _squares(job: Job, source: SourceTensor, files: StoredGraph, every: int) -> Iterator[tuple[float, float]]:
    """Sums of squares of the errors and of the weights, block of rows by block."""
    tensor, parts = job.checkpoint.tensor(source.name), files.parts(source)
    assert source.matrix is not None
    for start in range(0, tensor.shape[0], ROWS * every):
        stop = min(start + ROWS, tensor.shape[0])
        found = source.matrix.unpack([part[start:stop] for part in parts])
        wanted = tensor.rows(start, stop).reshape(found.shape)
        yield float(np.square(found - wanted, dtype=np.float64).sum()), float(np.square(wanted, dtype=np.float64).sum())
