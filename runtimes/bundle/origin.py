"""What a manifest says of where a bundle comes from: the checkpoint, its parts, and how its tensors are stored."""

from __future__ import annotations

from .ranges import Bits, Count, GroupSize, Hash, Name, Number, Text
from .section import Section


class FileEntry(Section, frozen=True):
    """A file: its size in bytes and its SHA-256, of large ones also that of the first bytes."""

    size: Count = 0
    sha256: Hash = ""  # only while a bundle is written
    begin_sha256: Hash | None = None


class Quantized(Section, frozen=True):
    """How the weights of a checkpoint were stored, and the tensors beside them that had no use."""

    method: Name
    declared_in: Text
    unused: list[Name] = []


class MergedAdapter(Section, frozen=True):
    """The LoRA adapter that was merged into the weights: changed modules, and tensors that were saved as a whole."""

    name: Name
    base: Text
    rank: Count
    alpha: Number
    dora: bool
    modules: Count
    saved: Count


class Repository(Section, frozen=True):
    """Where on the hub a checkpoint or an adapter came from; the commit fixes every byte."""

    repository: Name
    commit: Name


class Source(Section, frozen=True):
    """The checkpoint that a bundle was made of."""

    name: Name
    files: dict[Name, FileEntry]
    license: Text | None
    parameters: Count = 0
    dropped: dict[Name, Text] = {}
    quantization: Quantized | None = None
    adapter: MergedAdapter | None = None
    hub: Repository | None = None
    adapter_hub: Repository | None = None


class Part(Section, frozen=True):
    """A part of the model: its parameters and its size."""

    parameters: Count
    layers: Count
    hidden: Count
    heads: Count
    kv_heads: Count | None = None  # of decoders, like the following
    linear_layers: Count | None = None  # with linear attention in place of a KV cache
    vocab: Count | None = None


class Stored(Section, frozen=True):
    """How a tensor of the checkpoint is stored, and why."""

    bits: Bits
    group_size: GroupSize
    symmetric: bool
    reason: Text
    float8: bool = False
    int8_activations: bool = False
    many_rows: bool = False
    parameters: Count = 0
    bytes: Count = 0
