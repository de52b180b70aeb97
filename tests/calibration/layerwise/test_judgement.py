"""What compressed weights are judged by, of samples and predictions worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from lensmith.calibration.layerwise.head import Predictions
from lensmith.calibration.layerwise.judge import (
    Judgement,
    _judgement,
    _positions,
    worse_groups,
)
from lensmith.calibration.layerwise.prepared_samples import (
    ANSWER,
    BEHIND,
    IMAGE,
    TEXT,
    Sample,
)
from lensmith.calibration.layerwise.shares import Shares
from lensmith.calibration.layerwise.trial import GROUPS

INTS = np.int64


def sample(ids: list[int], kinds: list[int], *, answer: int = 0, own: bool = False, task: str = "colours") -> Sample:
    positions = np.tile(np.arange(len(ids)), (3, 1))
    return Sample(task, np.array(ids), positions, np.array(kinds, np.int8), (), answer, own)


# The token behind each position but the last is what it predicts: the answer 8 9 is predicted by positions 2 and 3.
GIVEN = sample([5, 6, 7, 8, 9], [TEXT, IMAGE, ANSWER, ANSWER, ANSWER], answer=2)
OTHER = sample([5, 6, 8, 9], [IMAGE, ANSWER, ANSWER, ANSWER], answer=2)
OWN = sample([5, 4, 3], [TEXT, ANSWER, ANSWER], answer=1, own=True, task="open")
PLAIN = sample([5, 6, 7, 8], [TEXT, IMAGE, BEHIND, BEHIND], task="open")


def test_positions_are_spread_and_hold_the_answer() -> None:
    long = sample(list(range(12)), [TEXT] * 12, answer=2)
    assert _positions(long, 3).tolist() == [0, 5, 9, 10]  # nothing follows the last token, 11
    assert _positions(sample(list(range(12)), [TEXT] * 12), 3).tolist() == [0, 5, 10]
    assert _positions(long, 100).tolist() == list(range(11))
    assert _positions(long, 1).tolist() == [0, 9, 10]


def predictions(kl: list[float], top: list[int], right: list[int], loss: list[float]) -> Predictions:
    return Predictions(np.array(kl), np.array(right, INTS), np.array(top, INTS), np.array(loss) / 2, np.array(loss))


def test_given_answers_are_what_counts() -> None:
    """Two given answers, of which one is met in full; the model's own answer has no right one."""
    samples, rows = [GIVEN, OTHER, OWN], [np.array([0, 2, 3]), np.array([0, 1, 2]), np.array([0, 1])]
    found = predictions([1, 2, 4, 8, 16, 32, 64, 128], [1, 8, 9, 1, 8, 1, 1, 3], [1, 8, 9, 2, 2, 2, 2, 3],
                        [9, 1, 2, 9, 3, 6, 9, 9])  # fmt: skip
    judged = _judgement(samples, rows, found)
    assert judged.positions == {"text": 2, "image": 1, "answers": 5}
    assert judged.kl == {"text": (1 + 64) / 2, "image": 8, "answers": (2 + 4 + 16 + 32 + 128) / 5}
    assert judged.mean_kl == pytest.approx((32.5 + 8 + 36.4) / 3)
    assert judged.top1 == {"text": 0.5, "image": 0, "answers": 3 / 5}
    assert judged.perplexity == pytest.approx(np.exp((1 + 2 + 3 + 6) / 4))  # of the four that predict given answers
    assert judged.accuracy == {"colours": 0.5}


def test_perplexity_without_given_answers() -> None:
    """Of the model's own answers; without those, of all but what images predict."""
    found = predictions([0] * 5, [0] * 5, [0] * 5, [1, 2, 4, 8, 16])
    rows = [np.array([0, 1, 2]), np.array([0, 1])]
    assert _judgement([PLAIN, OWN], rows, found).perplexity == pytest.approx(np.exp(16))
    without = sample([5, 4, 3], [BEHIND, TEXT, TEXT])
    judged = _judgement([PLAIN, without], rows, found)
    assert judged.perplexity == pytest.approx(np.exp((1 + 4 + 8 + 16) / 4))
    assert judged.positions == {"text": 2, "image": 1, "text behind an image": 2}
    assert judged.accuracy == {}
    hopeless = predictions([0] * 5, [0] * 5, [0] * 5, [1e9] * 5)
    assert np.isfinite(_judgement([PLAIN, without], rows, hopeless).perplexity)


def test_shares_of_parts() -> None:
    """Half the weight is the image's, a quarter each the text's, behind images too, and the answers'."""
    first, second = Shares().weights([PLAIN.kinds, GIVEN.kinds])
    np.testing.assert_allclose(first, [0.25 / 4, 0.5 / 2, 0.25 / 4, 0.25 / 4])
    np.testing.assert_allclose(second, [0.25 / 4, 0.5 / 2, 0.25 / 3, 0.25 / 3, 0.25 / 3])


def test_answers_follow_the_farthest_position() -> None:
    """An image of one row and three columns, whose last token is the last of the question."""
    positions = np.array([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 2, 3]])
    asked = Sample("open", np.array([5, 6, 6, 6]), positions, np.array([TEXT, *[IMAGE] * 3], np.int8), (), 0)
    found = asked.answered(np.array([8, 9]), own=True)
    assert found.ids.tolist() == [5, 6, 6, 6, 8, 9]
    assert found.positions.tolist() == [[0, 1, 1, 1, 4, 5], [0, 1, 1, 1, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert found.kinds.tolist() == [TEXT, IMAGE, IMAGE, ANSWER, ANSWER, ANSWER]
    assert (found.answer, found.own, asked.kinds.tolist()) == (2, True, [TEXT, IMAGE, IMAGE, IMAGE])
    assert asked.answered(np.array([], INTS), own=True).answer == 0


def test_weights_are_worse_where_they_are_further_away_than_rounding_and_than_noise() -> None:
    def judged(own: float, foreign: float, answers: float) -> Judgement:
        groups = dict(zip(GROUPS, (own, foreign, answers), strict=True))
        return Judgement(kl={}, top1={}, positions={}, perplexity=1.0, accuracy={}, groups=groups)

    nearest = judged(0.1, 0.2, 2e-5)
    assert worse_groups(judged(0.05, 0.2, 1e-4), nearest) == []
    assert worse_groups(judged(0.11, 0.1, 1e-5), nearest) == ["own kinds"]
    assert worse_groups(judged(0.1, 0.21, 1.1e-4), nearest) == ["foreign kinds", "answers"]
    assert worse_groups(judged(0.1, 0.2, 0.0011), judged(0.1, 0.2, 0.001)) == ["answers"]
