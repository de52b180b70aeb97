"""The two ways to run a vision encoder alone: its bundle on lensmith's runtime, the checkpoint in PyTorch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

from ...runtimes.bundle.opening import Bundle, open_bundle
from ...runtimes.engines.contract import Floats
from ...runtimes.generation.encoder import Encoder
from ...runtimes.generation.timings import Timings
from .tuned_loading import loading_of_bundle, told_tuning


class Timed(Protocol):
    """What can be timed."""

    engine: str
    load_ms: float

    def time(self, image: str, prompt: str, steps: int) -> Timings:
        """One run with nothing cached."""


class FeatureRunner(Timed, Protocol):
    """What makes features."""

    def features(self, image: str) -> Floats:
        """Of one image: [tokens, hidden], DeepStack's behind them as further tokens."""


class BundleEncoder:
    """The bundle on lensmith's runtime."""

    def __init__(self, bundle: Bundle, threads: int, *, tuned: bool) -> None:
        started, loading = time.perf_counter(), loading_of_bundle(bundle, threads, tuned=tuned)
        self.encoder = Encoder(bundle, **loading)
        self.encoder.vision  # noqa: B018 - opens the graph
        self.load_ms = 1000 * (time.perf_counter() - started)
        self.engine = f"ONNX Runtime {onnxruntime.__version__}{told_tuning(loading['tuning'])}"

    def time(self, image: str, prompt: str, steps: int) -> Timings:
        made = self.encoder.image(image)
        return Timings(image_ms=made.image_ms, vision_ms=made.vision_ms, image_tokens=len(made))

    def features(self, image: str) -> Floats:
        made = self.encoder.image(image)
        return together(made.features, made.deepstack)


def encoder_runner(
    bundle: str | Path, checkpoint: str, dtype: str | None, threads: int, *, tuned: bool = False
) -> FeatureRunner:
    """The bundle's, or PyTorch's of a dtype; `tuned` as of BundleRunner."""
    opened = open_bundle(bundle)
    if dtype is None:
        return BundleEncoder(opened, threads, tuned=tuned)
    from .torch_encoder import TorchEncoder  # which brings the exporters along

    return TorchEncoder(opened, checkpoint, dtype, threads)


def together(features: Floats, deepstack: Floats | None) -> Floats:
    """Features [tokens, hidden] with those of all taps behind them."""
    return features if deepstack is None else np.concatenate([features, deepstack.reshape(-1, features.shape[-1])])
