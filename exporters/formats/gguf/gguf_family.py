"""What a family says of its GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...graphs.graph_files import Prefixes
from ...spec import ModelSpec
from .gguf_decoder import DecoderFile
from .gguf_vision import VisionFile


@dataclass(frozen=True)
class GgufFamily:
    """How the two files of a family are made; both raise InputError for what llama.cpp has no place for."""

    decoder: Callable[[ModelSpec, Prefixes], DecoderFile]
    vision: Callable[[ModelSpec, Prefixes, dict[str, dict[str, Any]]], VisionFile] | None  # the last: of the manifest
    encoder_besides: bool = False  # as ONNX, since llama.cpp computes something else: then with a note why
    note: str = ""
