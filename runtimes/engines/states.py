"""What the states of all engines have in common: their length, and the way back to an earlier one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from .contract import Floats, Ints, Kept, KeptTokens

CACHE, RECURRENT = "past_key_values.", "past."  # beginnings of the names of inputs
SAVED = 3  # copies of the recurrent states; each takes their size, 20 MB for a model of 2 billion parameters


class EngineStates(ABC):
    """The states of one conversation, which each engine keeps in its own way; see contract.States.

    A KV cache keeps every token: forgetting the last ones takes nothing. A recurrent state has a fixed size and all
    tokens in it: it goes back to a length only where a copy was saved, or within the latest step if that was asked to.
    """

    sharing: ClassVar[Kept | None] = None

    def __init__(self, *, recurrent: bool) -> None:
        self.recurrent, self.length = recurrent, 0
        self.hidden_states: Floats = np.zeros((0, 0), np.float32)  # of the latest step, where the graph gives them
        self.undoable = 0  # tokens at the end that are forgotten one by one, as of Step
        self._saved: dict[int, Any] = {}  # by length, the oldest first
        self._torn = False  # a step began and did not end: recurrent states may be ahead of the length

    @contextmanager
    def appending(self, tokens: int) -> Iterator[None]:
        """Count `tokens` more behind a step that succeeds; one that fails leaves a length that is certain."""
        self._torn, self.undoable = True, 0
        try:
            yield
            self.length += tokens
            self._torn = False
        except BaseException:
            self.rewind(self.length)
            raise

    def reach(self, wanted: int) -> int:
        """The longest length up to `wanted` that `rewind` can go back to."""
        if not self.recurrent or (wanted >= self.length - self.undoable and not self._torn):
            return min(wanted, self.length)
        return max((saved for saved in self._saved if saved <= wanted), default=0)

    def rewind(self, wanted: int) -> int:
        """Forget all tokens behind the first `wanted`, and more where there is no way back to them; how many are left.

        Copies of what is forgotten are forgotten too: the tokens that follow will be others.
        """
        reached = self.reach(wanted)
        if reached < self.length or self._torn:
            self._torn = True  # until it is done
            self._restore(reached)
            self.undoable = 0
        self._saved = {length: copy for length, copy in self._saved.items() if length <= reached}
        self.length, self._torn = reached, False
        return reached

    def save(self) -> None:
        """Keep a copy of recurrent states, so that `rewind` can come back to this length.

        It takes the place of the oldest but for the shortest, which other conversations are likely to begin with too.
        """
        if self.recurrent:
            self._saved.pop(self.length, None)
            while len(self._saved) >= SAVED:
                shortest = min(self._saved)
                del self._saved[next(length for length in self._saved if length != shortest)]
            self._saved[self.length] = self._copy()

    def keep(self, begin: int) -> KeptTokens:
        """As States.keep."""
        raise NotImplementedError(f"{type(self).__name__} gives nothing of tokens")

    def adopt(self, parts: Sequence[tuple[int, KeptTokens]], positions: Ints, wanted: int, known: int) -> int:
        """As States.adopt."""
        self._saved = {length: copy for length, copy in self._saved.items() if length <= known}
        self.length, self.undoable, self._torn = 0, 0, True  # until it is done
        self.length = self._adopt(parts, positions, wanted, known)
        self._torn = False
        self.save()
        return self.rewind(wanted)

    def _adopt(self, parts: Sequence[tuple[int, KeptTokens]], positions: Ints, wanted: int, known: int) -> int:
        """Take over what other states kept; how many tokens there are then."""
        raise NotImplementedError(f"{type(self).__name__} takes over nothing of tokens")

    @abstractmethod
    def _copy(self) -> Any:
        """A copy of the recurrent states."""

    @abstractmethod
    def _restore(self, length: int) -> None:
        """Go back to a length: recurrent states become what was saved there, or zeros at the beginning.

        Behind a step whose tokens may be forgotten, what they were behind each of these.
        """
