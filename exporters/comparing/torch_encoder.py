"""A vision encoder alone in PyTorch, as its family runs it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ...runtimes.bundle.opening import Bundle
from ...runtimes.engines.contract import Floats
from ...runtimes.generation.encoder import Encoder
from ...runtimes.generation.timings import Timings
from ...targets.errors import InputError
from ..checkpoint.folder import open_checkpoint
from ..families.families import find_family
from .encoder_runners import together
from .recorded_options import job_of


class TorchEncoder:
    """The checkpoint in PyTorch, with the patches that the bundle's processor cuts."""

    def __init__(self, bundle: Bundle, checkpoint: str | Path, dtype: str, threads: int) -> None:
        opened = open_checkpoint(checkpoint)
        encoder = find_family(opened).encoder
        if encoder is None:
            raise InputError(f"{checkpoint} has no encoder that PyTorch runs alone; leave out --against")
        self.cutter = Encoder(bundle, threads=threads)
        started = time.perf_counter()
        self.model: Any = encoder(opened, job_of(bundle, opened.path).spec, dtype, threads)
        self.load_ms = 1000 * (time.perf_counter() - started)
        self.engine = str(self.model.name)

    def time(self, image: str, prompt: str, steps: int) -> Timings:
        started = time.perf_counter()
        patches, grid = self.cutter.cut_image(image)
        cut = time.perf_counter()
        made = self.model.vision(patches, grid)
        return Timings(image_ms=1000 * (cut - started), vision_ms=self.model.last_ms, image_tokens=len(made.features))

    def features(self, image: str) -> Floats:
        made = self.model.vision(*self.cutter.cut_image(image))
        return together(made.features, made.deepstack)
