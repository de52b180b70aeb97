"""Layers that config.json has against those that the weights hold, before anything is built of them."""

from __future__ import annotations

from collections.abc import Mapping

from ...targets.errors import InputError
from .folder import Checkpoint


def check_depths(checkpoint: Checkpoint, depths: Mapping[str, int]) -> None:
    """InputError where the weights lack the last layer of a part.

    `depths` are layers by what the names of their tensors begin with.
    """
    for start, depth in depths.items():
        names = [name.removeprefix(start) for name in checkpoint.tensors if name.startswith(start)]
        if depth and not any(name.startswith(f"{depth - 1}.") for name in names):
            held = len({name.partition(".")[0] for name in names})
            raise InputError(
                f"config.json has {depth} layers of {start}*, of which {checkpoint.path} holds {held}: "
                "the weights and the configuration do not belong together"
            )
