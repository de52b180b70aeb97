"""Whether a graph's work follows from what its manifest declares: the size of each value, and all multiplications.

The graph is followed at a few scales, from some hundred tokens or patches to the most that the manifest allows, so that
neither constants nor products of what varies can grow beyond the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..bundle.manifest import VISION_ENCODER, Manifest
from .graph_values import Refused, constant, inputs
from .graph_work import Values, Walk, Work
from .monomials import Scale

STEP = 512  # between two scales
# Times what a model of these weights, inputs and outputs has in one value, in all at once, and multiplies.
# The graphs of a model of 2 billion weights with a context of 262,144 tokens hold half of what HELD allows.
VALUE, HELD, WORK = 2, 4, 8
KEPT, UNPACKED = 8, 32  # bytes that an engine makes of each byte of weights at load: of integers that all become floats
FREE_VALUES, FREE_WORK = 1 << 26, 1 << 34  # of any graph, however small
LAYERS = 256  # where a manifest does not say how many there are


@dataclass(frozen=True)
class DeclaredGraph:
    """What a manifest says of a graph."""

    rows: int  # most tokens or patches at once
    keys: int  # that each of them attends to
    merge: int = 1  # patches that are merged along a side
    layers: int = LAYERS
    pairs: int = 0  # values that may be kept for each pair of row and key
    kept: int = KEPT

    @classmethod
    def of(cls, manifest: Manifest, name: str) -> DeclaredGraph:
        """What it says of the graph `name`."""
        part, kept = manifest.parts.get(name), UNPACKED if manifest.graphs[name].dialect == "tensorrt" else KEPT
        layers, heads = (LAYERS, 64) if part is None else (part.layers, part.heads)
        context, merge = manifest.limits.context, getattr(manifest.image, "merge_size", 1)
        if name != VISION_ENCODER:
            chunk = manifest.options.prefill_chunk
            scores = 2 * heads if kept == UNPACKED else 0  # attention is spelled out beside linear attention
            return cls(chunk, max(context, chunk), layers=layers, pairs=scores, kept=kept)
        if manifest.role == "encoder":
            return cls(context, context, merge, layers, pairs=10, kept=kept)
        tokens = max(manifest.limits.max_image_tokens or 1, getattr(manifest.video, "max_tokens", None) or 1)
        rows = tokens * merge**2 + 1  # and the class token
        return cls(rows, rows, merge, layers, kept=kept)

    def scales(self) -> Iterator[tuple[int, int]]:
        """Rows and keys."""
        cap = STEP
        while True:
            yield min(self.rows, cap), min(self.keys, cap)
            if cap >= max(self.rows, self.keys):
                return
            cap *= STEP


def check_bounds(graph: Any, functions: Any, declared: DeclaredGraph, weight_bytes: int) -> None:
    """Raise Refused for a graph that takes more memory or work than the model that it is said to be."""
    made_by = {(item.domain, item.name): item for item in functions}
    weights = {tensor.name: constant(tensor) for tensor in graph.initializer}
    wide = max((dim for tensor in graph.initializer for dim in tensor.dims), default=1)
    for rows, keys in declared.scales():
        names = {"tokens": rows, "image tokens": rows, "patches": rows, "capacity": keys, "merge": declared.merge}
        scale = Scale(names, rows)
        ports = {name.encode(): known for name, known in inputs(graph, "capacity")}
        values: Values = {**weights, **ports}
        work = Walk(made_by, scale).run(graph.node, values)
        sizes = [scale.value(known.size) for known in ports.values()]
        sizes += [_declared_size(port, rows, keys) for port in graph.output]
        usual = max(rows * wide, *sizes)
        products = 8 * rows * (weight_bytes + declared.layers * keys * wide)
        _check(
            work, scale, _Most(usual, sum(sizes), declared.pairs * rows * keys, declared.kept * weight_bytes, products)
        )


def _declared_size(port: Any, rows: int, keys: int) -> float:
    """How many values an output has by its name and shape, of which one size varies at most."""
    dims = port.type.tensor_type.shape.dim
    varies = any(not dim.HasField("dim_value") for dim in dims)
    fixed: int = math.prod(dim.dim_value for dim in dims if dim.HasField("dim_value"))
    return fixed * ((keys if port.name.startswith(b"present.") else rows) if varies else 1)


@dataclass(frozen=True)
class _Most:
    """What a model has at one scale: values of a result, of inputs and outputs, of scores; bytes kept; products."""

    usual: float
    ports: float
    pairs: float
    kept: float
    products: float


def _check(work: Work, scale: Scale, most: _Most) -> None:
    total = work.total(scale)
    limits = {
        f"the numbers in a result of {work.kind}": (work.largest, VALUE * most.usual + most.pairs + FREE_VALUES),
        "the numbers in all results at once": (
            work.held,
            most.ports + HELD * (most.usual + most.pairs) + 2 * FREE_VALUES,
        ),
        "the bytes of results that are always the same": (work.kept, most.kept + 4 * FREE_VALUES),
    }
    for what, (found, limit) in limits.items():
        if not found <= limit:
            raise Refused(f"{what} may take {found:.3g}, and those of a model like this up to {limit:.3g}")
    if not total <= WORK * most.products + FREE_WORK:
        raise Refused(f"it may multiply {total:.3g} times, and a model like this up to {WORK * most.products:.3g}")
