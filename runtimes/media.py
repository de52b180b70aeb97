"""Images through the vision encoder, with the features of the latest kept for later turns."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from typing import Any

from .engine import VisionEncoder
from .images import ImageLimits, ImageSpec, open_image, preprocess
from .requests import EncodedImage
from .timings import Timings

CACHED_IMAGES = 8  # features of the latest images, so that a later turn does not encode them again


class MediaEncoder:
    """Opens, cuts and encodes images; the same pixels are encoded once while they are among the latest."""

    def __init__(self, vision: VisionEncoder, image_spec: ImageSpec, limits: ImageLimits) -> None:
        self.vision, self.image_spec, self.limits = vision, image_spec, limits
        self._features: OrderedDict[bytes, EncodedImage] = OrderedDict()

    def image(self, source: Any, timings: Timings) -> EncodedImage:
        """Encode one image; raises InputError when it is unusable."""
        started = time.perf_counter()
        patches, grid = preprocess(open_image(source, self.limits), self.image_spec)
        key = hashlib.sha256(patches.data).digest() + bytes(str(grid), "ascii")
        prepared = time.perf_counter()
        if key not in self._features:
            self._features[key] = EncodedImage(key, grid, self.vision(patches, grid))
        self._features.move_to_end(key)
        if len(self._features) > CACHED_IMAGES:
            self._features.popitem(last=False)
        timings.image_ms += 1000 * (prepared - started)
        timings.vision_ms += 1000 * (time.perf_counter() - prepared)
        return self._features[key]

    def forget(self) -> None:
        """Drop all features."""
        self._features.clear()
