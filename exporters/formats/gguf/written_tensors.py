"""Compares the tensors of GGUF files with the same ones in floats, whatever llama.cpp's quantizer made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from ....targets.errors import CheckFailed
from .tensors import Tensor

Floats = NDArray[np.float32]
# Root mean squares of what rounding changes, relative to the tensor. Floats by their mantissa; integers halve it with
# each bit, and llama.cpp's types stay near 2^-bits on the trained models, rows with few outliers below 3 times that.
FLOATS = {Type.F32: 0.0, Type.F16: 2.0**-11, Type.BF16: 2.0**-8}
TENSOR, ROW, OWN_SIZE = 3.0, 3.0, 0.95  # rows of another tensor are off by 1.4 times their own size
BLOCK = 1 << 22  # weights that are widened at once
SAMPLED = 128  # rows


def check_files(plain: Path, folder: Path) -> None:
    """Raises CheckFailed for the first tensor of a folder's GGUF files that is not the one in the folder `plain`."""
    for path in sorted(plain.glob("*.gguf")):
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / path.name).tensors}
        for tensor in gguf.GGUFReader(path).tensors:
            _check(tensor, found.get(tensor.name), folder / path.name)


def check_samples(tensors: Iterable[Tensor], file: Path) -> None:
    """The same for the first rows of each tensor that a file should hold, which shows what is at a wrong place."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for tensor in tensors:
        found = stored.get(tensor.name)
        shape = [*tensor.shape[::-1]]
        if found is None or [int(size) for size in found.shape] != shape:
            raise _refused(tensor.name, file, "missing, or of another shape")
        first = next(tensor.rows()).reshape(-1, shape[0])[:SAMPLED]
        rows = gguf.quants.dequantize(_flat(found, shape[0])[: len(first)], Type(found.tensor_type))
        _judge([(first, rows.astype(np.float32))], found, file)


def _check(tensor: Any, found: Any, file: Path) -> None:
    if found is None or list(found.shape) != list(tensor.shape):
        raise _refused(tensor.name, file, "missing, or of another shape")
    _judge(_rows(tensor, found), found, file)


def _judge(pairs: Iterable[tuple[Floats, Floats]], tensor: Any, file: Path) -> None:
    """Of expected rows and those that a tensor of a file has."""
    allowed, squares, sizes = limit(tensor), 0.0, 0.0
    for expected, rows in pairs:
        off, size = np.square(rows - expected).mean(axis=1), np.square(expected).mean(axis=1)
        squares, sizes = squares + float(off.sum()), sizes + float(size.sum())
        if not (np.sqrt(off) <= min(ROW * allowed, OWN_SIZE) * np.sqrt(size) + 1e-12).all():  # NaN is not below
            raise _refused(tensor.name, file, "off in some rows by more than rounding allows")
    if not squares**0.5 <= allowed * sizes**0.5:
        raise _refused(tensor.name, file, "off by more than rounding allows")


def limit(tensor: Any) -> float:
    """How far a tensor may be from its floats, relative to them, by the bits of its type."""
    kind = Type(tensor.tensor_type)
    if kind in FLOATS:
        return FLOATS[kind]
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    return float(min(TENSOR * 2.0 ** (-8 * nbytes / block), OWN_SIZE))


def _rows(tensor: Any, found: Any) -> Iterator[tuple[Floats, Floats]]:
    """Both tensors in floats, in blocks of rows [rows, columns]."""
    columns = int(tensor.shape[0])
    pairs = [(_flat(each, columns), Type(each.tensor_type)) for each in (tensor, found)]
    step = max(1, BLOCK // columns)
    for start in range(0, len(pairs[0][0]), step):
        wide = [gguf.quants.dequantize(data[start : start + step], kind) for data, kind in pairs]
        yield wide[0].astype(np.float32), wide[1].astype(np.float32)


def _flat(tensor: Any, columns: int) -> NDArray[Any]:
    """Rows of a tensor as the file has them, bytes or floats."""
    data: NDArray[Any] = tensor.data
    return data.reshape(int(np.prod(tensor.shape)) // columns, -1)


def _refused(name: str, file: Path, what: str) -> CheckFailed:
    return CheckFailed(
        f"the weights of {file.name} are not the checkpoint's: {name} is {what}; nothing was exported: report this "
        "with the checkpoint's config.json"
    )
