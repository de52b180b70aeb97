"""The weights of a checkpoint folder as lazy tensors: headers of safetensors files, checked before anything is read.

Pickled weights (.bin, .pt) are never loaded.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...runtimes.storage.files import read_json
from ...targets.errors import InputError
from .lazy_tensors import BLOCK, DTYPES, LazyTensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


@dataclass(frozen=True)
class StoredTensor(LazyTensor):
    """A tensor that stays in its file until it is read.

    `dtype` is the safetensors name ("BF16"); `begin` and `end` are byte offsets from the start of `file`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin

    def renamed(self, name: str) -> StoredTensor:
        return replace(self, name=name)

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        return self._read(0, self.size, np.dtype(dtype)).reshape(self.shape)

    def rows(self, start: int, stop: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        self.check_rows(start, stop)
        width = math.prod(self.shape[1:])
        values = self._read(start * width, (stop - start) * width, np.dtype(dtype))
        return values.reshape(stop - start, *self.shape[1:])

    def columns(self, start: int, stop: int) -> NDArray[Any]:
        """Columns `start` to `stop` of a matrix as stored, reading only their bytes; [rows, stop - start]."""
        rows, width = self.shape
        out: NDArray[Any] = np.empty((rows, stop - start), DTYPES[self.dtype])
        with open(self.file, "rb", buffering=0) as file:
            for row in range(rows):
                file.seek(self.begin + (row * width + start) * out.itemsize)
                self._fill(file, out[row])
        return out

    def chunk(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Some of the tensor's bytes, counted from its first."""
        out: NDArray[np.uint8] = np.empty(stop - start, np.uint8)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.begin + start)
            self._fill(file, out)
        return out

    def _read(self, first: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        stored = DTYPES[self.dtype]
        out: NDArray[Any] = np.empty(count, dtype)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.begin + first * stored.itemsize)
            if dtype == stored:
                self._fill(file, out)
                return out
            block = np.empty(min(BLOCK, count), stored)
            for at in range(0, count, BLOCK):
                part = block[: count - at]
                self._fill(file, part)
                target = out[at : at + BLOCK]
                if part.dtype == DTYPES["BF16"] and target.dtype == np.float32:  # of which it is the upper half
                    np.left_shift(part.view(np.uint16), 16, out=target.view(np.uint32), dtype=np.uint32)
                else:
                    np.copyto(target, part, casting="unsafe")
        return out

    def _fill(self, file: Any, out: NDArray[Any]) -> None:
        view = out.view(np.uint8).data
        while view:
            got = file.readinto(view)
            if not got:
                raise InputError(f"{self.file} became shorter while {self.name} was read; open the checkpoint again.")
            view = view[got:]


def holds_weights(folder: Path) -> bool:
    """Whether a folder has files of weights, of any kind."""
    return any(path.name.endswith((".safetensors", *PICKLES)) for path in folder.iterdir())


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the folder, by name in sorted order."""
    if (folder / SINGLE).is_file():
        found = read_header(folder / SINGLE)
    elif (folder / INDEX).is_file():
        found = _open_shards(folder)
    else:
        raise InputError(_nothing_to_read(folder))
    return dict(sorted(found.items()))


def _nothing_to_read(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"{folder} has only pickled weights ({pickles[0]}), which are never loaded because they can run code; "
            "convert them with transformers: save_pretrained(folder, safe_serialization=True)."
        )
    return f"{folder} has neither {SINGLE} nor {INDEX}; check that the download is complete."


def _open_shards(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of all shards; where two shards hold the same name, the index decides."""
    index = folder / INDEX
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise InputError(f"{index} has no usable weight_map of tensor names to files; copy the file again.")
    shards = sorted(set(where.values()))
    for shard in shards:
        if os.path.basename(shard) != shard or "\\" in shard or shard in ("", ".", ".."):
            raise InputError(f"{index} names the file {shard!r} outside its folder; expected plain file names.")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise InputError(f"{folder} lacks {len(missing)} of {len(shards)} shards ({missing[0]}); download it again.")
    opened = {shard: read_header(folder / shard) for shard in shards}
    for name, shard in where.items():
        if name not in opened[shard]:
            raise InputError(f"{index} says that {shard} holds {name!r}, which is not there; copy both files again.")
    return {name: t for shard in shards for name, t in opened[shard].items() if where.get(name, shard) == shard}


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, each checked against the size of the file."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise InputError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in the checkpoint.")
        if len(start) < 8 or length > MAX_HEADER_BYTES:
            raise InputError(f"{path} is not a safetensors file (header of {length} bytes); download it again.")
        if 8 + length > size:
            raise InputError(f"{path} is cut off inside its header ({size} bytes); download it again.")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} has a header that is not JSON ({error}); download it again.") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} has a header that is not a JSON object; download it again.")
    entries = [_entry(path, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    # The tensors must fill the data without gap or overlap, as the format demands.
    at, previous = 8 + length, "the header"
    for tensor in sorted(entries, key=lambda t: (t.begin, t.end)):
        if tensor.begin != at:
            what = "overlaps" if tensor.begin < at else "leaves a gap behind"
            raise InputError(f"{path}: {tensor.name!r} {what} {previous}; the file is damaged, download it again.")
        at, previous = tensor.end, repr(tensor.name)
    if at > size:
        raise InputError(f"{path} is cut off: {size} bytes, its header says {at}; download it again.")
    if at < size:
        raise InputError(f"{path} has {size - at} bytes more than its header describes; download it again.")
    return {tensor.name: tensor for tensor in entries}


def _entry(path: Path, name: str, entry: Any, data: int) -> StoredTensor:
    """One entry of a header; `data` is the offset of the first byte of tensor data."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        plain = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        plain = False
    if not plain:
        raise InputError(f"{path} describes {name!r} wrongly: {str(entry)[:200]}; download it again.")
    if dtype not in DTYPES:
        raise InputError(f"{path} stores {name!r} as {dtype!r}, expected one of {', '.join(DTYPES)}; convert it first.")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise InputError(
            f"{path} gives {name!r} {end - begin} bytes, but {dtype} of shape {list(shape)} takes {expected}; "
            "download it again."
        )
    return StoredTensor(name, shape, dtype, path, data + begin, data + end)
