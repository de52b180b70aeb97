"""How much each part of the samples counts in the statistics that weights are calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .prepared_samples import (
    ANSWER,
    BEHIND,
    IMAGE,
    TEXT,
)

Kinds = Sequence[NDArray[np.int8]]  # of the tokens of each sample; one for all where they are the same


@dataclass(frozen=True)
class Shares:
    """Of each part, whatever the number of its tokens; parts without any leave theirs to the others."""

    text: float = 0.25
    image: float = 0.5
    answer: float = 0.25  # positions that predict answers

    def weights(self, kinds: Kinds) -> list[NDArray[np.float32]]:
        """The weight of each token of each sample."""
        weights = [np.zeros(len(kind), np.float32) for kind in kinds]
        for share, members in ((self.text, (TEXT, BEHIND)), (self.image, (IMAGE,)), (self.answer, (ANSWER,))):
            chosen = [np.isin(kind, members) for kind in kinds]
            count = sum(int(np.count_nonzero(own)) for own in chosen)
            for weight, own in zip(weights, chosen, strict=True):
                weight[own] = share / max(count, 1)
        return weights
