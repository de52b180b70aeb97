"""Constants of a graph that traces hardly show, compared with those of PyTorch's own modules.

Where activations are large, another epsilon of a norm or another of the slowest rotary frequencies changes less than
float32 rounds; where they are small, or far into a context, it changes answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtimes.engines.llamacpp.header import read_gguf
from ...targets.errors import CheckFailed
from ..graphs.decoder import mrope_source
from ..graphs.graph_files import Prefixes

L2_EPSILON = 1e-6  # of queries and keys in transformers' gated delta nets, which no module and no configuration says
IMAGE_THETA = 10_000.0  # of llama.cpp's vision encoders, whose files do not say it
SAME = 1e-6  # relative; frequencies come from powers in float32
FREQUENCIES = "inverse_frequencies"
CHUNKED = ("qwen2vl",)  # architectures of llama.cpp whose axes of positions lie one behind the other
GGUF_GRAPHS = {"model": "decoder", "mmproj": "vision_encoder"}  # by file
Turns = NDArray[np.float64]  # [axes of positions, pairs], radians by which one step along an axis turns each pair


@dataclass(frozen=True)
class Constants:
    """Of the norms of one graph, and of its rotary positions if it has any; `l2` is said by some formats only."""

    epsilons: frozenset[float]  # in float32
    turns: Turns | None = None
    l2: frozenset[float] = frozenset()


def check_constants(files: Iterable[Path], expected: Mapping[str, Constants], name: str) -> None:
    """Raises CheckFailed for the first of a bundle's files that has others than the checkpoint `name`, by graph."""
    for path in files:
        found = _of_gguf(path) if path.suffix == ".gguf" else _of_onnx(path)
        graph = path.stem if path.stem in expected else GGUF_GRAPHS[path.stem]
        wanted = expected[graph]
        if found.epsilons - wanted.l2 != wanted.epsilons:
            other = min(found.epsilons - wanted.l2 - wanted.epsilons or found.epsilons, default=0.0)
            raise _refused(name, f"an epsilon of the norms of the {graph} is {other:.9g}", wanted.epsilons)
        if (pair := _other_pair(found.turns, wanted.turns)) is not None:
            raise _refused(name, f"pair {pair} of the heads of the {graph} does not turn with positions", ())


def _other_pair(found: Turns | None, expected: Turns | None) -> int | None:
    """The first pair of values that turns otherwise."""
    if found is None or expected is None:
        return None if found is expected else 0
    if found.shape != expected.shape:
        return int(min(found.shape[1], expected.shape[1]))
    ours, wanted = (np.arctan2(np.sin(turns), np.cos(turns)) for turns in (found, expected))  # a whole turn is none
    others = np.flatnonzero(~np.isclose(ours, wanted, rtol=SAME, atol=1e-12).all(axis=0))
    return int(others[0]) if len(others) else None


def _refused(name: str, what: str, expected: Iterable[float]) -> CheckFailed:
    theirs = f", PyTorch's {', '.join(f'{value:.9g}' for value in sorted(expected))}" if expected else " as in PyTorch"
    return CheckFailed(
        f"the graphs of {name} do not compute what PyTorch does: {what}{theirs}; nothing was exported: report this "
        "with the checkpoint's config.json"
    )


def _of_onnx(path: Path) -> Constants:
    """What a saved graph says."""
    model = ir.load(path)
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = [node for part in parts for node in part.all_nodes()]
    said = [node.attributes["epsilon"] for node in nodes if "epsilon" in node.attributes]
    epsilons = {_float(each.as_float()) for each in said if not each.is_ref()}  # a function takes those of its nodes
    tables = [value.const_value for name, value in model.graph.initializers.items() if name.endswith(FREQUENCIES)]
    turns = [_rows(table.numpy()) for table in tables if table is not None]
    return Constants(frozenset(epsilons), turns[0] if turns else None)


def _of_gguf(path: Path) -> Constants:
    """What the metadata of a language model or a vision encoder says, as llama.cpp reads it."""
    values = read_gguf(path).metadata
    arch = str(values["general.architecture"])
    if arch == "clip":
        return Constants(frozenset({_float(values["clip.vision.attention.layer_norm_epsilon"])}), _of_images(values))
    size = int(values.get(f"{arch}.rope.dimension_count", values[f"{arch}.attention.key_length"]))
    series, sections = _series(values[f"{arch}.rope.freq_base"], size), values.get(f"{arch}.rope.dimension_sections")
    turns = series[None]
    if sections is not None:
        time, height, width = (int(section) for section in sections[:3])
        turns = np.zeros((3, size // 2))
        source = mrope_source((time, height, width), interleaved=arch not in CHUNKED)
        turns[source, np.arange(size // 2)] = series
    return Constants(frozenset({_float(values[f"{arch}.attention.layer_norm_rms_epsilon"])}), turns)


def _of_images(values: Mapping[str, Any]) -> Turns | None:
    if not values["clip.projector_type"].startswith("qwen"):
        return None  # the others learn positions
    head = int(values["clip.vision.embedding_length"]) // int(values["clip.vision.attention.head_count"])
    return _series(IMAGE_THETA, head // 2)[None]


def _series(theta: float, size: int) -> NDArray[np.float64]:
    series: NDArray[np.float64] = float(theta) ** -(np.arange(0, size, 2) / size)
    return series


def of_modules(model: Any, torch: Any, prefixes: Prefixes) -> dict[str, Constants]:
    """What the modules of a model in PyTorch say, by graph; a draft head has those of the decoder."""
    modules = [(_graph_of(name, prefixes), module) for name, module in model.named_modules()]
    made: dict[str, Constants] = {}
    for graph in ("vision_encoder", "decoder"):
        own = [module for name, module in modules if name == graph]
        epsilons = {_float(each) for module in own for each in _epsilons(module)}
        l2 = {_float(L2_EPSILON / m.head_k_dim) for m in own if hasattr(m, "head_k_dim")}  # as RMS norms, of means
        turns = [_rotary(module, model, torch) for module in own if hasattr(module, "inv_freq")]
        made[graph] = Constants(frozenset(epsilons), turns[0] if turns else None, frozenset(l2))
    return {**made, "mtp": made["decoder"]}


def _graph_of(module: str, prefixes: Prefixes) -> str:
    """An encoder alone has its modules at the top."""
    parts = (prefixes.vision, prefixes.projector) if prefixes.text else (module,)
    of_vision = any(part and f"{module}.".startswith(f"{part}.") for part in parts)
    return "vision_encoder" if of_vision else "decoder"


def _epsilons(module: Any) -> Iterator[float]:
    for name in ("eps", "variance_epsilon"):
        if hasattr(module, name):
            yield getattr(module, name)


def _rotary(module: Any, model: Any, torch: Any) -> Turns:
    """From a module that computes cos and sin for positions [axes, batch, seq]; an encoder's two axes turn alike."""
    module.to_empty(device="cpu")
    model._init_weights(module)  # as `from_pretrained` does, since no file has the frequencies
    if "Vision" in type(module).__name__:
        return _rows(module.inv_freq.numpy()[None])
    axes = 3 if hasattr(module, "mrope_section") else 1
    steps = torch.eye(axes, dtype=torch.int64)[:, None]  # one along each axis
    cos, sin = (part[0].double().numpy() for part in module(torch.zeros(1), steps if axes == 3 else steps[0]))
    turns: Turns = np.arctan2(sin, cos)[:, : cos.shape[1] // 2]
    return turns


def _rows(table: Any) -> Turns:
    return np.asarray(table, np.float64).reshape(len(table), -1)


def _float(value: float) -> float:
    return float(np.float32(value))
