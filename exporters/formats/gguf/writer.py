"""Writes one GGUF file: metadata and the list of tensors first, then the tensors, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from ....runtimes.storage.files import disk_full_is_input, require_space
from ...progress import Advance
from .tensors import Tensor

Fill = Callable[[gguf.GGUFWriter], None]  # adds metadata


def write(
    path: Path,
    architecture: str,
    tensors: Sequence[Tensor],
    stored: Type,
    fill: Fill,
    progress: Advance = lambda _: None,
) -> None:
    """Write a GGUF file with tensors in a type. Holds one block of rows in memory; a full disk is an InputError."""
    require_space(path.parent, sum(tensor.nbytes(stored) for tensor in tensors))
    with disk_full_is_input(path.parent):
        writer = gguf.GGUFWriter(path, architecture)
        try:
            _announce(writer, tensors, stored)
            fill(writer)
            file = _write_header(writer)
            for tensor in tensors:
                start = file.tell()
                for data in tensor.data(stored):
                    file.write(data)
                assert file.tell() - start == tensor.nbytes(stored), tensor.name
                writer.write_padding(file, file.tell())
                progress(int(np.prod(tensor.shape)))
        finally:
            writer.close()


def write_outline(path: Path, architecture: str, tensors: Sequence[Tensor], stored: Type, fill: Fill) -> None:
    """Write the metadata and the list of tensors alone; where their values would lie the file has a hole of zeros."""
    writer = gguf.GGUFWriter(path, architecture)
    try:
        _announce(writer, tensors, stored)
        fill(writer)
        file = _write_header(writer)
        sizes = (gguf.GGUFWriter.ggml_pad(tensor.nbytes(stored), writer.data_alignment) for tensor in tensors)
        file.truncate(file.tell() + sum(sizes))
    finally:
        writer.close()


def _announce(writer: gguf.GGUFWriter, tensors: Sequence[Tensor], stored: Type) -> None:
    for tensor in tensors:
        kind, nbytes = tensor.type(stored), tensor.nbytes(stored)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), nbytes, raw_dtype=kind)


def _write_header(writer: gguf.GGUFWriter) -> BinaryIO:
    """Write everything in front of the first tensor; the file, which is there now."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file: BinaryIO = writer.fout[0]
    writer.write_padding(file, file.tell())
    return file


def add(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    """Add metadata by key, each value in the type that llama.cpp reads: counts as uint32, lists as arrays."""
    for key, value in values.items():
        _ADD[type(value)](writer, key, value)


_ADD: Mapping[type, Callable[[gguf.GGUFWriter, str, Any], None]] = {
    bool: gguf.GGUFWriter.add_bool,
    int: gguf.GGUFWriter.add_uint32,
    float: gguf.GGUFWriter.add_float32,
    str: gguf.GGUFWriter.add_string,
    list: gguf.GGUFWriter.add_array,
    tuple: gguf.GGUFWriter.add_array,
}
