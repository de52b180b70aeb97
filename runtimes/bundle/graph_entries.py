"""What a manifest says of graphs: files, what goes in and comes out, and what engines were made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType

from .ranges import Count, Hash, Name, Shape, Size, Text
from .section import Section

Profile: TypeAlias = dict[Name, Annotated[list[list[Size]], Meta(min_length=3, max_length=3)]]
Dtype: TypeAlias = Literal["FLOAT", "FLOAT16", "BFLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL"]


class PortEntry(Section, frozen=True):
    """An input or an output of a graph; names in a shape stand for sizes that vary."""

    dtype: Dtype
    shape: Shape


class Kernels(Section, frozen=True):
    """What an engine's own text says of its kernels; see exporters/formats/tensorrt/kernels.py."""

    capabilities: list[Name]
    kernels: Count
    fused: Count
    recordable: bool
    written_out: list[Text]


class EngineEntry(Section, frozen=True):
    """An engine of TensorRT."""

    flavour: Name
    version: Name
    capabilities: list[Name]
    profiles: Annotated[list[Profile], Meta(min_length=1, max_length=16)]
    layers: dict[Name, Count] = {}
    inputs: dict[Name, Any] = {}  # as TensorRT names their types and sizes; -1 varies
    outputs: dict[Name, Any] = {}
    kernels: Kernels | None = None
    sha256: Hash | None = None
    warnings: list[Text] = []


class PluginEntry(Section, frozen=True):
    """What ONNX Runtime's TensorRT-RTX plugin is told."""

    profiles: Annotated[list[Profile], Meta(min_length=1, max_length=16)]


class GraphEntry(Section, frozen=True):
    """A graph: its file, and what goes in and comes out."""

    file: Name
    inputs: dict[Name, PortEntry]
    outputs: dict[Name, PortEntry]
    dialect: Literal["ort", "cuda", "tensorrt"] = "ort"
    engine: EngineEntry | UnsetType = UNSET
    plugin: PluginEntry | UnsetType = UNSET
