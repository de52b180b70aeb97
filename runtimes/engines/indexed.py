"""Graphs of the dialects for GPUs behind the interfaces of contract.py, on any engine that can run them.

They differ from those for CPUs in what they are told: positions and patches come as indices, image features have at
least one row, and the KV cache has a fixed capacity that the engine keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...targets.errors import InputError
from ..media.images import Grid, Patches
from .contract import Arrays, Floats, ImageFeatures, Step
from .decoding import EngineDecoder
from .states import CACHE, RECURRENT, EngineStates

PRESENT = "present."
HIDDEN_STATES = ("hidden_states", "draft_hidden_states")  # outputs, of a decoder in front of a draft head and of that
Shape: TypeAlias = tuple[Any, ...]  # ints, and names of what may vary


class KeptArrays(Protocol):
    """The states of one conversation, where an engine wants them; those of a graph without states hold nothing."""

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a state by the name of its input."""
        ...

    def write(self, name: str, values: NDArray[Any] | None) -> None:
        """Set a state; None: to zeros."""
        ...


KeptT = TypeVar("KeptT", bound=KeptArrays)


class Executor(Protocol[KeptT]):
    """One graph loaded in an engine, which one thread at a time may run."""

    @property
    def inputs(self) -> Mapping[str, Shape]: ...
    @property
    def outputs(self) -> Mapping[str, Shape]: ...

    def open_states(self) -> KeptT:
        """States of a new conversation, all zeros."""
        ...

    def run(self, feed: Arrays, kept: KeptT) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on by the new tokens."""
        ...


class IndexedVision(Generic[KeptT]):
    """Encodes the patches of one image at a time; `by_frame` those of one frame, for graphs that know no others."""

    def __init__(
        self, executor: Executor[KeptT], index: Callable[[Grid], dict[str, NDArray[Any]]], *, by_frame: bool = False
    ) -> None:
        self.executor, self.index, self.by_frame = executor, index, by_frame
        self._kept = executor.open_states()

    def __call__(self, patches: Patches, grid: Grid) -> ImageFeatures:
        """As Vision."""
        if len(self.executor.inputs) == 1 and patches.ndim == 4 and len(patches) > 1:  # tiles of one size
            return ImageFeatures.join([self._encode(tile[None], grid) for tile in patches])
        frames = grid[0] if self.by_frame else 1
        if frames == 1:
            return self._encode(patches, grid)
        return ImageFeatures.join([self._encode(part, (1, *grid[1:])) for part in np.split(patches, frames)])

    def _encode(self, patches: Patches, grid: Grid) -> ImageFeatures:
        feed: dict[str, NDArray[Any]] = {"pixel_values": patches, "image_grid_thw": np.array([grid], np.int64)}
        if len(self.executor.inputs) > 1:  # one that takes images of one size wants their pixels alone
            feed |= self.index(grid)
        made = self.executor.run({name: feed[name] for name in self.executor.inputs}, self._kept)
        return ImageFeatures(made["image_features"], made.get("deepstack_features"))


class KeptStates(EngineStates, Generic[KeptT]):
    """States that an engine keeps."""

    def __init__(self, executor: Executor[KeptT]) -> None:
        self.kept = executor.open_states()
        self._names = [name for name in executor.inputs if name.startswith(RECURRENT)]
        super().__init__(recurrent=bool(self._names))

    def copies(self) -> dict[str, Floats]:
        """Copies of the recurrent states by the names of their inputs."""
        return {name: self.kept.read(name) for name in self._names}

    def _copy(self) -> dict[str, Floats]:
        return self.copies()

    def _restore(self, length: int) -> None:
        copies = self._saved.get(length, {})
        for name in self._names:
            self.kept.write(name, copies.get(name))


class IndexedDecoder(EngineDecoder[KeptStates[KeptT]]):
    """A decoder, or a head for multi-token prediction, whose engine keeps the states."""

    kind = KeptStates

    def __init__(self, executor: Executor[KeptT], *, capacity: int) -> None:
        super().__init__()
        self.executor = executor
        cache = [shape for name, shape in executor.inputs.items() if name.startswith(CACHE)]
        self.capacity = min([capacity, *(int(shape[2]) for shape in cache)])
        self.hidden = int(executor.inputs["image_features"][1])
        self.axes = tuple(executor.inputs["position_ids"][:-2])
        self.vocab = int(executor.outputs["logits"][2])
        self.taps = int(executor.inputs["deepstack_features"][0]) if "deepstack_features" in executor.inputs else 0
        self.recurrent = any(name.startswith(RECURRENT) for name in executor.inputs)

    def open_states(self) -> KeptStates[KeptT]:
        """States of a new conversation in the engine."""
        return KeptStates(self.executor)

    def _compute(self, states: KeptStates[KeptT], step: Step) -> Floats:
        if step.num_hidden_states and not any(name in self.executor.outputs for name in HIDDEN_STATES):
            raise InputError(
                "graphs for GPUs give hidden states only in front of a draft head, which this bundle lacks; use a "
                "bundle of --target cpu or --format gguf"
            )
        feed = self._feed(states.length, step)
        made = self.executor.run({name: feed[name] for name in self.executor.inputs if name in feed}, states.kept)
        for name in HIDDEN_STATES:
            if name in made:
                states.hidden_states = made[name][0]
        logits: Floats = made["logits"][0, made["logits"].shape[1] - step.num_logits :]
        return logits

    def _feed(self, length: int, step: Step) -> dict[str, NDArray[Any]]:
        """What the graph is told but for its states; at least one position has logits."""
        seq, wanted = len(step.ids), max(step.num_logits, 1)
        kept = max(step.num_logits, step.num_hidden_states, 1)
        rows = _at_least_one(step.images, self.hidden, self.taps)
        last = kept if "hidden_positions" in self.executor.inputs else seq
        feed: dict[str, NDArray[Any]] = {
            "input_ids": step.ids[None],
            "position_ids": (step.positions[:, None] if self.axes else step.positions[:1]),
            "past_lengths": np.array([length], np.int32),
            "seqlens_k": np.array([length + seq - 1], np.int32),
            "total_sequence_length": np.array(length + seq, np.int32),
            "logit_positions": np.arange(last - wanted, last),
            "hidden_positions": np.arange(seq - kept, seq),
            "image_features": rows.features,
        }
        if rows.deepstack is not None:
            feed["deepstack_features"] = rows.deepstack
        if step.hidden_states is not None:
            feed["hidden_states"] = step.hidden_states[None]
        return feed


def _at_least_one(images: ImageFeatures | None, hidden: int, taps: int) -> ImageFeatures:
    """Features that are not empty: a row that no token asks for where there are none."""
    if images is not None and len(images):
        return images
    return ImageFeatures(np.zeros((1, hidden), np.float32), np.zeros((taps, 1, hidden), np.float32) if taps else None)


def sized(shape: Sequence[Any], capacity: int) -> Shape:
    """The shape of an input or output whose cache holds `capacity` tokens, where the graph leaves that open."""
    return tuple(capacity if size == "capacity" else size for size in shape)


def present_name(past: str) -> str:
    """The output that follows a state, by the name of its input."""
    return PRESENT + past.removeprefix(CACHE if past.startswith(CACHE) else RECURRENT)
