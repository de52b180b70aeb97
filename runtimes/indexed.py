"""Graphs of the dialects for GPUs behind the interfaces of engine.py, on any engine that can run them.

They differ from those for CPUs in what they are told: positions and patches come as indices, image features have at
least one row, and the KV cache has a fixed capacity that the engine keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .engine import Decoder, Floats, ImageFeatures, Ints
from .images import Grid, Patches
from .states import CACHE, RECURRENT, States

Arrays = Mapping[str, NDArray[Any]]
PRESENT = "present."
Shape = tuple[Any, ...]  # ints, and names of what may vary


class Executor(Protocol):
    """One graph loaded in an engine, with its states where the engine wants them."""

    @property
    def inputs(self) -> Mapping[str, Shape]: ...
    @property
    def outputs(self) -> Mapping[str, Shape]: ...

    def run(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs but the states, which move on by the new tokens."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a state by the name of its input."""
        ...

    def write(self, name: str, values: NDArray[Any] | None) -> None:
        """Set a state; None: to zeros."""
        ...


class IndexedVision:
    """Encodes the patches of one image at a time; `by_frame` those of one frame, for graphs that know no others."""

    def __init__(
        self, executor: Executor, index: Callable[[Grid], dict[str, NDArray[Any]]], *, by_frame: bool = False
    ) -> None:
        self.executor, self.index, self.by_frame = executor, index, by_frame

    def __call__(self, patches: Patches, grid: Grid) -> ImageFeatures:
        """As VisionEncoder."""
        frames = grid[0] if self.by_frame else 1
        if frames == 1:
            return self._encode(patches, grid)
        return ImageFeatures.join([self._encode(part, (1, *grid[1:])) for part in np.split(patches, frames)])

    def _encode(self, patches: Patches, grid: Grid) -> ImageFeatures:
        feed: dict[str, NDArray[Any]] = {"pixel_values": patches, "image_grid_thw": np.array([grid], np.int64)}
        if len(self.executor.inputs) > 1:  # one that takes images of one size wants their pixels alone
            feed |= self.index(grid)
        made = self.executor.run({name: feed[name] for name in self.executor.inputs})
        return ImageFeatures(made["image_features"], made.get("deepstack_features"))


class KeptStates(States):
    """The states of a decoder whose engine keeps them."""

    def __init__(self, executor: Executor) -> None:
        super().__init__((), 0)
        self._executor = executor
        self._names = [name for name in executor.inputs if name.startswith(RECURRENT)]

    @property
    def recurrent(self) -> bool:
        """Whether there are states that do not simply get shorter."""
        return bool(self._names)

    def copies(self) -> dict[str, Floats]:
        """Copies of the recurrent states by the names of their inputs."""
        return {name: self._executor.read(name) for name in self._names}

    def _restore(self, copies: Mapping[str, Floats]) -> None:
        for name in self._names:
            self._executor.write(name, copies.get(name))


class IndexedDecoder(Decoder):
    """Runs a decoder, or a head for multi-token prediction, whose engine keeps the states."""

    def __init__(self, executor: Executor, *, capacity: int) -> None:
        self.executor = executor
        cache = [shape for name, shape in executor.inputs.items() if name.startswith(CACHE)]
        self.capacity = min([capacity, *(int(shape[2]) for shape in cache)])
        self.length = 0
        self.hidden = int(executor.inputs["image_features"][1])
        self.axes = tuple(executor.inputs["position_ids"][:-2])
        self.vocab = int(executor.outputs["logits"][2])
        self.taps = int(executor.inputs["deepstack_features"][0]) if "deepstack_features" in executor.inputs else 0
        self.states = KeptStates(executor)
        self.hidden_states: Floats = np.zeros((0, self.hidden), np.float32)

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
        """As Decoder.run."""
        self._check_room(len(ids))
        kept = max(num_logits, num_hidden_states, 1)
        feed = self._feed(ids, positions, images, kept, num_logits)
        if hidden_states is not None:
            feed["hidden_states"] = hidden_states[None]
        made = self._advance({name: feed[name] for name in self.executor.inputs if name in feed})
        self.length += len(ids)
        for name in ("hidden_states", "draft_hidden_states"):
            if name in made:
                self.hidden_states = made[name][0]
        logits: Floats = made["logits"][0, made["logits"].shape[1] - num_logits :]
        return logits

    def _advance(self, feed: Arrays) -> dict[str, NDArray[Any]]:
        try:
            return self.executor.run(feed)
        except BaseException:
            if self.states.recurrent:  # some may be a step ahead
                self.length = self.states.rewind(self.length + 1, 0)
            raise

    def _feed(
        self, ids: Ints, positions: Ints, images: ImageFeatures | None, kept: int, num_logits: int
    ) -> dict[str, NDArray[Any]]:
        """What the graph is told but for its states; at least one position has logits."""
        seq, wanted = len(ids), max(num_logits, 1)
        rows = _at_least_one(images, self.hidden, self.taps)
        last = kept if "hidden_positions" in self.executor.inputs else seq
        feed: dict[str, NDArray[Any]] = {
            "input_ids": ids[None],
            "position_ids": (positions[:, None] if self.axes else positions[:1]),
            "past_lengths": np.array([self.length], np.int32),
            "seqlens_k": np.array([self.length + seq - 1], np.int32),
            "total_sequence_length": np.array(self.length + seq, np.int32),
            "logit_positions": np.arange(last - wanted, last),
            "hidden_positions": np.arange(seq - kept, seq),
            "image_features": rows.features,
        }
        return feed | ({} if rows.deepstack is None else {"deepstack_features": rows.deepstack})


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
