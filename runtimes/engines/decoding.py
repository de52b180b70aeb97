"""What the decoders of all engines have in common: each step is checked, and waits for its turn."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Generic, TypeGuard, TypeVar

import numpy as np

from ...targets.errors import ContextFull, InputError
from ..process.forks import computing
from ..process.turns import Turns
from ..values import shown, whole
from .contract import Floats, States, Step
from .states import EngineStates

StatesT = TypeVar("StatesT", bound=EngineStates)


class EngineDecoder(ABC, Generic[StatesT]):
    """Weights loaded in an engine; see contract.Decoder. Its conversations have states of the type `kind`."""

    kind: type[EngineStates]
    capacity: int
    hidden: int
    vocab: int
    taps: int
    recurrent: bool
    drafts: bool = False

    def __init__(self) -> None:
        self._turn, self._process = Turns(), os.getpid()

    @abstractmethod
    def open_states(self) -> StatesT:
        """States of a new conversation, with no token in them."""

    @abstractmethod
    def _compute(self, states: StatesT, step: Step) -> Floats:
        """One step that was checked; see Decoder.run."""

    def run(self, states: States, step: Step) -> Floats:
        """As Decoder.run."""
        self._check(step)
        if states.length + len(step.ids) > self.capacity:
            raise ContextFull(
                f"the conversation needs {states.length + len(step.ids)} tokens but the context holds {self.capacity}; "
                "load with a larger context=N (--context N; 8192 by default), or shorten it"
            )
        if os.getpid() != self._process:
            raise InputError("this answer was begun before the process was forked; ask the model again")
        if not self._owns(states):
            raise InputError(f"the states are {type(states).__name__}, of another engine; open them with this decoder")
        with self._turn, computing(), states.appending(len(step.ids)):
            return self._compute(states, step)

    def _owns(self, states: States) -> TypeGuard[StatesT]:
        return isinstance(states, self.kind)

    def _check(self, step: Step) -> None:
        """Engines differ in what they make of other input: some crash, and some answer."""
        ids, positions = step.ids, step.positions
        for name, array, axes in (("token ids", ids, 1), ("positions", positions, 2)):
            if not isinstance(array, np.ndarray) or array.ndim != axes or array.dtype.kind not in "iu":
                raise InputError(f"{name} are {shown(array)}; expected an array of whole numbers with {axes} axes")
        if not len(ids) or ids.min() < 0 or ids.max() >= self.vocab:
            raise InputError(f"token ids are {shown(ids)}; expected one at least, each from 0 to {self.vocab - 1}")
        if positions.shape[1] != len(ids) or len(positions) not in (1, 3) or positions.min() < 0:
            raise InputError(f"positions {list(positions.shape)} are {shown(positions)}; expected some of at least 0 "
                             f"[3, {len(ids)}]")  # fmt: skip
        whole("num_logits", step.num_logits, 0, len(ids))
        whole("num_hidden_states", step.num_hidden_states, 0, len(ids))
