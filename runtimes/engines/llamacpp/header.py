"""Reads the beginning of a GGUF file: metadata and the list of tensors, trusting nothing.

llama.cpp ends the process on some damaged files, so that nothing reaches it that was not read here first.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ....targets.errors import InputError

VERSION, ALIGNMENT, DIMENSIONS = 3, 32, 4
MOST_ENTRIES, MOST_TEXTS = 100_000, 4_000_000  # tensors or values, and texts of an array; models have fewer by far
NAME_BYTES = 63  # of a tensor; llama.cpp's own limit
NUMBERS: Mapping[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# Values and bytes of a block of each tensor type that llama.cpp's quantizer can write (ggml.h, ggml-common.h).
BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 30: (1, 2),  # F32, F16, BF16
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),  # Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),  # Q2_K to Q6_K
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 29: (256, 56),  # IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M
    34: (256, 54), 35: (256, 66), 39: (32, 17),  # TQ1_0, TQ2_0, MXFP4
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies; `shape` as the file has it, the fastest axis first."""

    shape: tuple[int, ...]
    kind: int
    begin: int  # from the start of the file
    nbytes: int


@dataclass(frozen=True)
class Header:
    """All that a GGUF file says about itself. Numeric arrays are numpy's, those of texts are lists of bytes."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]


class _Cursor:
    """Reads values one after the other; InputError where the file ends too early."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.at:
            raise damaged(self.path, f"it ends inside its header, at byte {self.at}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise damaged(self.path, f"the text before byte {self.at} is not UTF-8") from None

    def value(self) -> Any:
        kind = self.number("I")
        return self._array() if kind == ARRAY else self._scalar(kind)

    def _scalar(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind not in NUMBERS:
            raise damaged(self.path, f"a value before byte {self.at} has the unknown type {kind}")
        if kind == 7:  # any byte but 0 and 1 is no boolean
            byte = self.number("B")
            if byte > 1:
                raise damaged(self.path, f"the boolean before byte {self.at} is {byte}")
            return bool(byte)
        return self.number(NUMBERS[kind])

    def _array(self) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            if count > min(len(self.data), MOST_TEXTS):
                raise damaged(self.path, f"an array before byte {self.at} has {count} texts")
            return [self.take(int.from_bytes(self.take(8), "little")) for _ in range(count)]
        if kind not in NUMBERS:
            raise damaged(self.path, f"an array before byte {self.at} has the unknown type {kind}")
        dtype = np.dtype(NUMBERS[kind]).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)


def read_gguf(path: Path) -> Header:
    """The header of a GGUF file, every offset checked against its size; InputError where anything is out of place."""
    if path.stat().st_size < 24:
        raise damaged(path, f"it has {path.stat().st_size} bytes")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data, path)
        magic, version = cursor.take(4), cursor.number("I")
        if magic != b"GGUF" or version != VERSION:
            raise damaged(path, f"it begins with {magic!r} and version {version}, expected b'GGUF' and {VERSION}")
        tensors, values = cursor.number("Q"), cursor.number("Q")
        if max(tensors, values) > min(len(data), MOST_ENTRIES):
            raise damaged(path, f"it counts {tensors} tensors and {values} values in {len(data)} bytes")
        metadata: dict[str, Any] = {}
        for _ in range(values):
            key = cursor.text()
            if key in metadata:
                raise damaged(cursor.path, f"it says {key!r} twice")
            metadata[key] = cursor.value()
        entries = [_entry(cursor) for _ in range(tensors)]
        return Header(path, metadata, _placed(entries, cursor, metadata, len(data)))


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor."""
    name, rank = cursor.text(), cursor.number("I")
    if not 0 < len(name.encode()) <= NAME_BYTES or not 0 < rank <= DIMENSIONS:
        raise damaged(cursor.path, f"the tensor {name[:80]!r} has {rank} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(rank))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _placed(entries: list[Any], cursor: _Cursor, metadata: Mapping[str, Any], size: int) -> dict[str, TensorEntry]:
    """The tensors with their places in the file: aligned, one behind the other, up to the end."""
    if metadata.get("general.alignment", ALIGNMENT) != ALIGNMENT:
        raise damaged(cursor.path, f"its alignment is {metadata['general.alignment']}, expected {ALIGNMENT}")
    data, at, found = _aligned(cursor.at), 0, dict[str, TensorEntry]()
    for name, shape, kind, offset in entries:
        nbytes = _nbytes(cursor.path, name, shape, kind)
        if offset != at or name in found:
            raise damaged(cursor.path, f"the tensor {name!r} lies at {offset}, expected {at}, or is there twice")
        found[name] = TensorEntry(shape, kind, data + offset, nbytes)
        at = _aligned(offset + nbytes)
    if data + at != size:
        raise damaged(cursor.path, f"it has {size} bytes, its header describes {data + at}")
    return found


def _nbytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    if kind not in BLOCKS:
        raise damaged(path, f"the tensor {name!r} has the unknown type {kind}")
    block, size = BLOCKS[kind]
    if not all(0 < axis < 1 << 40 for axis in shape) or shape[0] % block:
        raise damaged(path, f"the tensor {name!r} has the shape {list(shape)} in blocks of {block}")
    return prod(shape) // block * size


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def damaged(path: Path, what: str) -> InputError:
    """The error for a GGUF file that is not as lensmith writes it."""
    return InputError(f"{path} is not a whole GGUF file of lensmith: {what}; copy or export the bundle again")
