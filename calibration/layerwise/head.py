"""Next-token distributions of two models from their last hidden states, without ever holding logits of all words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...exporters.checkpoint.folder import Checkpoint
from ...exporters.graphs.blocks import SourceTensor
from ...exporters.storage.rounding import Groups
from .candidates import some_rows
from .streams import table_blocks

Floats = NDArray[np.float32]
Blocks = Iterator[Floats]


@dataclass(frozen=True)
class Predictions:
    """Of each position: KL(reference || other) in nats, the likeliest tokens, and the loss of the token that comes."""

    kl: NDArray[np.float64]
    reference_top: NDArray[np.int64]
    top: NDArray[np.int64]
    reference_loss: NDArray[np.float64]
    loss: NDArray[np.float64]


class _Softmax:
    """Log of the sum of exponentials, likeliest word and chosen logits of rows, block of words by block of words."""

    def __init__(self, wanted: NDArray[np.int64]) -> None:
        rows = len(wanted)
        self.wanted, self.start = wanted, 0
        self.high, self.total = np.full(rows, -np.inf), np.zeros(rows)
        self.top, self.chosen = np.zeros(rows, np.int64), np.zeros(rows)

    def add(self, logits: Floats) -> NDArray[np.float64]:
        """Count a block [rows, words]; by how much all sums of exponentials were scaled for a new largest logit."""
        best = logits.argmax(1)
        rows = np.arange(len(logits))
        new = np.maximum(self.high, logits[rows, best])
        self.top = np.where(new > self.high, self.start + best, self.top)
        shrink: NDArray[np.float64] = np.exp(self.high - new)
        self.total = self.total * shrink + np.exp(logits - new[:, None], dtype=np.float64).sum(1)
        inside = (self.wanted >= self.start) & (self.wanted < self.start + logits.shape[1])
        self.chosen[inside] = logits[rows[inside], self.wanted[inside] - self.start]
        self.high, self.start = new, self.start + logits.shape[1]
        return shrink

    @property
    def log_total(self) -> NDArray[np.float64]:
        return self.high + np.log(self.total)


def predict(
    reference: Floats, other: Floats, blocks: Blocks, other_blocks: Blocks, following: NDArray[np.int64]
) -> Predictions:
    """Compare hidden states [positions, hidden] through their heads, given as blocks of rows [words, hidden].

    `following` are the tokens that come next, for the losses. KL is summed as E_p[log p - log q] block by block, with
    the running maximum of p (the online softmax of Milakov and Gimelshein, 2018).
    """
    ours, theirs = _Softmax(following), _Softmax(following)
    gap = np.zeros(len(reference))  # sum of exp(p - max) * (p - q)
    for block, other_block in zip(blocks, other_blocks, strict=True):
        p, q = reference @ block.T, other @ other_block.T
        gap *= ours.add(p)
        theirs.add(q)
        gap += np.einsum("rw,rw->r", np.exp(p - ours.high[:, None], dtype=np.float64), (p - q).astype(np.float64))
    kl = gap / ours.total - ours.log_total + theirs.log_total
    return Predictions(
        np.maximum(kl, 0.0), ours.top, theirs.top, ours.log_total - ours.chosen, theirs.log_total - theirs.chosen
    )


def head_blocks(checkpoint: Checkpoint, source: SourceTensor, made: Groups | None) -> Blocks:
    """The rows of an output head, as the checkpoint has them or as integers stand for them."""
    for start, rows in table_blocks(checkpoint, source):
        yield rows if made is None else some_rows(made, slice(start, start + len(rows)))
