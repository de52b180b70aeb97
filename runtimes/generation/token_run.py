"""Tokens that states hold, or that a prompt has: their ids, positions and images, and what two runs have in common."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from ..engines.contract import Ints
from ..prompt.requests import Request
from ..storage.cache_folder import NAME
from .prefill import shared


@dataclass(frozen=True)
class TokenRun:
    """Tokens of a conversation from `begin` on: ids [seq], positions [3, seq], and the images that begin among them."""

    ids: Ints
    positions: Ints
    images: tuple[tuple[int, bytes], ...] = ()  # the first token of each in the conversation, and its key
    begin: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def end(self) -> int:
        """The place in the conversation behind the last of them."""
        return self.begin + len(self.ids)

    @classmethod
    def of(cls, request: Request) -> TokenRun:
        """A whole prompt."""
        begins = map(int, request.prompt.image_spans[:, 0])
        images = zip(begins, (image.key for image in request.images), strict=True)
        return cls(request.prompt.ids, request.positions, tuple(images))

    def part(self, begin: int, end: int) -> TokenRun:
        """Those from `begin` to `end`, counted from the beginning of the conversation."""
        inside = slice(begin - self.begin, end - self.begin)
        images = tuple(image for image in self.images if begin <= image[0] < end)
        return TokenRun(self.ids[inside], self.positions[:, inside], images, begin)

    def common(self, other: TokenRun) -> int:
        """How many tokens two runs from one place begin with: the same ones at the same positions, of the same images.

        Behind a video that lasts longer than its text, an answer has other positions than in a later turn's prompt.
        """
        length = shared(self.ids, other.ids)
        moved = (self.positions[:, :length] != other.positions[:, :length]).any(axis=0)
        length = int(moved.argmax()) if moved.any() else length
        for pair in zip_longest(self.images, other.images):
            if pair[0] != pair[1]:
                return min(length, *(image[0] - self.begin for image in pair if image is not None))
        return length

    def copied(self) -> TokenRun:
        """The same in memory of its own."""
        return TokenRun(self.ids.copy(), self.positions.copy(), self.images, self.begin)

    def name(self) -> str:
        """A hash of these tokens, positions and images."""
        digest = hashlib.sha256(f"{self.begin} {[*self.images]}".encode())
        for row in (self.ids, *self.positions):
            digest.update(np.ascontiguousarray(row, np.int64).data)
        return digest.hexdigest()[:NAME]
