"""Compares the weights that a bundle's files hold with the checkpoint's, tensor by tensor, block by block.

What is written is read back through the names and offsets of the saved graphs, and widened; so a tensor that lies at
another's place, is transposed, swapped, negated or missing is found, however coarse the rounding is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...targets.errors import CheckFailed
from ..graphs.blocks import SourceTensor
from ..graphs.graph_files import Graph
from ..job import Job
from ..storage.scheme import UNQUANTIZED, Scheme
from ..storage.weights import BLOCK_ELEMENTS, THREADS

Floats = NDArray[np.float32]
HALF = 2.0**-11  # relative rounding of float16
TINY = 2.0**-24  # half a step of float16's smallest numbers, below which scales vanish
# Calibrated integers make up for each other: with 2 bits and few samples a row may end far from the checkpoint's. The
# tensor as a whole still points where the checkpoint's does, while another one has a cosine near 0.
COSINE, SHORTEST, LONGEST = 0.5, 0.4, 2.0
SAMPLE = 32  # of large models, one block in so many and each tensor's ends: what is at a wrong place is so in all of it


def check_written(job: Job, floats: Job, folder: Path, twin: Path | None = None, every: int = 1) -> None:
    """Raises CheckFailed for the first tensor of a folder that is not the checkpoint's within its scheme's rounding.

    `floats` describes the same graphs without rounding. Where it lies in the folder `twin`, its weights become those
    that the rounded ones stand for. Without a twin, one block of rows in `every` is enough, and both ends.
    """
    plain = {graph.name: graph for graph in floats.graphs}
    for graph in job.lowering.graphs(job):
        files = StoredGraph(graph, folder)
        copies = None if twin is None else StoredGraph(plain[graph.name], twin, "r+")
        wanted = {source.name: source for source in plain[graph.name].sources}
        with ThreadPoolExecutor(THREADS) as pool:
            checks = [pool.submit(_check, job, each, wanted[each.name], files, copies, every)
                      for each in graph.sources]  # fmt: skip
            try:
                for check in checks:
                    check.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


class StoredGraph:
    """A graph that was written: where it says that its tensors lie."""

    def __init__(self, graph: Graph, folder: Path, mode: Literal["r", "r+"] = "r") -> None:
        self.folder, self.mode = folder, mode
        saved = ir.load(folder / f"{graph.name}.onnx").graph.initializers
        self._tensors: Mapping[str, Any] = {name: value.const_value for name, value in saved.items()}

    def parts(self, source: SourceTensor) -> list[NDArray[Any]]:
        """The stored form of a source tensor, one array [rows, ...] for each parameter; mapped, not read."""
        return [self._part(str(parameter.name)) for parameter in source.parameters]

    def _part(self, name: str) -> NDArray[Any]:
        tensor = self._tensors.get(name)
        if not isinstance(tensor, ir.ExternalTensor):
            raise CheckFailed(f"the saved graph in {self.folder} lacks the tensor {name}")
        shape = tuple(tensor.shape.numpy())
        packed = tensor.dtype.bitwidth < 8  # of 4 bits, two in a byte
        kind: Any = np.uint8 if packed else tensor.dtype.numpy()
        shape = (shape[0], shape[1] * tensor.dtype.bitwidth // 8) if packed else shape
        return np.memmap(self.folder / tensor.location, kind, self.mode, tensor.offset or 0, shape or (1,))


def _check(
    job: Job, source: SourceTensor, plain: SourceTensor, files: StoredGraph, copies: StoredGraph | None, every: int
) -> None:
    tensor, parts = job.checkpoint.tensor(source.name), files.parts(source)
    given, matrix = job.calibrated.floats(plain, tensor), source.matrix
    low = given is not None and matrix is not None and matrix.scheme.bits < 8
    made, likeness = job.calibrated.parts(source, tensor) if low else None, Likeness()
    copy = None if copies is None else copies.parts(plain)[0]
    for start, stop in _blocks(source.name, tensor.shape, every):
        stored = [part[start:stop] for part in parts]
        found = np.asarray(stored[0], np.float32) if matrix is None else matrix.unpack(stored)
        whole = plain.pack(tensor.rows(start, stop)) if given is None else [part[start:stop] for part in given]
        expected = np.asarray(whole[0], np.float32).reshape(found.shape)
        if made is None:
            near = _near(found, expected, source, stored)
        else:  # what calibration chose, exactly
            near = _same(stored, [part[start:stop] for part in made])
            likeness.add(found, expected)
        if not near.all():
            raise _refused(f"row {start + int(near.argmin())} of {source.name}")
        if copy is not None:
            copy[start:stop] = found.reshape(copy[start:stop].shape)
    if made is not None and not likeness.near:
        raise _refused(source.name)


def _refused(what: str) -> CheckFailed:
    return CheckFailed(
        f"the bundle's weights are not the checkpoint's: {what} is off by more than rounding allows, as if another "
        "tensor, order or sign had been stored; nothing was exported: report this with the checkpoint's config.json"
    )


def _blocks(name: str, shape: tuple[int, ...], every: int) -> Iterator[tuple[int, int]]:
    """Begin and end of blocks of rows: of one drawn from each `every`, which are smaller by as much, and of both ends.

    Each tensor has its own draw, the same in each run: no mistake that repeats can always fall between them.
    """
    rows, columns = (shape or (1,))[0], int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, BLOCK_ELEMENTS // every // max(1, columns))
    starts, draw = range(0, rows, step), random.Random(name)
    drawn = {draw.choice(starts[first : first + every]) for first in range(0, len(starts), every)}
    for start in sorted({starts[0], *drawn, starts[-1]}):
        yield start, min(start + step, rows)


def _near(found: Floats, expected: Floats, source: SourceTensor, stored: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Whether each row is what it should be, within what its scheme allows; NaN is not near anything."""
    scheme = UNQUANTIZED if source.matrix is None else source.matrix.scheme
    off = np.abs(found - expected)
    if not scheme.quantized:
        allowed = np.abs(expected) * HALF + TINY if scheme.bits == 16 else np.zeros_like(expected)
    else:
        allowed = _rounding(expected, scheme, coarse=stored[-1].dtype == ml_dtypes.bfloat16)
    rows: NDArray[np.bool_] = (off <= allowed).reshape(len(off), -1).all(axis=1)
    return rows


def _rounding(expected: Floats, scheme: Scheme, *, coarse: bool) -> Floats:
    """How far each weight may be from the nearest level: half a step, and more behind the last one.

    Scales are rounded themselves, to bfloat16 if `coarse` and else to float16, which moves the last levels most.
    """
    if scheme.float8:  # 3 bits of mantissa; its smallest numbers are a 2^18th of the largest
        largest = np.abs(expected).max(axis=1, keepdims=True)
        floats: Floats = np.abs(expected) / 15 + largest * np.float32(2.0**-17) + np.float32(TINY)
        return floats
    step, half = _steps(expected, scheme), 2 ** (scheme.bits - 1)
    largest = _largest_level(scheme.bits) * step
    reach = largest * (half - 1) / half if scheme.symmetric else np.maximum(np.abs(expected) - step, 0)
    slack = half * (step * np.float32(2.0**-8 if coarse else 2.0**-10) + np.float32(TINY))
    allowed: Floats = np.maximum(step / 2, np.abs(expected) - reach) + slack
    return allowed


def _steps(expected: Floats, scheme: Scheme) -> Floats:
    """The distance of two levels for each weight [rows, columns], from the largest weights of its group."""
    groups = expected.reshape(len(expected), -1, scheme.group_size)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    if scheme.symmetric:
        steps = np.maximum(-low, high) / _largest_level(scheme.bits)
    else:
        steps = (high - low) / (2**scheme.bits - 1)
    wide: Floats = np.broadcast_to(steps[..., None], groups.shape).reshape(expected.shape)
    return wide


def _largest_level(bits: int) -> int:
    """Of symmetric levels; one less in 8 bits, whose largest the tensorrt dialect leaves out."""
    return 127 if bits == 8 else 2 ** (bits - 1)


def _same(stored: Sequence[NDArray[Any]], made: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Whether each row has the same bytes in all parts."""
    pairs = [
        [np.ascontiguousarray(each).reshape(len(each), -1).view(np.uint8) for each in pair]
        for pair in zip(stored, made, strict=True)
    ]
    same: NDArray[np.bool_] = np.all([(one == other).all(axis=1) for one, other in pairs], axis=0)
    return same


class Likeness:
    """Whether a tensor, block by block, points where another one does and is about as long; NaN is not."""

    def __init__(self) -> None:
        self._both = self._found = self._expected = 0.0

    def add(self, found: Floats, expected: Floats) -> None:
        """One more block of both."""
        self._both += float((found * expected).sum(dtype=np.float64))
        self._found += float(np.square(found).sum(dtype=np.float64))
        self._expected += float(np.square(expected).sum(dtype=np.float64))

    @property
    def near(self) -> bool:
        made, wanted = self._found**0.5, self._expected**0.5
        return bool(self._both >= COSINE * made * wanted and SHORTEST * wanted <= made <= LONGEST * wanted)
