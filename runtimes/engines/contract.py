"""What engines have in common: sessions of ONNX Runtime, and image encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...targets.errors import InputError
from .native import LIBRARY, wanted_kernels
from .refusals import reason_of, refusal_is_input

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision encoder makes of an image."""

    features: Floats  # [tokens, hidden]
    deepstack: Floats | None = None  # [taps, tokens, hidden]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, tokens: slice) -> ImageFeatures:
        return ImageFeatures(self.features[tokens], None if self.deepstack is None else self.deepstack[:, tokens])

    @staticmethod
    def join(parts: list[ImageFeatures]) -> ImageFeatures:
        """The features of several images in the order of their tokens."""
        if len(parts) == 1:
            return parts[0]
        taps = [p.deepstack for p in parts if p.deepstack is not None]
        features = np.concatenate([p.features for p in parts])
        return ImageFeatures(features, np.concatenate(taps, axis=1) if taps else None)


def session(
    path: Path, threads: int | None, *, profile: bool = False, native: bool | None = None
) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU; `threads` None means one for each core, `native` as of `wanted_kernels`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # shapes change from step to step: a planned arena only doubles the memory
    # Idle threads of one graph must not spin while the other graph runs: a small model answers twice as fast.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # DequantizeLinear in front of a product becomes MatMulNBits at load: with activations as they are, not in 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.log_severity_level = 4  # none: what fails is raised, and said once
    if wanted_kernels(native):
        options.register_custom_ops_library(str(LIBRARY))
    return load_session(path, options, ["CPUExecutionProvider"], profile=profile)


def load_session(
    path: Path, options: ort.SessionOptions, providers: Sequence[Any], *, profile: bool = False
) -> ort.InferenceSession:
    """A session with these options and providers; an InputError where ONNX Runtime refuses."""
    options.log_severity_level = max(options.log_severity_level, 3)
    options.enable_profiling = profile
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises its own unrelated types here
        message = f"{path} cannot be loaded by onnxruntime {ort.__version__} ({reason_of(error)}); export it again"
        raise InputError(message) from error


class VisionEncoder:
    """Encodes the patches of one image at a time, so that memory follows the largest image."""

    def __init__(
        self, path: Path, *, threads: int | None = None, profile: bool = False, native: bool | None = None
    ) -> None:
        self.path, self.session = path, session(path, threads, profile=profile, native=native)
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.inputs = [value.name for value in self.session.get_inputs()]

    def __call__(self, patches: Floats, grid: tuple[int, int, int]) -> ImageFeatures:
        """Features [tokens, hidden] of patches [patches, patch_dim] with their grid (frames, height, width).

        An encoder for images of one size takes their pixels [1, 3, height, width] and no grid.
        """
        feed = {"pixel_values": patches, "image_grid_thw": np.array([grid], np.int64)}
        with refusal_is_input(self.path):
            return ImageFeatures(*self.session.run(self.outputs, {name: feed[name] for name in self.inputs}))
