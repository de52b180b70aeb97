"""States of earlier prompts and answers, which any conversation of a model goes on from: copies, up to a byte limit.

A tree: each segment has the tokens behind those of its parent, and what an engine keeps of them. Where keys and values
of single tokens can be told apart, a prompt may part from an earlier one anywhere, and the segment is cut in two there.
Recurrent states have all tokens in them: there the end of a segment alone is a place to go on from.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..engines.contract import Kept, KeptTokens, States
from .token_run import TokenRun

PREFIX_BYTES = 512_000_000  # of a model with 2 billion parameters 2,200 tokens, or 8,000 with a cache in int8
LEAST_CUT = 16  # tokens: shorter beginnings are kept twice sooner than a segment is cut


@dataclass(eq=False)
class Segment:
    """Some tokens of a conversation, and what is kept of them."""

    tokens: TokenRun
    states: KeptTokens
    parent: Segment | None = None
    children: list[Segment] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        arrays = (self.tokens.ids, self.tokens.positions, *self.states.values())
        return sum(array.nbytes for array in arrays)

    def path(self) -> list[Segment]:
        """The segments from the beginning of the conversation to this one; the root of all has no tokens."""
        found, segment = list[Segment](), self
        while segment.parent is not None:
            found.append(segment)
            segment = segment.parent
        return found[::-1]


@dataclass(frozen=True)
class Found:
    """Segments one behind the other, and the length up to which a prompt begins with them."""

    length: int = 0
    segments: Sequence[Segment] = ()


class PrefixCache:
    """Segments up to `most_bytes`, of which the least used go first; for several threads."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._lock, self._inside = threading.RLock(), False
        self._root = Segment(TokenRun(np.zeros(0, np.int64), np.zeros((3, 0), np.int64)), {})
        self._used: OrderedDict[Segment, None] = OrderedDict()  # the latest last, and behind those that follow it

    def find(self, prompt: TokenRun, most: int, *, exact: bool) -> Found:
        """The longest beginning of a prompt up to `most` tokens; `exact`: only the ends of segments count."""
        found = Found()
        with self._alone() as entered:
            for segment, common in self._followed(prompt) if entered else ():
                length = min(common, most)
                if length > found.length and not (exact and length < segment.tokens.end):
                    found = Found(length, segment.path())
            self._touch(found.segments)
        return found

    def keep(self, tokens: TokenRun, states: States) -> None:
        """Keep what states hold of all their tokens; what these begin with is shared with others that do."""
        if states.sharing is None or not self.most_bytes or not len(tokens):
            return
        with self._alone() as entered:
            if entered:
                self._keep(tokens, states)

    def forget(self) -> None:
        """Drop all."""
        with self._alone():
            self._root.children.clear()
            self._used.clear()
            self.bytes = 0

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """The lock; False in the finalizer of another answer that interrupts this very thread while it has it."""
        with self._lock:
            entered, self._inside = not self._inside, True
            try:
                yield entered
            finally:
                self._inside = not entered

    def _keep(self, tokens: TokenRun, states: States) -> None:
        parent = self._covering(tokens, states)
        begin = parent.tokens.end
        if begin < tokens.end:
            segment = Segment(tokens.part(begin, tokens.end).copied(), states.keep(begin))
            if segment.nbytes <= self.most_bytes:
                self._add(segment, parent)
                self._shrink()
        else:
            self._touch(parent.path())

    def _followed(self, prompt: TokenRun) -> Iterator[tuple[Segment, int]]:
        """Segments that a prompt begins with, in part or as a whole, with the length of what is common up to there."""
        following = [self._root]
        while following:
            for child in following.pop().children:
                begin, end = child.tokens.begin, child.tokens.end
                common = begin + child.tokens.common(prompt.part(begin, end))
                if common > begin:
                    yield child, common
                if common == end:
                    following.append(child)

    def _covering(self, tokens: TokenRun, states: States) -> Segment:
        """The longest segment that ends within the tokens, behind a cut where that makes one."""
        followed = list(self._followed(tokens))
        if states.sharing is Kept.WHOLE:  # a segment holds everything from the beginning on
            return next((each for each, common in followed if common == each.tokens.end == tokens.end), self._root)
        ended = (each for each, common in followed if common == each.tokens.end)
        best = max(ended, key=lambda each: each.tokens.end, default=self._root)
        parting, common = max(followed, key=lambda each: each[1], default=(best, 0))
        if states.recurrent or common - best.tokens.end < LEAST_CUT:
            return best
        return self._cut(parting, common)

    def _cut(self, segment: Segment, place: int) -> Segment:
        """Cut a segment in two; the first of them."""
        tokens, parent, rows = segment.tokens, segment.parent, place - segment.tokens.begin
        first, second = ({name: array[:, part].copy() for name, array in segment.states.items()}
                         for part in (slice(rows), slice(rows, None)))  # fmt: skip
        assert parent is not None
        before = Segment(tokens.part(tokens.begin, place).copied(), first)
        behind = Segment(tokens.part(place, tokens.end).copied(), second, children=segment.children)
        for child in behind.children:
            child.parent = behind
        segment.children = []
        self._drop(segment)
        self._add(before, parent)
        self._add(behind, before)
        return before

    def _add(self, segment: Segment, parent: Segment) -> None:
        segment.parent = parent
        parent.children.append(segment)
        self.bytes += segment.nbytes
        self._used[segment] = None
        self._touch(segment.path())

    def _drop(self, segment: Segment) -> None:
        assert segment.parent is not None
        for child in list(segment.children):
            self._drop(child)
        segment.parent.children.remove(segment)
        self.bytes -= segment.nbytes
        del self._used[segment]

    def _touch(self, path: Sequence[Segment]) -> None:
        """Those in front last, so that none goes before those that follow it."""
        for segment in reversed(path):
            self._used.move_to_end(segment)

    def _shrink(self) -> None:
        while self.bytes > self.most_bytes:
            self._drop(next(iter(self._used)))
