"""Importance matrices in llama.cpp's own format: for each matrix the sums of squares of what it is multiplied with.

Source of the format: `save_imatrix` in llama.cpp's tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from ....targets.errors import InputError
from .tensors import Floats, Tensor

SUMS, COUNTS = ".in_sum2", ".counts"  # endings of names


@dataclass(frozen=True)
class Energy:
    """What one matrix was multiplied with: sums of squares float32 [columns] over `count` tokens."""

    sums: Floats
    count: int

    @property
    def mean(self) -> Floats:
        """Mean of squares [columns]."""
        return np.asarray(self.sums / max(1, self.count), np.float32)


def by_tensor(energies: Mapping[str, Energy], tensors: Sequence[Tensor]) -> dict[str, Energy]:
    """Energies by the names of source tensors as energies by those of GGUF tensors, columns in their order."""
    found = {}
    for tensor in tensors:
        energy = energies.get(tensor.sources[0])
        if energy is not None and len(tensor.shape) == 2 and tensor.name.endswith(".weight"):
            if len(energy.sums) != tensor.shape[1]:
                raise InputError(
                    f"the importance of {tensor.sources[0]!r} has {len(energy.sums)} columns, the matrix "
                    f"{tensor.shape[1]}; gather it from the same checkpoint"
                )
            sums = energy.sums if tensor.columns is None else energy.sums[tensor.columns]
            found[tensor.name] = Energy(np.asarray(sums, np.float32), energy.count)
    return found


def write_imatrix(path: Path, energies: Mapping[str, Energy], datasets: Sequence[str]) -> None:
    """Write energies by GGUF tensor as a file that llama-quantize takes too."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    most = max((energy.count for energy in energies.values()), default=0)
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", most)
    for name, energy in sorted(energies.items()):
        writer.add_tensor(name + SUMS, np.ascontiguousarray(energy.sums[None], np.float32))
        writer.add_tensor(name + COUNTS, np.array([[energy.count]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: Path) -> dict[str, Energy]:
    """Energies by GGUF tensor; InputError for what is no importance matrix, or has one for each expert."""
    try:
        values: dict[str, NDArray[np.float32]] = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
        names = sorted(name.removesuffix(SUMS) for name in values if name.endswith(SUMS))
        found = {name: Energy(values[name + SUMS].reshape(-1), int(values[name + COUNTS].item())) for name in names}
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise InputError(f"{path} is not an importance matrix in llama.cpp's GGUF format ({error})") from error
    if not found:
        raise InputError(f"{path} has no importance of any matrix; expected tensors that end in {SUMS}")
    if not all(np.isfinite(energy.sums).all() for energy in found.values()):
        raise InputError(f"{path} has values that are not finite; gather it again")
    return found
