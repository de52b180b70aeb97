"""Decoders of the ort dialect on ONNX Runtime: steps in place, over buffers that are bound once for a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ....targets.errors import InputError
from ..contract import Floats, ImageFeatures, Step
from ..decoding import EngineDecoder
from ..refusals import refusal_is_input
from ..states import RECURRENT
from .bound_states import BoundStates
from .editable_graph import editable
from .hidden_graph import add_hidden_states
from .narrow_head import narrow
from .sessions import session
from .state_replay import StateReplay
from .state_rows import MOST_ROWS, add_state_rows

HIDDEN, DRAFT_HIDDEN, ROWS = "hidden_states", "draft_hidden_states", "rows."  # outputs


@dataclass
class BoundStep:
    """Bound inputs and outputs of steps with the same number of tokens, logits and image tokens."""

    session: ort.InferenceSession
    binding: Any
    arrays: dict[str, NDArray[Any]]
    logits: Floats
    hidden_states: Floats | None  # [1, positions, hidden]
    rows: list[str]  # outputs that are kept where tokens may be forgotten


class OnnxDecoder(EngineDecoder[BoundStates]):
    """A graph of the ort dialect on the CPU."""

    kind = BoundStates

    def __init__(
        self,
        path: Path,
        *,
        capacity: int,
        threads: int | None = None,
        decode_threads: int | None = None,
        profile: bool = False,
        native: bool | None = None,
        tokens: int = 0,
    ) -> None:
        """`decode_threads`: of steps of a few tokens; None: as many as for others, 0: one for each core.

        `tokens`: give logits of the first of the vocabulary alone, where the graph can; 0: of all.
        """
        super().__init__()
        self.path, self.capacity, self._tokens = path, capacity, tokens
        self._open = partial(session, path, profile=profile, native=native)
        self._threads, self._few_threads = threads, threads if decode_threads is None else decode_threads or None
        self._replay: StateReplay | None = None
        self._load()
        self.hidden = int(self._inputs["image_features"].shape[1])
        self.axes = tuple(self._inputs["position_ids"].shape[:-2])  # (3,) with M-RoPE, else ()
        self._width = int(self.session.get_outputs()[0].shape[2])  # of logits
        deepstack = self._inputs.get("deepstack_features")
        self.taps = 0 if deepstack is None else int(deepstack.shape[0])
        self.drafts = not self.recurrent or self._replay is not None

    def _load(self, *, hidden_states: bool = False) -> None:
        """Open the graph, changed where it has recurrent states, or gives no hidden states and shall do so."""
        model = editable(self.path)
        self.recurrent = any(port.name.startswith(RECURRENT.encode()) for port in model.graph.input)
        if hidden_states:
            add_hidden_states(model, self.path)
        replay = add_state_rows(model) if self.recurrent else None
        if replay is not None:
            self._replay = StateReplay(self.path, self._open(self._few_threads, graph=replay))
        self.vocab = int(model.graph.output[0].type.tensor_type.shape.dim[2].dim_value)
        narrowed = bool(self._tokens) and narrow(model, self._tokens)
        changed = hidden_states or narrowed or replay is not None
        graph = model.SerializeToString() if changed else None
        self.session = self._few = self._open(self._threads, graph=graph)
        if self._few_threads != self._threads:  # weights of quantized bundles are mapped, and in memory once
            self._few = self._open(self._few_threads, graph=graph)
        self._inputs = {value.name: value for value in self.session.get_inputs()}
        self._outputs = [value.name for value in self.session.get_outputs()]

    def open_states(self) -> BoundStates:
        """Buffers of a new conversation."""
        return BoundStates(self._inputs.values(), self.capacity, self._replay)

    def _compute(self, states: BoundStates, step: Step) -> Floats:
        if step.num_hidden_states and HIDDEN not in self._outputs and DRAFT_HIDDEN not in self._outputs:
            self._load(hidden_states=True)  # from now on they are given
        keep = bool(step.undoable) and self.recurrent
        if keep and (self._replay is None or len(step.ids) > MOST_ROWS):
            raise InputError(
                f"{len(step.ids)} tokens, some to be forgotten, come to the recurrent states of {self.path}, which "
                f"go back within {MOST_ROWS if self._replay else 1} at most; append fewer"
            )
        bound = self._bound(states, step, keep=keep)
        bound.arrays["input_ids"][0] = step.ids
        bound.arrays["position_ids"][:] = step.positions[:, None] if self.axes else step.positions[:1]
        bound.arrays["past_lengths"][0] = states.length
        if step.hidden_states is not None:
            bound.arrays["hidden_states"][0] = step.hidden_states
        with refusal_is_input(self.path):
            bound.session.run_with_iobinding(bound.binding)
        if keep:
            states.turn([value.numpy() for value in bound.binding.get_outputs()[-len(bound.rows) :]])
        states.undoable = step.undoable
        if bound.hidden_states is not None:
            states.hidden_states = bound.hidden_states[0]
        logits: Floats = bound.logits[0]
        return logits

    def _bound(self, states: BoundStates, step: Step, *, keep: bool) -> BoundStep:
        """A step that is bound; those of few tokens, all of them with logits, are used again and again."""
        tokens, num_hidden = len(step.ids), max(step.num_logits, step.num_hidden_states)
        if tokens > MOST_ROWS or step.images is not None or not tokens == num_hidden == step.num_logits:
            room = self._room(step.num_logits, num_hidden)
            return self._bind(self.session, states, step, room, keep=keep)
        name = (id(self), states.side, tokens, keep)
        bound: BoundStep | None = states.bound.get(name)
        if bound is None or bound.session is not self._few:
            outputs = (id(self), len(self._outputs))  # of which there are more from the first hidden states on
            whole = states.room.setdefault(outputs, self._room(MOST_ROWS, MOST_ROWS))
            room = {output: array[:, :tokens] for output, array in whole.items()}
            bound = states.bound[name] = self._bind(self._few, states, step, room, keep=keep)
        return bound

    def _room(self, num_logits: int, num_hidden: int) -> dict[str, Floats]:
        """Room for outputs of so many positions; no memory that is not used."""
        made = {
            "logits": np.empty((1, num_logits, self._width), np.float32),
            HIDDEN: np.empty((1, num_hidden, self.hidden), np.float32),
            DRAFT_HIDDEN: np.empty((1, num_logits, self.hidden), np.float32),
        }
        return {name: array for name, array in made.items() if name in self._outputs}

    def _bind(
        self, session: ort.InferenceSession, states: BoundStates, step: Step, room: dict[str, Floats], *, keep: bool
    ) -> BoundStep:
        num_hidden = max(step.num_logits, step.num_hidden_states)
        arrays = self._arrays(len(step.ids), step.num_logits, num_hidden, step.images)
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in room.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        states.bind(binding, keep=keep)
        rows = [name for name in self._outputs if keep and name.startswith(ROWS)]
        for name in rows:
            binding.bind_output(name)
        hidden = next((array for name, array in room.items() if name != "logits"), None)
        return BoundStep(session, binding, arrays, room["logits"], hidden, rows)

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
