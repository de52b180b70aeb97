"""The parts of a model in the manifest's words: layers, widths, heads, parameters. So it shows that none is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .graphs.graph_files import Graph
from .job import Job
from .spec import DecoderSpec


def parts(job: Job) -> dict[str, dict[str, Any]]:
    """The section `parts` of the manifest, by graph. Matrices that two graphs share count for the first."""
    return {graph.name: {**_shape(job, graph), "parameters": _parameters(job, graph)} for graph in job.graphs}


def _parameters(job: Job, graph: Graph) -> int:
    return sum(job.checkpoint.tensors[source.name].size for source in graph.sources)


def _shape(job: Job, graph: Graph) -> Mapping[str, int]:
    """Counts of the spec; a draft head is one layer like those of the decoder."""
    if job.spec.decoder is not None and graph.name != "vision_encoder":
        return _decoder(job.spec.decoder) | ({"layers": 1, "linear_layers": 0} if graph.name == "mtp" else {})
    vision = job.spec.vision
    assert vision is not None
    return {"layers": vision.used_depth, "hidden": vision.hidden, "heads": vision.heads}


def _decoder(spec: DecoderSpec) -> dict[str, int]:
    counts = {name: getattr(spec, name) for name in ("layers", "hidden", "heads", "kv_heads", "vocab")}
    return {**counts, "linear_layers": len(spec.linear_layers)}
