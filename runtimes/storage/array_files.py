"""Writes files of arrays (.npz), and reads those that a stranger wrote."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def write_arrays(file: IO[bytes], arrays: Arrays) -> None:
    """Write arrays by name; numpy before 2.1 knows no `allow_pickle`, and would write it as one more array."""
    named: dict[str, Any] = dict(arrays)
    np.savez(file, **named)


def read_arrays(path: Path, only: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """All arrays of a file by name, or `only` some; ValueError for compressed ones, which grow from a few bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        if packed:
            raise ValueError("its arrays are compressed")
        with np.load(path, allow_pickle=False) as arrays:
            wanted = arrays.files if only is None else only
            return {name: _plain(name, arrays[name]) for name in wanted}
    except Exception as error:  # numpy reads headers with Python's own parser, which raises errors of many kinds
        raise ValueError(f"{path.name}: {error or type(error).__name__}") from error


def _plain(name: str, value: Any) -> NDArray[Any]:
    """An array; numpy gives the bytes of other files in the archive as they are."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name!r} is no array")
    return value


def take_array(arrays: Arrays, name: str, dtype: type[np.generic], *shape: int | None) -> NDArray[Any]:
    """One of them, of this type and shape, where None is any size; ValueError for another, and where there is none."""
    found = arrays.get(name)
    if found is None:
        raise ValueError(f"there is no array {name!r}")
    sizes = [size if want is None else want for size, want in zip(found.shape, shape, strict=False)]
    if found.dtype != dtype or found.ndim != len(shape) or list(found.shape) != sizes:
        raise ValueError(f"the array {name!r} is {found.dtype} {list(found.shape)}, expected {dtype.__name__} "
                         f"{['any' if size is None else size for size in shape]}")  # fmt: skip
    return found
