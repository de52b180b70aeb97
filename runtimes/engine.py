"""The two graphs of a bundle on ONNX Runtime: image encoding, and decoder steps over one preallocated KV cache."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..targets.errors import InputError

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


def session(path: Path, threads: int | None, *, profile: bool = False) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU; `threads` None means one for each core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # shapes change from step to step: a planned arena only doubles the memory
    # Idle threads of one graph must not spin while the other graph runs: a small model answers twice as fast.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_profiling = profile
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unrelated types here
        reason = str(error).splitlines()[0][:300]
        message = f"{path} cannot be loaded by onnxruntime {ort.__version__} ({reason}); export it again"
        raise InputError(message) from error


def _lazy_zeros(shape: tuple[int, ...]) -> Floats:
    """Zeros that take memory page by page when touched; numpy's own would take 2 MB at a time from the system."""
    memory = mmap.mmap(-1, prod(shape) * 4)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)


class VisionEncoder:
    """Encodes the patches of one image at a time, so that memory follows the largest image."""

    def __init__(self, path: Path, *, threads: int | None = None, profile: bool = False) -> None:
        self.session = session(path, threads, profile=profile)
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, patches: Floats, grid: tuple[int, int, int]) -> ImageFeatures:
        """patches [patches, patch_dim] and their grid (frames, height, width) to features [tokens, hidden]."""
        feed = {"pixel_values": patches, "image_grid_thw": np.array([grid], np.int64)}
        return ImageFeatures(*self.session.run(self.outputs, feed))


@dataclass
class Step:
    """Bound inputs and outputs of steps with the same number of tokens, logits and image tokens."""

    binding: Any
    arrays: dict[str, NDArray[Any]]
    logits: Floats


class Decoder:
    """Runs the decoder over a KV cache that is allocated and bound once.

    Keys and values are written in place: past and present are one buffer [1, kv_heads, capacity, head_dim] for each
    layer. Memory is touched only as far as tokens reach, so a large capacity costs address space alone.
    """

    def __init__(self, path: Path, *, capacity: int, threads: int | None = None, profile: bool = False) -> None:
        self.session = session(path, threads, profile=profile)
        self.capacity = capacity
        self.length = 0
        inputs = {value.name: value for value in self.session.get_inputs()}
        self.hidden = int(inputs["image_features"].shape[1])
        self.vocab = int(self.session.get_outputs()[0].shape[2])
        deepstack = inputs.get("deepstack_features")
        self.taps = 0 if deepstack is None else int(deepstack.shape[0])
        self._cache = {
            name: ort.OrtValue.ortvalue_from_numpy(_lazy_zeros((1, value.shape[1], capacity, value.shape[3])))
            for name, value in inputs.items()
            if name.startswith("past_key_values.")
        }
        self._single: Step | None = None

    def run(self, ids: Ints, positions: Ints, images: ImageFeatures | None = None, *, num_logits: int = 1) -> Floats:
        """Append tokens: ids [seq], positions [3, seq], features of the image tokens among them.

        Returns logits float32 [num_logits, vocab] of the last positions, valid until the next call.
        """
        if self.length + len(ids) > self.capacity:
            raise InputError(
                f"the conversation needs {self.length + len(ids)} tokens but the context holds {self.capacity}; "
                "load with a larger context or shorten it"
            )
        step = self._step(len(ids), num_logits, images)
        step.arrays["input_ids"][0] = ids
        step.arrays["position_ids"][:, 0] = positions
        step.arrays["past_lengths"][0] = self.length
        self.session.run_with_iobinding(step.binding)
        self.length += len(ids)
        logits: Floats = step.logits[0]
        return logits

    def rewind(self, length: int) -> None:
        """Forget all tokens behind the first `length`."""
        self.length = min(self.length, length)

    def _step(self, tokens: int, num_logits: int, images: ImageFeatures | None) -> Step:
        if tokens == 1 and num_logits == 1 and images is None:
            self._single = self._single or self._bind(1, 1, None)
            return self._single
        return self._bind(tokens, num_logits, images)

    def _bind(self, tokens: int, num_logits: int, images: ImageFeatures | None) -> Step:
        images = images or ImageFeatures(
            np.zeros((0, self.hidden), np.float32), np.zeros((self.taps, 0, self.hidden), np.float32)
        )
        arrays: dict[str, NDArray[Any]] = {
            "input_ids": np.zeros((1, tokens), np.int64),
            "position_ids": np.zeros((3, 1, tokens), np.int64),
            "past_lengths": np.zeros(1, np.int32),
            "num_logits": np.array([num_logits], np.int64),
            "image_features": images.features,
        }
        if images.deepstack is not None and self.taps:
            arrays["deepstack_features"] = np.ascontiguousarray(images.deepstack)
        binding = self.session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        logits = np.empty((1, num_logits, self.vocab), np.float32)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        for name, buffer in self._cache.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        return Step(binding, arrays, logits)
