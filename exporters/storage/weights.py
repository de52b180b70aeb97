"""From source tensors to the data file of a graph: layout first, then bytes in a stream of small blocks of rows."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ...runtimes.bundle.journal import Journal
from ...runtimes.storage.files import disk_full_is_input
from ...targets.errors import InputError, closest
from ..checkpoint.folder import Checkpoint
from ..checkpoint.lazy_tensors import LazyTensor
from ..checkpoint.prequantized.kept import kept_rows
from ..graphs.blocks import SourceTensor
from ..graphs.graph_files import Graph
from ..progress import Advance
from .positioned import PositionedFile

PAGE = 4096  # large tensors start on a page, so that engines can map them
BLOCK_ELEMENTS = 1 << 20  # elements of a block of rows: 4 MB of float32, near the size of a core's cache
THREADS = 2  # numpy releases the interpreter lock in the heavy steps; the bytes do not depend on the number

Parts = Callable[[SourceTensor, LazyTensor], list[NDArray[Any]] | None]  # a tensor that is not packed from its rows


@dataclass(frozen=True)
class Placed:
    """One source tensor, its description and the offsets of its parts in the data file."""

    tensor: LazyTensor
    source: SourceTensor
    offsets: tuple[int, ...]

    def pairs(self, source: SourceTensor) -> Iterator[tuple[ir.Value, int]]:
        """The parameters of a description of this tensor, which may be another graph's, each with its offset."""
        yield from zip(source.parameters, self.offsets, strict=True)
        if source.alias is not None:
            yield source.alias, self.offsets[0]


def check_names(checkpoint: Checkpoint, graphs: Iterable[Graph], dropped: dict[str, str]) -> None:
    """Every needed tensor is there in the right shape, and every tensor is used or dropped with a reason."""
    needed = {source.name: source for graph in graphs for source in graph.sources}
    for name, source in needed.items():
        tensor = checkpoint.tensor(name)
        if source.matrix is not None:
            expected: tuple[int, ...] = (source.matrix.rows, source.matrix.columns)
            found: tuple[int, ...] = (tensor.shape[0], prod(tensor.shape[1:])) if tensor.shape else ()
        else:
            expected, found = _type(source.parameters[0])[1], tensor.shape
        if found != expected:
            raise InputError(
                f"tensor {tensor.name!r} has shape {list(tensor.shape)}; config.json implies {list(expected)}: "
                "the weights and the configuration do not belong together"
            )
    unknown = sorted(set(checkpoint.tensors) - set(needed) - set(dropped))
    if unknown:
        hint, stored = closest(unknown[0], needed), checkpoint.stored_names[unknown[0]]
        raise InputError(
            f"{checkpoint.path} has {len(unknown)} tensors that this architecture does not use, such as "
            f"{stored!r} ({hint or 'no similar name is used'}); remove them or check the model_type"
        )


def layout(graph: Graph, checkpoint: Checkpoint) -> tuple[list[Placed], int]:
    """Where the source tensors of a graph lie in its data file, and the size of that file."""
    placed, end = [], 0
    for source in graph.sources:
        offsets = []
        for parameter in source.parameters:
            nbytes = stored_bytes(parameter)
            align = PAGE if nbytes >= PAGE else 64
            offsets.append(-(-end // align) * align)
            end = offsets[-1] + nbytes
        placed.append(Placed(checkpoint.tensor(source.name), source, tuple(offsets)))
    return placed, end


def with_data(graph: Graph, checkpoint: Checkpoint) -> ir.Model:
    """A copy of a graph whose initializers lie in its data file; what it borrows lies in that of another graph."""
    model = graph.model.clone()
    for name, tensor in _in_files(graph, checkpoint).items():
        model.graph.initializers[name].const_value = tensor
    return model


def graph_file_bytes(graph: Graph, checkpoint: Checkpoint) -> int:
    """Bytes of the file of `with_data`, for which the graph itself has the data meanwhile: a copy takes far longer."""
    tensors, initializers = _in_files(graph, checkpoint), graph.model.graph.initializers
    before = {name: initializers[name].const_value for name in tensors}
    try:
        for name, tensor in tensors.items():
            initializers[name].const_value = tensor
        return int(ir.to_proto(graph.model).ByteSize())
    finally:
        for name, value in before.items():
            initializers[name].const_value = value


def _in_files(graph: Graph, checkpoint: Checkpoint) -> dict[str, ir.ExternalTensor]:
    """The initializers of a graph that lie in data files, by name."""
    own, _ = layout(graph, checkpoint)
    files = {f"{graph.name}.data": [pair for placed in own for pair in placed.pairs(placed.source)]}
    if graph.lender is not None:
        lent = {placed.source.name: placed for placed in layout(graph.lender, checkpoint)[0]}
        files[f"{graph.lender.name}.data"] = [
            pair for source in graph.borrowed for pair in lent[source.name].pairs(source)
        ]
    return {
        str(parameter.name): in_file(parameter, file, offset)
        for file, pairs in files.items()
        for parameter, offset in pairs
        if str(parameter.name) in graph.model.graph.initializers  # a view is none where no node looks rows up
    }


def in_file(parameter: ir.Value, file: str, offset: int) -> ir.ExternalTensor:
    """The values of a parameter, which lie in a data file."""
    dtype, shape = _type(parameter)
    return ir.ExternalTensor(
        file, offset, stored_bytes(parameter), dtype, shape=ir.Shape(shape), name=str(parameter.name)
    )


def stored_bytes(parameter: ir.Value) -> int:
    """Bytes of a parameter in the data file."""
    dtype, shape = _type(parameter)
    return int(prod(shape) * dtype.itemsize)


def _type(parameter: ir.Value) -> tuple[ir.DataType, tuple[int, ...]]:
    assert parameter.dtype is not None
    assert parameter.shape is not None
    return parameter.dtype, tuple(parameter.shape.numpy())


def write(
    tensors: list[Placed],
    size: int,
    path: Path,
    journal: Journal,
    progress: Advance = lambda _: None,
    parts: Parts = lambda *_: None,
) -> None:
    """Write the data file. Holds one block of rows for each thread in memory; a full disk is an InputError.

    Tensors that are in the journal, and in the file as they were written, are not written again. Tensors that `parts`
    gives are written as they are.
    """
    resumed = bool(journal.finished) and path.is_file() and path.stat().st_size == size
    with disk_full_is_input(path.parent), open(path, "r+b" if resumed else "wb") as file:
        if not resumed:
            journal.restart()
        if size and hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, not after minutes
        with ThreadPoolExecutor(THREADS) as pool:
            shared = PositionedFile(file.fileno())
            running = [pool.submit(_write_once, each, shared, journal, progress, parts) for each in tensors]
            try:
                for future in running:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write_once(placed: Placed, file: PositionedFile, journal: Journal, progress: Advance, parts: Parts) -> None:
    hashes = journal.finished.get(placed.tensor.name)
    if hashes is not None and hashes == _hashes(placed, file):
        progress(placed.tensor.size)
    else:
        journal.record(placed.tensor.name, _write_tensor(placed, file, progress, parts))


def _hashes(placed: Placed, file: PositionedFile) -> list[str]:
    """The SHA-256 of each part of a tensor as the file holds it."""
    found = []
    for parameter, offset in zip(placed.source.parameters, placed.offsets, strict=True):
        digest, end = hashlib.sha256(), offset + stored_bytes(parameter)
        for start in range(offset, end, 4 * BLOCK_ELEMENTS):
            digest.update(file.read(min(4 * BLOCK_ELEMENTS, end - start), start))
        found.append(digest.hexdigest())
    return found


def _write_tensor(placed: Placed, file: PositionedFile, progress: Advance, parts: Parts) -> list[str]:
    """Write the parts of a tensor; their SHA-256."""
    offsets, digests = list(placed.offsets), [hashlib.sha256() for _ in placed.offsets]
    for rows, packed in _packed(placed, parts):
        for index, part in enumerate(packed):
            data = part.tobytes()
            file.write(data, offsets[index])
            digests[index].update(data)
            offsets[index] += len(data)
        progress(rows)
    return [digest.hexdigest() for digest in digests]


def _packed(placed: Placed, parts: Parts) -> Iterator[tuple[int, list[NDArray[Any]]]]:
    """The stored form of a tensor in blocks of rows, each with its number of elements; calibrated ones come whole."""
    ready = parts(placed.source, placed.tensor)
    if ready is not None:
        yield placed.tensor.size, ready
        return
    shape = placed.tensor.shape or (1,)
    step = max(1, BLOCK_ELEMENTS // max(1, prod(shape[1:])))
    stored = kept_rows(placed.source.matrix, placed.tensor) or functools.partial(_rounded_rows, placed)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        yield (stop - start) * prod(shape[1:]), stored(start, stop)


def _rounded_rows(placed: Placed, start: int, stop: int) -> list[NDArray[Any]]:
    try:
        return placed.source.pack(placed.tensor.rows(start, stop))
    except ValueError as error:
        raise InputError(f"tensor {placed.tensor.name!r} cannot be stored: {error}; use --precision fp32") from error
