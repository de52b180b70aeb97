"""Where a checkpoint keeps the parts of a model: versions of transformers write the same tensors under other names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from .checkpoint import Checkpoint
from .graphs import Graph, Prefixes

Aliases = Mapping[str, tuple[str, ...]]  # other beginnings of names, by the one in Prefixes; the longest first


def locate(checkpoint: Checkpoint, prefixes: Prefixes, aliases: Aliases) -> Prefixes:
    """The prefixes that this checkpoint uses; those given for parts that it does not have."""
    return Prefixes(**{part: _found(checkpoint, prefix, aliases) for part, prefix in asdict(prefixes).items()})


def relocate(graph: Graph, given: Prefixes, found: Prefixes) -> Graph:
    """The graph with the names of its sources as the checkpoint has them."""
    if found == given:
        return graph  # the very same, since another may borrow from it
    pairs = list(zip(asdict(given).values(), asdict(found).values(), strict=True))
    return replace(graph, sources=tuple(replace(s, name=_renamed(s.name, pairs)) for s in graph.sources))


def _found(checkpoint: Checkpoint, prefix: str, aliases: Aliases) -> str:
    candidates = (prefix, *aliases.get(prefix, ()))
    holds = (name for name in candidates if any(tensor.startswith(f"{name}.") for tensor in checkpoint.tensors))
    return next(holds, prefix)


def _renamed(name: str, pairs: list[tuple[str, str]]) -> str:
    for given, found in pairs:
        if given and name.startswith(f"{given}."):
            return found + name.removeprefix(given)
    return name
