"""The decoder of a bundle as all its conversations share it: weights, and steps over states that each of them owns."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

import numpy as np

from ...targets.errors import InputError
from ..process.forks import computing
from ..values import shown, whole
from .contract import Floats, ImageFeatures, Ints
from .states import States

StatesT = TypeVar("StatesT", bound=States)


@dataclass(frozen=True)
class Wanted:
    """What a step is to give, and what it is given beside tokens."""

    num_logits: int = 1
    num_hidden_states: int = 0
    hidden_states: Floats | None = None  # [seq, hidden], for a graph of multi-token prediction


class Decoder(ABC, Generic[StatesT]):
    """Weights loaded in an engine. Threads may share it: their steps run one behind another.

    `capacity` tokens fit in the states of a conversation, `hidden` and `vocab` are widths, `taps` counts DeepStack's.
    """

    capacity: int
    hidden: int
    vocab: int
    taps: int
    recurrent: bool  # whether there are states that do not simply get shorter

    def __init__(self) -> None:
        self._turn, self._process = Lock(), os.getpid()

    @abstractmethod
    def open_states(self) -> StatesT:
        """States of a new conversation, with no token in them."""

    @abstractmethod
    def _compute(
        self, states: StatesT, ids: Ints, positions: Ints, images: ImageFeatures | None, wanted: Wanted
    ) -> Floats:
        """One step; see `run`."""

    def run(
        self,
        states: StatesT,
        ids: Ints,
        positions: Ints,
        images: ImageFeatures | None = None,
        *,
        num_logits: int = 1,
        num_hidden_states: int = 0,
        hidden_states: Floats | None = None,
    ) -> Floats:
        """Append tokens: ids [seq], positions [3, seq], features of the image tokens among them.

        Returns logits float32 [num_logits, vocab] of the last positions, valid until the next step of these states. A
        graph for multi-token prediction takes `hidden_states` [seq, hidden]; one in front of it leaves those of the
        last `num_hidden_states` positions, at least as many as logits, in `states.hidden_states`. A graph whose tokens
        have one position each gets the first row of the positions. Raises InputError where the states are full, and for
        what is no token or position of this graph.
        """
        self._check(ids, positions, (num_logits, num_hidden_states))
        if states.length + len(ids) > self.capacity:
            raise InputError(
                f"the conversation needs {states.length + len(ids)} tokens but the context holds {self.capacity}; "
                "load with a larger context or shorten it"
            )
        if os.getpid() != self._process:
            raise InputError("this answer was begun before the process was forked; ask the model again")
        with self._turn, computing(), states.step(len(ids)):
            return self._compute(states, ids, positions, images, Wanted(num_logits, num_hidden_states, hidden_states))

    def _check(self, ids: Ints, positions: Ints, counts: tuple[int, int]) -> None:
        """Engines differ in what they make of other input: some crash, and some answer."""
        for name, array, axes in (("token ids", ids, 1), ("positions", positions, 2)):
            if not isinstance(array, np.ndarray) or array.ndim != axes or array.dtype.kind not in "iu":
                raise InputError(f"{name} are {shown(array)}; expected an array of whole numbers with {axes} axes")
        if not len(ids) or ids.min() < 0 or ids.max() >= self.vocab:
            raise InputError(f"token ids are {shown(ids)}; expected one at least, each from 0 to {self.vocab - 1}")
        if positions.shape[1] != len(ids) or len(positions) not in (1, 3) or positions.min() < 0:
            raise InputError(f"positions {list(positions.shape)} are {shown(positions)}; expected some of at least 0 "
                             f"[3, {len(ids)}]")  # fmt: skip
        for name, count in zip(("num_logits", "num_hidden_states"), counts, strict=True):
            whole(name, count, 0, len(ids))
