"""Layers that config.json has against those that the weights hold, before anything is built of them."""

from __future__ import annotations

from ...targets.errors import InputError
from ..families.arlow.arlow_spec import ArlowSpec
from ..graphs.graph_files import Prefixes
from ..spec import ClipSpec, ModelSpec, VisionSpec
from .folder import Checkpoint


def check_depths(checkpoint: Checkpoint, spec: ModelSpec | ArlowSpec, prefixes: Prefixes) -> None:
    """InputError where the weights lack the last layer of a part of the model."""
    for start, depth in _depths(spec, prefixes).items():
        names = [name.removeprefix(start) for name in checkpoint.tensors if name.startswith(start)]
        if depth and not any(name.startswith(f"{depth - 1}.") for name in names):
            held = len({name.partition(".")[0] for name in names})
            raise InputError(
                f"config.json has {depth} layers of {start}*, of which {checkpoint.path} holds {held}: "
                "the weights and the configuration do not belong together"
            )


def _depths(spec: ModelSpec | ArlowSpec, prefixes: Prefixes) -> dict[str, int]:
    """Layers by what the names of their tensors begin with."""
    if isinstance(spec, ArlowSpec):
        return {"blocks.": spec.depth}
    depths = {f"{prefixes.text}.layers.": spec.decoder.layers}
    if isinstance(spec.vision, VisionSpec):
        depths[f"{prefixes.vision}.blocks."] = spec.vision.depth
    if isinstance(spec.vision, ClipSpec):
        depths[f"{prefixes.vision}.encoder.layers."] = spec.vision.used_depth
    return depths
