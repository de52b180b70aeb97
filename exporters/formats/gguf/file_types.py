"""What `--precision` means for GGUF: llama.cpp's file types, by their names in lower case."""

from __future__ import annotations

from dataclasses import dataclass

from ....targets.errors import InputError, closest


@dataclass(frozen=True)
class FileType:
    """How both files of a model are stored, in the words of gguf-py's GGMLQuantizationType."""

    number: int  # llama_ftype of llama.h
    model: str  # most matrices of the language model
    mmproj: str  # matrices of the vision encoder
    quantizer: bool = False  # whether llama.cpp's own quantizer makes the language model, from a file without loss


def _quantized(number: int, model: str) -> FileType:
    """The vision encoder stays at 8 bits: the quantizer does not know it."""
    return FileType(number, model, "Q8_0", quantizer=True)


FILE_TYPES = {
    "f32": FileType(0, "F32", "F32"),
    "f16": FileType(1, "F16", "F16"),
    "bf16": FileType(32, "BF16", "BF16"),
    "q8_0": FileType(7, "Q8_0", "Q8_0"),
    "q6_k": _quantized(18, "Q6_K"),
    "q5_k_m": _quantized(17, "Q5_K"),
    "q5_k_s": _quantized(16, "Q5_K"),
    "q5_1": _quantized(9, "Q5_1"),
    "q5_0": _quantized(8, "Q5_0"),
    "q4_k_m": _quantized(15, "Q4_K"),
    "q4_k_s": _quantized(14, "Q4_K"),
    "q4_1": _quantized(3, "Q4_1"),
    "q4_0": _quantized(2, "Q4_0"),
    "iq4_nl": _quantized(25, "IQ4_NL"),
    "iq4_xs": _quantized(30, "IQ4_XS"),
    "q3_k_l": _quantized(13, "Q3_K"),
    "q3_k_m": _quantized(12, "Q3_K"),
    "q3_k_s": _quantized(11, "Q3_K"),
    "iq3_m": _quantized(27, "IQ3_S"),
    "iq3_s": _quantized(26, "IQ3_S"),
    "iq3_xs": _quantized(22, "IQ3_S"),
    "iq3_xxs": _quantized(23, "IQ3_XXS"),
    "q2_k": _quantized(10, "Q2_K"),
    "q2_k_s": _quantized(21, "Q2_K"),
    "iq2_m": _quantized(29, "IQ2_S"),
    "iq2_s": _quantized(28, "IQ2_XS"),
    "iq2_xs": _quantized(20, "IQ2_XS"),
    "iq2_xxs": _quantized(19, "IQ2_XXS"),
    "iq1_m": _quantized(31, "IQ1_M"),
    "iq1_s": _quantized(24, "IQ1_S"),
}
MMPROJ_NUMBERS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}  # llama_ftype of the vision encoder's file
DEFAULT = "f16"


def file_type(precision: str) -> FileType:
    """The file type of a name; InputError for an unknown one."""
    if precision not in FILE_TYPES:
        raise InputError(f"precision {precision!r} is none of GGUF's; {closest(precision, FILE_TYPES)}")
    return FILE_TYPES[precision]
