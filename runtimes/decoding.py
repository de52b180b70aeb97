"""The decoder of a bundle as all its conversations share it: weights, and steps over states that each of them owns."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from ..targets.errors import InputError
from .engine import Floats, ImageFeatures, Ints
from .forks import computing
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
        have one position each gets the first row of the positions. Raises InputError where the states are full.
        """
        if states.length + len(ids) > self.capacity:
            raise InputError(
                f"the conversation needs {states.length + len(ids)} tokens but the context holds {self.capacity}; "
                "load with a larger context or shorten it"
            )
        if os.getpid() != self._process:
            raise InputError("this answer was begun before the process was forked; ask the model again")
        with self._turn, computing(), states.step(len(ids)):
            return self._compute(states, ids, positions, images, Wanted(num_logits, num_hidden_states, hidden_states))
