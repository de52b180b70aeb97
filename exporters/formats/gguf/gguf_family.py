"""What a family says of its GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ...graphs.graph_files import Prefixes
from ...spec import ModelSpec
from .gguf_decoder import DecoderFile
from .gguf_vision import VisionFile

M = TypeVar("M", bound=ModelSpec)


@dataclass(frozen=True)
class GgufFamily(Generic[M]):
    """How the two files of a family are made; both raise InputError for what llama.cpp has no place for."""

    decoder: Callable[[ModelSpec, Prefixes], DecoderFile]
    vision: Callable[[M, Prefixes, dict[str, dict[str, Any]]], VisionFile] | None  # the last: of the manifest
    encoder_besides: bool = False  # as ONNX, since llama.cpp computes something else: then with a note why
    note: str = ""
