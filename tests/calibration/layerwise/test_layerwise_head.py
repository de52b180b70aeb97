"""Next-token distributions compared block by block, against log-softmax over all words in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.calibration.layerwise import streams
from lensmith.calibration.layerwise.head import Predictions, head_blocks, predict
from lensmith.calibration.layerwise.streams import table_rows
from lensmith.exporters.storage.rounding import dequantize, quantize
from numpy.typing import NDArray

from tests.helpers.layered import Bench

Floats = NDArray[np.float32]


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    high = logits.max(1, keepdims=True)
    out: NDArray[np.float64] = logits - high - np.log(np.exp(logits - high).sum(1, keepdims=True))
    return out


def naive(
    reference: Floats, other: Floats, head: Floats, other_head: Floats, following: NDArray[np.int64]
) -> Predictions:
    p, q = (
        log_softmax(h.astype(np.float64) @ w.astype(np.float64).T) for h, w in ((reference, head), (other, other_head))
    )
    rows = np.arange(len(p))
    return Predictions((np.exp(p) * (p - q)).sum(1), p.argmax(1), q.argmax(1), -p[rows, following], -q[rows, following])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_predictions_are_those_of_whole_distributions(data: st.DataObject) -> None:
    rows, words, hidden = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 60)), data.draw(st.integers(1, 8))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    size = data.draw(st.sampled_from([0.01, 1.0, 30.0]))  # nearly even, peaked, and with logits of hundreds
    reference = (size * draw.normal(size=(rows, hidden))).astype(np.float32)
    other = reference + (data.draw(st.sampled_from([0.0, 0.1, 3.0])) * draw.normal(size=reference.shape)).astype(
        np.float32
    )
    head = draw.normal(size=(words, hidden)).astype(np.float32)
    other_head = head + np.float32(0.01) * draw.normal(size=head.shape).astype(np.float32)
    following = draw.integers(0, words, rows)
    cuts = sorted(data.draw(st.sets(st.integers(1, words - 1), max_size=4)))
    blocks, other_blocks = (iter(np.split(matrix, cuts)) for matrix in (head, other_head))
    found, expected = (
        predict(reference, other, blocks, other_blocks, following),
        naive(reference, other, head, other_head, following),
    )
    # Logits are float32: their last bit is 2^-23 of the largest, and the sums over a word's products have a few.
    largest = max(float(np.abs(h @ w.T).max()) for h, w in ((reference, head), (other, other_head)))
    near = 1e-6 + 4e-6 * largest
    np.testing.assert_allclose(found.kl, expected.kl, rtol=1e-5, atol=near)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5, atol=near)
    np.testing.assert_allclose(found.reference_loss, expected.reference_loss, rtol=1e-5, atol=near)
    assert (found.kl >= 0).all()
    for top, hidden_states, weights in ((found.reference_top, reference, head), (found.top, other, other_head)):
        logits = hidden_states.astype(np.float64) @ weights.astype(np.float64).T
        lost = logits.max(1) - logits[np.arange(rows), top]  # rounding may decide between words that are nearly alike
        assert lost.max() <= near


def test_the_same_model_has_no_divergence() -> None:
    draw = np.random.default_rng(0)
    states, head = draw.normal(size=(5, 8)).astype(np.float32), draw.normal(size=(90, 8)).astype(np.float32)
    found = predict(states, states, iter([head]), iter([head]), np.zeros(5, np.int64))
    assert found.kl.max() < 1e-12
    np.testing.assert_array_equal(found.top, found.reference_top)
    np.testing.assert_array_equal(found.loss, found.reference_loss)


@pytest.mark.parametrize("rows", [100, 4096])
@pytest.mark.parametrize("bench", ["llava"], indirect=True)
def test_tables_come_in_blocks(bench: Bench, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and by id, whatever the size of a block; the last is not full."""
    monkeypatch.setattr(streams, "TABLE_ROWS", rows)
    checkpoint, source = bench.model.checkpoint, bench.model.head
    table = checkpoint.tensor(source.name).numpy()
    assert len(table) % rows
    np.testing.assert_array_equal(np.concatenate([*head_blocks(checkpoint, source, None)]), table)
    made = quantize(table, bits=4, group_size=32, symmetric=False)
    np.testing.assert_array_equal(np.concatenate([*head_blocks(checkpoint, source, made)]), dequantize(made))
    ids = np.unique([0, 99, 100, len(table) - 1, *np.random.default_rng(0).integers(0, len(table), 50)])
    np.testing.assert_array_equal(table_rows(checkpoint, source, ids), table[ids])
    assert table_rows(checkpoint, source, ids[:0]).shape == (0, table.shape[1])
