"""The graphs of a bundle on ONNX Runtime: image encoding, and decoder steps over preallocated states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..targets.errors import InputError
from .native import LIBRARY, wanted_kernels
from .refusals import reason_of, refusal_is_input
from .states import States

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


@dataclass
class Step:
    """Bound inputs and outputs of steps with the same number of tokens, logits and image tokens."""

    binding: Any
    arrays: dict[str, NDArray[Any]]
    logits: Floats
    hidden_states: Floats | None  # [1, positions, hidden]


class Decoder:
    """Runs the decoder over states that are allocated and bound once, see states.py.

    Memory of the KV cache is touched only as far as tokens reach, so a large capacity costs address space alone.
    """

    def __init__(
        self,
        path: Path,
        *,
        capacity: int,
        threads: int | None = None,
        profile: bool = False,
        native: bool | None = None,
    ) -> None:
        self.path, self.session = path, session(path, threads, profile=profile, native=native)
        self.capacity = capacity
        self.length = 0
        self._inputs = {value.name: value for value in self.session.get_inputs()}
        self._outputs = [value.name for value in self.session.get_outputs()]
        self.hidden = int(self._inputs["image_features"].shape[1])
        self.axes = tuple(self._inputs["position_ids"].shape[:-2])  # (3,) with M-RoPE, else ()
        self.vocab = int(self.session.get_outputs()[0].shape[2])
        deepstack = self._inputs.get("deepstack_features")
        self.taps = 0 if deepstack is None else int(deepstack.shape[0])
        self.states = States(self._inputs.values(), capacity)
        self.hidden_states: Floats = np.zeros(
            (0, self.hidden), np.float32
        )  # of the latest step, where the graph gives it
        self._single: Step | None = None

    def run(
        self,
        ids: Ints,
        positions: Ints,
        images: ImageFeatures | None = None,
        *,
        num_logits: int = 1,
        num_hidden_states: int = 0,
        hidden_states: Floats | None = None,
    ) -> Floats:
        """Append tokens: ids [seq], positions [3, seq], features of the image tokens among them.

        Returns logits float32 [num_logits, vocab] of the last positions, valid until the next call. A graph for
        multi-token prediction takes `hidden_states` [seq, hidden]; one in front of it leaves those of the last
        `num_hidden_states` positions, at least as many as logits, in `hidden_states`. A graph whose tokens have one
        position each gets the first row of the positions.
        """
        self._check_room(len(ids))
        step = self._step(len(ids), num_logits, max(num_logits, num_hidden_states), images)
        step.arrays["input_ids"][0] = ids
        step.arrays["position_ids"][:] = positions[:, None] if self.axes else positions[:1]
        step.arrays["past_lengths"][0] = self.length
        if hidden_states is not None:
            step.arrays["hidden_states"][0] = hidden_states
        self._run(step)
        self.length += len(ids)
        if step.hidden_states is not None:
            self.hidden_states = step.hidden_states[0]
        logits: Floats = step.logits[0]
        return logits

    def _check_room(self, tokens: int) -> None:
        if self.length + tokens > self.capacity:
            raise InputError(
                f"the conversation needs {self.length + tokens} tokens but the context holds {self.capacity}; "
                "load with a larger context or shorten it"
            )

    def _run(self, step: Step) -> None:
        try:
            with refusal_is_input(self.path):
                self.session.run_with_iobinding(step.binding)
        except BaseException:
            if self.states.recurrent:  # some may be a step ahead
                self.length = self.states.rewind(self.length + 1, 0)
            raise

    def reach(self, length: int) -> int:
        """The longest length up to `length` that `rewind` can go back to."""
        return self.states.reach(self.length, length)

    def rewind(self, length: int) -> int:
        """Forget all tokens behind the first `length`, and more where recurrent states have no copy of that length.

        Returns how many are left.
        """
        self.length = self.states.rewind(self.length, length)
        return self.length

    def save(self) -> None:
        """Keep a copy of recurrent states, so that `rewind` can come back to this length."""
        self.states.save(self.length)

    def _step(self, tokens: int, num_logits: int, num_hidden: int, images: ImageFeatures | None) -> Step:
        if tokens == 1 and num_logits == 1 and images is None:
            self._single = self._single or self._bind(1, 1, 1, None)
            return self._single
        return self._bind(tokens, num_logits, num_hidden, images)

    def _bind(self, tokens: int, num_logits: int, num_hidden: int, images: ImageFeatures | None) -> Step:
        arrays = self._arrays(tokens, num_logits, num_hidden, images)
        binding = self.session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        made = {
            "logits": np.empty((1, num_logits, self.vocab), np.float32),
            "hidden_states": np.empty((1, num_hidden, self.hidden), np.float32),
            "draft_hidden_states": np.empty((1, num_logits, self.hidden), np.float32),
        }
        made = {name: array for name, array in made.items() if name in self._outputs}
        for name, array in made.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        self.states.bind(binding)
        return Step(binding, arrays, made.pop("logits"), next(iter(made.values()), None))

    def _arrays(
        self, tokens: int, num_logits: int, num_hidden: int, images: ImageFeatures | None
    ) -> dict[str, NDArray[Any]]:
        """Inputs that the graph has, but for the states."""
        images = images or ImageFeatures(
            np.zeros((0, self.hidden), np.float32), np.zeros((self.taps, 0, self.hidden), np.float32)
        )
        arrays: dict[str, NDArray[Any]] = {
            "input_ids": np.zeros((1, tokens), np.int64),
            "position_ids": np.zeros((*self.axes, 1, tokens), np.int64),
            "past_lengths": np.zeros(1, np.int32),
            "num_logits": np.array([num_logits], np.int64),
            "num_hidden_states": np.array([num_hidden], np.int64),
            "hidden_states": np.zeros((1, tokens, self.hidden), np.float32),
            "image_features": images.features,
        }
        if images.deepstack is not None and self.taps:
            arrays["deepstack_features"] = np.ascontiguousarray(images.deepstack)
        return {name: array for name, array in arrays.items() if name in self._inputs}
