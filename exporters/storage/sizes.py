"""Where the bytes are: the parts of a checkpoint and of the bundle made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx_ir as ir

from ...runtimes.bundle.opening import Bundle
from ...runtimes.engines.llamacpp.header import read_gguf
from ..checkpoint.folder import Checkpoint
from ..graphs.graph_files import Prefixes
from ..reports.records import ComponentSize

COMPONENTS = (
    "Decoder matrices",
    "Embedding and output table",
    "Vision encoder",
    "Merger",
    "Norms and biases of the decoder",
    "Tokenizer and other files",
    "Golden traces",
    "Graphs and manifest",
)
GGUF = ".gguf"
MATRICES, TABLE, VISION, MERGER, NORMS, FILES, TRACES, GRAPHS = COMPONENTS


def components(bundle: Bundle, checkpoint: Checkpoint, prefixes: Prefixes) -> tuple[ComponentSize, ...]:
    """Bytes by part; the sums are those of all files of the bundle and of the checkpoint."""
    compiled, source = Counter(dict(_bundle(bundle))), _checkpoint(checkpoint, prefixes)
    return tuple(ComponentSize(name, source[name], compiled[name]) for name in COMPONENTS)


def _checkpoint(checkpoint: Checkpoint, prefixes: Prefixes) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for name, tensor in checkpoint.tensors.items():
        vision = name.startswith(tuple(f"{part}." for part in (prefixes.vision, prefixes.projector) if part))
        inner = name.removeprefix(prefixes.vision + ".").removeprefix(prefixes.text + ".")
        sizes[_component(inner, vision, len(tensor.shape))] += tensor.nbytes
    sizes[FILES] = sum(path.stat().st_size for path in checkpoint.files) - sum(sizes.values())
    return sizes


def _bundle(bundle: Bundle) -> Iterator[tuple[str, int]]:
    sizes: Counter[str] = Counter()
    seen: set[tuple[str, int]] = set()
    for graph, entry in bundle.manifest.graphs.items():
        if entry.file.endswith(GGUF):
            sizes += _gguf(bundle.file(entry.file))
            continue
        for name, shape, nbytes in _stored(bundle, graph, seen):
            sizes[_component(name, graph == "vision_encoder", len(shape))] += nbytes
    files = bundle.manifest.files
    data = sum(entry.size for name, entry in files.items() if name.endswith((".data", GGUF)))
    graphs = sum(entry.size for name, entry in files.items() if name.endswith(".onnx"))
    padding = data - sum(sizes.values())
    traces = sum(entry.size for name, entry in files.items() if name.startswith("golden/"))
    yield from sizes.items()
    yield FILES, sum(entry.size for entry in files.values()) - data - graphs - traces
    yield TRACES, traces
    yield GRAPHS, graphs + padding + (bundle.path / "lensmith.json").stat().st_size


def _stored(bundle: Bundle, graph: str, seen: set[tuple[str, int]]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Name, shape and bytes of what a graph keeps in data files, but for files and offsets that were `seen` before.

    Views of the same bytes, and tables that one graph borrows from another, count once.
    """
    for name, value in ir.load(bundle.graph(graph)).graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and (str(tensor.location), tensor.offset or 0) not in seen:
            seen.add((str(tensor.location), tensor.offset or 0))
            shape = tensor.shape.numpy()
            yield name, shape, tensor.length or -(-prod(shape) * tensor.dtype.bitwidth // 8)


def _gguf(path: Path) -> Counter[str]:
    """Bytes of the tensors of a GGUF file by part; its metadata are counted with the graphs."""
    sizes: Counter[str] = Counter()
    for name, entry in read_gguf(path).tensors.items():
        sizes[_gguf_component(name, len(entry.shape))] += entry.nbytes
    return sizes


def _gguf_component(name: str, rank: int) -> str:
    if name.startswith(("mm.", "v.deepstack.", "v.post_ln.")):
        return MERGER
    if name.startswith("v."):
        return VISION
    if name.startswith(("token_embd", "output.weight")):
        return TABLE
    return MATRICES if rank >= 2 else NORMS


def _component(name: str, vision: bool, rank: int) -> str:
    """The part that a tensor belongs to, by its name inside the vision encoder or the decoder."""
    if vision:
        return MERGER if any(word in name for word in ("merger", "projector")) else VISION
    if name.startswith(("embed_tokens", "lm_head")):
        return TABLE
    return MATRICES if rank >= 2 else NORMS
