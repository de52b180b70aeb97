"""Next-token distributions against each other: KL divergence, agreement of the likeliest token, loss of an answer."""

from __future__ import annotations

import numpy as np

from ...runtimes.engines.contract import Floats, Ints


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities [positions, vocab] of logits, row by row so that large vocabularies need little memory."""
    out = np.empty_like(logits)
    for row, values in zip(out, logits, strict=True):
        shifted = values.astype(np.float64) - values.max()
        row[:] = shifted - np.log(np.exp(shifted).sum())
    return out


def compare_with(reference: Floats, values: Floats) -> tuple[list[float], list[bool]]:
    """KL(reference || values) in nats, and whether the likeliest token is the same, for each position."""
    kl = [_kl(p.astype(np.float64), q) for p, q in zip(reference, values, strict=True)]
    return kl, (reference.argmax(1) == values.argmax(1)).tolist()


def _kl(p: np.ndarray[tuple[int], np.dtype[np.float64]], q: Floats) -> float:
    return max(0.0, float(np.exp(p) @ (p - q)))


def losses(log_probabilities: Floats, answer: Ints) -> list[float]:
    """Negative log-probability in nats of each token of an answer, predicted by the last positions."""
    rows = log_probabilities[-len(answer) :]
    return [-float(value) for value in rows[np.arange(len(answer)), answer]]
