"""Calibrated weights on their way to the data files, one file for each tensor: a whole model never is in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...exporters.checkpoint.lazy_tensors import LazyTensor
from ...exporters.graphs.blocks import SourceTensor
from ...exporters.storage.packing import pack_low_first, unpack_low_first
from ...exporters.storage.rounding import Groups, dequantize
from .matrix_outcomes import OutcomeJournal

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CalibratedTensor:
    """What calibration made of a tensor: its integers, if it is quantized, and the factors of smoothing.

    The stored weights are the checkpoint's times `columns` and divided by `rows`; what was multiplied here is divided
    in the tensor in front, and the other way round. `groups` come before their division by `rows`.
    """

    groups: Groups | None = None
    columns: Floats | None = None  # [columns]
    rows: Floats | None = None  # [rows]

    @property
    def divided(self) -> Groups | None:
        """The integers as they are stored: scales take the division by `rows`, rounded to float16 once more."""
        if self.groups is None or self.rows is None:
            return self.groups
        return replace(self.groups, scales=(self.groups.scales / self.rows[:, None]).astype(np.float16))

    def effective(self) -> Floats:
        """The weights [rows, columns] that the quantized model stands for, without the factors."""
        groups = self.divided
        assert groups is not None
        weights = dequantize(groups)
        if self.columns is not None:
            weights /= self.columns
        if self.rows is not None:
            weights *= self.rows[:, None]
        return weights


class Store:
    """A folder of calibrated tensors by name, and a journal of what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = OutcomeJournal(folder / "outcomes.jsonl")

    def put(self, name: str, made: CalibratedTensor) -> None:
        """Write a tensor, in one step."""
        arrays: dict[str, Any] = {key: a for key in ("columns", "rows") if (a := getattr(made, key)) is not None}
        if made.groups is not None:
            arrays |= _arrays(made.groups)
        path = self._path(name)
        with open(path.with_suffix(".new"), "wb") as file:
            np.savez(file, **arrays)
        path.with_suffix(".new").replace(path)

    def get(self, name: str) -> CalibratedTensor | None:
        """Read a tensor; None for one that was not calibrated."""
        if not self._path(name).is_file():
            return None
        with np.load(self._path(name), allow_pickle=False) as arrays:
            groups = _groups(arrays) if "values" in arrays else None
            return CalibratedTensor(groups, *(arrays.get(key) for key in ("columns", "rows")))

    def divide_rows(self, name: str, rows: Floats) -> None:
        """Divide the rows of a tensor by factors, whether it was calibrated before or not; again changes nothing."""
        self.put(name, replace(self.get(name) or CalibratedTensor(), rows=rows))

    def parts(self, source: SourceTensor, tensor: LazyTensor) -> list[NDArray[Any]] | None:
        """The stored form of a tensor for the data file; None for one that was not calibrated."""
        made = self.get(source.name)
        if made is None:
            return None
        if (groups := made.divided) is not None:
            assert source.matrix is not None
            return source.matrix.store(groups)
        return self.floats(source, tensor)

    def floats(self, source: SourceTensor, tensor: LazyTensor) -> list[NDArray[Any]] | None:
        """The stored form of a tensor as a float `source`, with the factors of smoothing; None as of `parts`."""
        made = self.get(source.name)
        return None if made is None else [*_scaled(source.pack(tensor.numpy()), made)]

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"


def _scaled(parts: list[NDArray[Any]], made: CalibratedTensor) -> Iterator[NDArray[Any]]:
    for part in parts:
        values = part.astype(np.float32)
        if made.columns is not None:
            values *= made.columns
        if made.rows is not None:
            values /= made.rows.reshape(-1, *[1] * (values.ndim - 1))
        yield values.astype(part.dtype)


def _arrays(groups: Groups) -> dict[str, Any]:
    arrays = {
        "values": pack_low_first(groups.values, _packed_bits(groups.bits)),
        "scales": groups.scales,
        "shape": np.array([groups.bits, groups.values.shape[1]]),
    }
    return arrays if groups.zero_points is None else {**arrays, "zero_points": groups.zero_points}


def _groups(arrays: Any) -> Groups:
    bits, columns = (int(value) for value in arrays["shape"])
    values = unpack_low_first(arrays["values"], _packed_bits(bits), columns)
    return Groups(values, arrays["scales"], arrays.get("zero_points"), bits)


def _packed_bits(bits: int) -> int:
    return 4 if bits == 3 else bits
