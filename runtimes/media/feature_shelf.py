"""Features of images and videos as files, by the hash of their source, so that a restart encodes none again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engines.contract import ImageFeatures
from ..prompt.prompt_parts import VideoLayout
from ..prompt.requests import EncodedImage
from ..storage.array_files import Arrays, take_array
from ..storage.cache_folder import NAME, CacheFolder
from .seen import Identity, Seen


class FeatureShelf:
    """Features in a folder."""

    def __init__(self, folder: CacheFolder) -> None:
        self.folder = folder

    def put(self, identity: Identity, seen: Seen, encoded: Sequence[EncodedImage]) -> None:
        """Write what was made of a source."""
        layout = None if seen.layout is None else [seen.layout.grid, seen.layout.seconds]
        said = {"grid": seen.grid, "layout": layout, "keys": [key.hex() for key in seen.keys]}
        arrays = {}
        for index, image in enumerate(encoded):
            arrays[f"features_{index}"] = image.features.features
            if image.features.deepstack is not None:
                arrays[f"deepstack_{index}"] = image.features.deepstack
        self.folder.put(_name(identity), said, arrays)

    def find(self, identity: Identity) -> tuple[Seen, list[EncodedImage]] | None:
        """What was made of a source; None where nothing is kept of it."""
        name = _name(identity)
        found = self.folder.read(name, _made) if self.folder.has(name) else None
        self.folder.touch([name] if found else [])
        return found


def _name(identity: Identity) -> str:
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:NAME]


def _made(said: dict[str, Any], arrays: Arrays) -> tuple[Seen, list[EncodedImage]]:
    time, height, width = (int(size) for size in said["grid"])
    keys = tuple(bytes.fromhex(key) for key in said["keys"])
    layout = None
    if said["layout"] is not None:
        grid, seconds = said["layout"]
        layout = VideoLayout((int(grid[0]), int(grid[1]), int(grid[2])), tuple(float(second) for second in seconds))
    seen, images = Seen((time, height, width), layout, keys), []
    for index, key in enumerate(keys):
        features = take_array(arrays, f"features_{index}", np.float32, None, None)
        taps = arrays.get(f"deepstack_{index}")
        if taps is not None:
            taps = take_array(arrays, f"deepstack_{index}", np.float32, None, *features.shape)
        images.append(EncodedImage(key, seen.grid, ImageFeatures(features, taps)))
    return seen, images
