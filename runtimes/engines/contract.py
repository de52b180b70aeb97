"""What every engine offers: features of images, and steps of a decoder over the states of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..media.images import Grid, Patches

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]
Arrays: TypeAlias = Mapping[str, NDArray[Any]]  # by the names of a graph's inputs or outputs


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision encoder makes of an image."""

    features: Floats  # [tokens, hidden]
    deepstack: Floats | None = None  # [taps, tokens, hidden]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.features.nbytes + (0 if self.deepstack is None else self.deepstack.nbytes)

    def __getitem__(self, tokens: slice) -> ImageFeatures:
        return ImageFeatures(self.features[tokens], None if self.deepstack is None else self.deepstack[:, tokens])

    @staticmethod
    def join(parts: list[ImageFeatures]) -> ImageFeatures:
        """The features of several images in the order of their tokens."""
        if len(parts) == 1:
            return parts[0]
        taps = [p.deepstack for p in parts if p.deepstack is not None]
        features = np.concatenate([p.features for p in parts])
        return ImageFeatures(features, np.concatenate(taps, axis=1) if taps else None)


class Vision(Protocol):
    """A vision encoder. It encodes one image at a time, so that memory follows the largest image."""

    def __call__(self, patches: Patches, grid: Grid, /) -> ImageFeatures:
        """Features [tokens, hidden] of patches [patches, patch_dim] with their grid (frames, height, width).

        An encoder for images of one size takes their pixels [1, 3, height, width], or those of all tiles of an image,
        whose features follow one another.
        """


@dataclass(frozen=True)
class Step:
    """Tokens that are appended to a conversation, and what is wanted of them."""

    ids: Ints  # [seq]
    positions: Ints  # [3, seq]; a graph whose tokens have one position each takes the first row
    images: ImageFeatures | None = None  # of the image tokens among them
    num_logits: int = 1  # positions at the end that logits are wanted of
    num_hidden_states: int = 0  # the same for hidden states, which are at least as many as logits
    hidden_states: Floats | None = None  # [seq, hidden], for a graph of multi-token prediction
    undoable: int = 0  # tokens at the end that may be forgotten one by one, not all; more than a cache may allow few


KeptTokens: TypeAlias = Mapping[str, NDArray[Any]]


class Kept(Enum):
    """What states of an engine give of some tokens, so that other states go on from there."""

    ROWS = "rows"  # keys and values [kv_heads, tokens, head_dim] of these tokens, and all recurrent states behind them
    WHOLE = "whole"  # everything from the beginning of the conversation on


class States(Protocol):
    """What one conversation keeps in a decoder."""

    @property
    def length(self) -> int:
        """Tokens in them."""

    @property
    def sharing(self) -> Kept | None:
        """What `keep` gives; None: nothing, as the states lie on a device."""

    @property
    def recurrent(self) -> bool:
        """Whether some of them go back to a length only where a copy was saved."""

    @property
    def hidden_states(self) -> Floats:
        """The hidden states [positions, hidden] of the latest step, where the graph gives them."""

    def reach(self, wanted: int, /) -> int:
        """The longest length up to `wanted` that `rewind` can go back to."""

    def rewind(self, wanted: int, /) -> int:
        """Forget all tokens behind the first `wanted`, and more where there is no way back; how many are left."""

    def save(self) -> None:
        """Keep a copy, where one is needed to come back to this length."""

    def keep(self, begin: int, /) -> KeptTokens:
        """Copies of what they hold of the tokens from `begin` on, in memory of their own."""

    def adopt(self, parts: Sequence[tuple[int, KeptTokens]], positions: Ints, wanted: int, known: int, /) -> int:
        """Go on from what other states kept: parts one behind the other, each with the place where it begins.

        `positions` [3, seq] are those of all their tokens, of which the first `known` are in these states already and
        the first `wanted` shall be. Returns how many are, which may be fewer. Raises ValueError for what does not fit.
        """


class Decoder(Protocol):
    """The weights of a decoder in an engine, which all conversations share. Threads may call it: they take turns."""

    capacity: int  # tokens that fit in the states of a conversation
    hidden: int
    vocab: int
    taps: int  # of DeepStack
    recurrent: bool  # whether there are states that do not simply get shorter
    drafts: bool  # whether a step of a few tokens takes little longer than one of one, and is forgotten token by token

    def open_states(self) -> States:
        """States of a new conversation, with no token in them."""

    def run(self, states: States, step: Step, /) -> Floats:
        """Append tokens to a conversation; logits float32 [num_logits, vocab], valid until its next step.

        Raises InputError where the states are full, and for what is no token or position of this graph.
        """


@dataclass(frozen=True)
class OpenedEngines:
    """The two parts of a model."""

    vision: Vision
    decoder: Decoder
