"""Random weights that behave like trained ones: the numbers of each tensor, and their files.

A deep transformer with plain Gaussian weights collapses: its tokens become alike, attention is uniform, logits are
flat, and neither parity nor quantization figures mean anything. The rules of `FILLS` prevent that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import Steps
from .synth_layouts import ITEM_BYTES, SynthTensor

Values = NDArray[np.float32]

BLOCK = 2**20  # elements made at a time: 4 MB of float32, which stays in the cache
FLOATS = {"F32": np.float32, "F16": np.float16}  # stored by numpy itself; it has no bfloat16
SHARD_BYTES = 5_000_000_000  # as transformers splits them
THREADS = 2  # numpy generators release the interpreter lock


@dataclass(frozen=True)
class Fill:
    """How the numbers of a kind of tensor are drawn: normal, of this mean and standard deviation, and then shaped."""

    std: float = 0.02  # the initializer_range of these models
    mean: float = 0.0
    projection: bool = False  # each output row has its own scale, as in trained matrices; narrow inputs get more
    gain: float = 1.0
    query_key_gain: float = 1.0  # for the first two thirds of the rows of a fused query, key, value matrix
    outliers: bool = False  # the same few output channels in every layer 8 times, some input columns 5 times as strong
    zero_sum: bool = False  # each row sums to zero, so that a constant input adds nothing to the residual stream
    uniform: Callable[[Values], Values] | None = None  # instead: this function of uniform numbers from 0 to 1


def _inverse_softplus_of_step(u: Values) -> Values:
    """What softplus turns into a step from 0.001 to 0.1, evenly spread in its logarithm, as in Mamba's recipe."""
    step = 0.001 * 100**u
    return np.asarray(step + np.log(-np.expm1(-step)), np.float32)


FILLS: Mapping[str, Fill] = {
    "embedding": Fill(),
    "position": Fill(std=0.2),
    "bias": Fill(),
    "norm": Fill(std=0.1, mean=1.0),
    "qk_norm": Fill(std=0.1, mean=1.5),  # attention far from uniform: a wrong rotary position shows
    "final_norm": Fill(std=0.1, mean=4.0),  # next-token distributions as peaked as a trained model's
    "linear": Fill(projection=True),
    "qkv": Fill(projection=True, query_key_gain=2.0),
    "attention_out": Fill(projection=True, gain=0.3, outliers=True),
    "residual": Fill(projection=True, outliers=True, zero_sum=True),
    "qk": Fill(projection=True, gain=2.0),
    # Norms that multiply by 1 + weight.
    "norm0": Fill(std=0.1),
    "qk_norm0": Fill(std=0.1, mean=0.5),
    "final_norm0": Fill(std=0.1, mean=3.0),
    # Gated delta net: the usual initializations of its small tensors.
    "conv": Fill(uniform=lambda u: u - np.float32(0.5)),
    "A_log": Fill(uniform=lambda u: np.log(1 + 15 * u)),
    "dt_bias": Fill(uniform=_inverse_softplus_of_step),
}


def _generator(*seed: object) -> np.random.Generator:
    digest = hashlib.sha256(repr(seed).encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


def _matrix_shape(tensor: SynthTensor) -> tuple[int, int]:
    """Rows (outputs) and columns (inputs); a vector is one row."""
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    return rows, math.prod(tensor.shape) // rows


def _row_scales(tensor: SynthTensor, seed: int) -> NDArray[np.float32]:
    """The standard deviation of each row; [rows, 1]."""
    fill, (rows, columns) = FILLS[tensor.kind], _matrix_shape(tensor)
    scale = np.full(rows, fill.std * fill.gain, np.float32)
    if fill.projection:
        spread = _generator(seed, tensor.name, "rows").standard_normal(rows, dtype=np.float32)
        scale *= max(1.0, math.sqrt(1024 / columns)) * np.exp(0.25 * spread)
    if fill.outliers:  # seeded by the width alone: the same channels in every layer of a tower
        scale[_generator(seed, "outliers", rows).choice(rows, max(2, rows // 512), replace=False)] *= 8
    scale[: rows // 3 * 2] *= fill.query_key_gain
    return scale[:, None]


def blocks(tensor: SynthTensor, seed: int) -> Iterator[Callable[[], NDArray[np.float32]]]:
    """The values of a tensor as independent jobs, each making some whole rows; they depend on seed, name and shape."""
    fill, (rows, columns) = FILLS[tensor.kind], _matrix_shape(tensor)
    scale, step = _row_scales(tensor, seed), max(1, BLOCK // columns)
    strong = _generator(seed, tensor.name, "columns").choice(columns, max(1, columns // 256), replace=False)

    def make(start: int) -> NDArray[np.float32]:
        part = scale[start : start + step]
        source = _generator(seed, tensor.name, start)
        if fill.uniform is not None:
            return fill.uniform(source.random((len(part), columns), dtype=np.float32))
        values = source.standard_normal((len(part), columns), dtype=np.float32)
        values *= part
        if fill.outliers:
            values[:, strong] *= 5
        if fill.zero_sum:
            values -= values.mean(axis=1, keepdims=True)
        values += np.float32(fill.mean)
        return values

    for start in range(0, rows, step):
        yield lambda start=start: make(start)  # type: ignore[misc]


def encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """The stored bits, rounded to nearest with ties away from zero; `values` is overwritten."""
    if dtype in FLOATS:
        return values.astype(FLOATS[dtype], copy=False)
    bits = values.view(np.uint32)
    bits += np.uint32(0x8000)
    bits >>= np.uint32(16)
    return bits.astype(np.uint16)


def header_of(tensors: Iterable[SynthTensor]) -> bytes:
    """The start of a safetensors file: the length in 8 bytes, then the JSON header, padded to 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes],
        }  # fmt: skip
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_order(tensors: Iterable[SynthTensor]) -> list[SynthTensor]:
    """The order of the safetensors library: widest type first, then by name."""
    return sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))


def shards(tensors: Iterable[SynthTensor], limit: int) -> dict[str, list[SynthTensor]]:
    """Tensors by file name, in files of at most `limit` bytes (or one tensor), named as on the Hugging Face hub."""
    parts: list[list[SynthTensor]] = [[]]
    for tensor in tensors:
        if parts[-1] and sum(item.nbytes for item in parts[-1]) + tensor.nbytes > limit:
            parts.append([])
        parts[-1].append(tensor)
    names = [f"model-{index:05d}-of-{len(parts):05d}.safetensors" for index in range(1, len(parts) + 1)]
    return dict(zip(names if len(parts) > 1 else ["model.safetensors"], parts, strict=True))


def write_checkpoint(folder: Path, tensors: Iterable[SynthTensor], seed: int, progress: Steps) -> None:
    """Write the weights into a folder: one file, or shards of 5 GB with an index."""
    files = shards(tensors, SHARD_BYTES)
    total, done = sum(tensor.nbytes for part in files.values() for tensor in part), 0
    for name, part in files.items():
        write_weights(folder / name, part, seed, lambda here, _, before=done: progress(before + here, total))  # type: ignore[misc]
        done += sum(tensor.nbytes for tensor in part)
    if len(files) > 1:
        places = {tensor.name: name for name, part in files.items() for tensor in part}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_weights(path: Path, tensors: Iterable[SynthTensor], seed: int, progress: Steps) -> None:
    """Write one safetensors file; threads make blocks ahead, and memory holds a few blocks only."""
    ordered = file_order(tensors)
    done, total = 0, sum(tensor.nbytes for tensor in ordered)
    with open(path, "wb") as file, ThreadPoolExecutor(THREADS) as pool:
        file.write(header_of(ordered))
        jobs = ((make, tensor.dtype) for tensor in ordered for make in blocks(tensor, seed))
        for data in _ahead(pool, lambda job: encode(job[0](), job[1]), jobs):
            file.write(data.data)
            done += data.nbytes
            progress(done, total)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Any], NDArray[Any]], jobs: Iterable[Any]
) -> Iterator[NDArray[Any]]:
    """Results in the order of the jobs, computed a few ahead."""
    pending: deque[Any] = deque()
    for job in jobs:
        pending.append(pool.submit(work, job))
        if len(pending) > 2 * THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
