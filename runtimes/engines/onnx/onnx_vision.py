"""Vision encoders of the ort dialect on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...media.images import Grid, Patches
from ..contract import ImageFeatures
from ..refusals import refusal_is_input
from .sessions import interruptible, session


class OnnxVision:
    """A graph of the ort dialect on the CPU; see contract.Vision."""

    def __init__(
        self, path: Path, *, threads: int | None = None, profile: bool = False, native: bool | None = None
    ) -> None:
        self.path, self.session = path, session(path, threads, profile=profile, native=native)
        self.outputs = [output.name for output in self.session.get_outputs()]
        shapes = {value.name: value.shape for value in self.session.get_inputs()}
        self.inputs = [*shapes]
        self.by_frame = shapes.get("image_grid_thw", [""])[0] == 1  # it knows single frames alone

    def __call__(self, patches: Patches, grid: Grid) -> ImageFeatures:
        """As Vision; an encoder for images of one size has no input for the grid, and gets tiles one by one."""
        if len(self.inputs) == 1 and len(patches) > 1:
            return ImageFeatures.join([self(tile[None], grid) for tile in patches])
        if grid[0] > 1 and self.by_frame:
            return ImageFeatures.join([self(part, (1, *grid[1:])) for part in np.split(patches, grid[0])])
        feed = {"pixel_values": patches, "image_grid_thw": np.array([grid], np.int64)}
        with refusal_is_input(self.path), interruptible() as options:
            return ImageFeatures(*self.session.run(self.outputs, {name: feed[name] for name in self.inputs}, options))
