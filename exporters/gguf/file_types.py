"""What `--precision` means for GGUF: llama.cpp's file types, by their names in lower case."""

from __future__ import annotations

from dataclasses import dataclass

from ...targets.errors import InputError, closest


@dataclass(frozen=True)
class FileType:
    """How both files of a model are stored, in the words of gguf-py's GGMLQuantizationType."""

    number: int  # llama_ftype of llama.h
    model: str  # matrices of the language model, as lensmith writes them
    mmproj: str  # matrices of the vision encoder


FILE_TYPES = {
    "f32": FileType(0, "F32", "F32"),
    "f16": FileType(1, "F16", "F16"),
    "bf16": FileType(32, "BF16", "BF16"),
    "q8_0": FileType(7, "Q8_0", "Q8_0"),
}
MMPROJ_NUMBERS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}  # llama_ftype of the vision encoder's file
DEFAULT = "f16"


def file_type(precision: str) -> FileType:
    """The file type of a name; InputError for an unknown one."""
    if precision not in FILE_TYPES:
        raise InputError(f"precision {precision!r} is none of GGUF's; {closest(precision, FILE_TYPES)}")
    return FILE_TYPES[precision]
