"""States of earlier prompts and answers, which any conversation of a model goes on from: copies, up to a byte limit.

A tree: each segment has the tokens behind those of its parent, and what an engine keeps of them. Where keys and values
of single tokens can be told apart, a prompt may part from an earlier one anywhere, and the segment is cut in two there.
Recurrent states have all tokens in them: there the end of a segment alone is a place to go on from. Where there is a
shelf, segments are on disk, too, and memory holds the latest of them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..engines.contract import Ints, Kept, KeptTokens
from .prefix_shelf import PrefixShelf
from .token_run import TokenRun

PREFIX_BYTES = 512_000_000  # of a model with 2 billion parameters 4,400 tokens, or 8,000 with a cache in int8
LEAST_CUT = 16  # tokens: shorter beginnings are kept twice sooner than a segment is cut


class Keepable(Protocol):
    """What is kept of states, as of contract.States."""

    @property
    def sharing(self) -> Kept | None: ...
    @property
    def recurrent(self) -> bool: ...
    def keep(self, begin: int, /) -> KeptTokens: ...


@dataclass(eq=False)
class Segment:
    """Some tokens of a conversation, and what is kept of them; its name is that of all tokens up to its end."""

    name: str | None
    tokens: TokenRun
    states: KeptTokens | None  # None: they are on the shelf alone
    parent: Segment | None = None
    children: list[Segment] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, but for what is on the shelf."""
        arrays = (self.tokens.ids, self.tokens.positions, *(self.states or {}).values())
        return 0 if self.states is None else sum(array.nbytes for array in arrays)

    def path(self) -> list[Segment]:
        """The segments from the beginning of the conversation to this one; the root of all has no tokens."""
        found, segment = list[Segment](), self
        while segment.parent is not None:
            found.append(segment)
            segment = segment.parent
        return found[::-1]


@dataclass(frozen=True)
class Found:
    """The length up to which a prompt begins with what was kept, and segments one behind the other that hold it."""

    length: int = 0
    segments: Sequence[Segment] = ()
    states: Sequence[KeptTokens] = ()

    @property
    def parts(self) -> list[tuple[int, KeptTokens]]:
        """As of States.adopt."""
        begins = (segment.tokens.begin for segment in self.segments)
        return list(zip(begins, self.states, strict=True))

    @property
    def positions(self) -> Ints:
        """Of all tokens [3, seq]."""
        return np.concatenate([segment.tokens.positions for segment in self.segments], axis=1)


class PrefixCache:
    """Segments up to `most_bytes` in memory, of which the least used go first; for several threads."""

    def __init__(self, most_bytes: int, shelf: PrefixShelf | None = None) -> None:
        self.most_bytes, self.bytes, self.shelf = most_bytes, 0, shelf
        self._lock, self._inside = threading.RLock(), False
        self._root = Segment(None, TokenRun(np.zeros(0, np.int64), np.zeros((3, 0), np.int64)), {})
        self._named: dict[str | None, Segment] = {None: self._root}
        self._used: OrderedDict[Segment, None] = OrderedDict()  # in memory; the latest last, behind what follows it

    def find(self, prompt: TokenRun, most: int, *, exact: bool) -> Found:
        """The longest beginning of a prompt up to `most` tokens; `exact`: only the ends of segments count."""
        found = Found()
        with self._alone() as entered:
            if not entered:
                return found
            self._look()
            while (longest := self._longest(prompt, most, exact=exact)).length and not found.length:
                states = [self._loaded(segment) for segment in longest.segments]
                found = Found(longest.length, longest.segments, [each for each in states if each is not None])
                if len(found.states) < len(states):  # gone from the shelf: it is looked for what there is without
                    found = Found()
            self._touch(found.segments)
            self._shrink()
        return found

    def keep(self, tokens: TokenRun, states: Keepable) -> None:
        """Keep what states hold of all their tokens; what these begin with is shared with others that do."""
        if states.sharing is None or not len(tokens) or (not self.most_bytes and self.shelf is None):
            return
        with self._alone() as entered:
            if entered:
                self._keep(tokens, states)

    def drop(self, found: Found) -> None:
        """Forget segments that no states could go on from."""
        with self._alone() as entered:
            if entered and self._named.get(found.segments[0].name) is found.segments[0]:
                self._drop(found.segments[0])

    def forget(self) -> None:
        """Drop all but what is on the shelf."""
        with self._alone():
            self._root.children.clear()
            self._named = {None: self._root}
            self._used.clear()
            self.bytes = 0
            if self.shelf is not None:
                self.shelf.look_again()

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """The lock; False in the finalizer of another answer that interrupts this very thread while it has it."""
        with self._lock:
            entered, self._inside = not self._inside, True
            try:
                yield entered
            finally:
                self._inside = not entered

    def _look(self) -> None:
        """Take in what is new on the shelf, from earlier runs and other processes."""
        for said in () if self.shelf is None else self.shelf.look():
            parent = self._named.get(said.behind)
            if said.name not in self._named and parent is not None and parent.tokens.end == said.tokens.begin:
                self._add(Segment(said.name, said.tokens, None), parent)

    def _longest(self, prompt: TokenRun, most: int, *, exact: bool) -> Found:
        found = Found()
        for segment, common in self._followed(prompt):
            length = min(common, most)
            if length > found.length and not (exact and length < segment.tokens.end):
                found = Found(length, segment.path())
        return found

    def _loaded(self, segment: Segment) -> KeptTokens | None:
        """The states of a segment, from the shelf where they are not in memory; one that is gone is dropped."""
        if segment.states is None and self._named.get(segment.name) is segment:
            if self.shelf is not None and segment.name is not None:
                segment.states = self.shelf.states(segment.name, segment.tokens)
            if segment.states is None:
                self._drop(segment)
            else:
                self.bytes += segment.nbytes
                self._used[segment] = None
        return segment.states

    def _keep(self, tokens: TokenRun, states: Keepable) -> None:
        parent = self._covering(tokens, states)
        begin = parent.tokens.end
        if begin < tokens.end:
            kept = Segment(tokens.name(), tokens.part(begin, tokens.end).copied(), states.keep(begin))
            self._shelve(kept, parent)
            if kept.nbytes <= self.most_bytes:
                self._add(kept, parent)
        else:
            self._touch(parent.path())
        self._shrink()

    def _shelve(self, segment: Segment, parent: Segment) -> None:
        if self.shelf is not None and segment.name is not None and segment.states is not None:
            self.shelf.put(segment.name, parent.name, segment.tokens, segment.states)

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

    def _covering(self, tokens: TokenRun, states: Keepable) -> Segment:
        """The longest segment that ends within the tokens, behind a cut where that makes one."""
        followed = list(self._followed(tokens))
        if states.sharing is Kept.WHOLE:  # a segment holds everything from the beginning on
            return next((each for each, common in followed if common == each.tokens.end == tokens.end), self._root)
        ended = (each for each, common in followed if common == each.tokens.end)
        best = max(ended, key=lambda each: each.tokens.end, default=self._root)
        parting, common = max(followed, key=lambda each: each[1], default=(best, 0))
        if states.recurrent or common - best.tokens.end < LEAST_CUT or self._loaded(parting) is None:
            return best
        return self._cut(parting, tokens.part(0, common))

    def _cut(self, segment: Segment, begin: TokenRun) -> Segment:
        """Cut a segment in two where what is common to others ends; the first of them."""
        tokens, parent, place = segment.tokens, segment.parent, begin.end
        rows = place - tokens.begin
        first, second = ({name: array[:, part].copy() for name, array in (segment.states or {}).items()}
                         for part in (slice(rows), slice(rows, None)))  # fmt: skip
        assert parent is not None
        before = Segment(begin.name(), tokens.part(tokens.begin, place).copied(), first)
        behind = Segment(segment.name, tokens.part(place, tokens.end).copied(), second, children=segment.children)
        for child in behind.children:
            child.parent = behind
        segment.children = []
        self._drop(segment)
        for part, front in ((before, parent), (behind, before)):
            self._add(part, front)
            self._shelve(part, front)  # the second takes the place of the whole
        return before

    def _add(self, segment: Segment, parent: Segment) -> None:
        segment.parent = parent
        parent.children.append(segment)
        self._named[segment.name] = segment
        if segment.states is not None:
            self.bytes += segment.nbytes
            self._used[segment] = None
            self._touch(segment.path())

    def _drop(self, segment: Segment) -> None:
        assert segment.parent is not None
        for child in list(segment.children):
            self._drop(child)
        segment.parent.children.remove(segment)
        self._named.pop(segment.name, None)
        self._release(segment)

    def _release(self, segment: Segment) -> None:
        self.bytes -= segment.nbytes
        self._used.pop(segment, None)
        segment.states = None

    def _touch(self, path: Sequence[Segment]) -> None:
        """Those in front last, so that none goes before those that follow it."""
        for segment in reversed(path):
            if segment in self._used:
                self._used.move_to_end(segment)
        if self.shelf is not None:
            self.shelf.touch([segment.name for segment in reversed(path) if segment.name is not None])

    def _shrink(self) -> None:
        while self.bytes > self.most_bytes:
            oldest = next(iter(self._used))
            if self.shelf is not None and oldest.name is not None and self.shelf.folder.has(oldest.name):
                self._release(oldest)
            else:
                self._drop(oldest)
