"""Methods compared layer by layer on inputs that calibration never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.calibration.layerwise import stage_quantizer as quantizer
from lensmith.calibration.layerwise import trial
from lensmith.calibration.layerwise.judge import Judgement
from lensmith.calibration.layerwise.prepared_samples import (
    ANSWER,
    BEHIND,
    IMAGE,
    TEXT,
)
from lensmith.calibration.layerwise.stage_quantizer import (
    RECIPES,
    Matrices,
    _climb,
    quantize_group,
    quantize_table,
)
from lensmith.calibration.layerwise.store import Store
from lensmith.calibration.layerwise.streams import SampleStream
from lensmith.calibration.layerwise.trial import (
    GROUPS,
    Trial,
    Unseen,
    no_worse,
)
from lensmith.calibration.layerwise.verdict import NEAREST, SEARCHED, choose
from lensmith.calibration.solvers.methods import METHODS
from lensmith.calibration.solvers.moments import Means, Moments
from lensmith.exporters.storage.rounding import quantize
from lensmith.exporters.storage.scheme import Scheme
from numpy.typing import NDArray

from tests.calibration.layerwise.test_layerwise_store import lazy

Floats = NDArray[np.float32]
SCHEME = Scheme(3, 32, symmetric=False)


def streamed(lengths: list[int]) -> SampleStream:
    """Samples whose values say where they are: sample, position."""
    return SampleStream([{"x": np.array([[[i, p] for p in range(n)]], np.float32)} for i, n in enumerate(lengths)])


def test_places_are_those_of_groups_and_kinds_of_tokens() -> None:
    """Behind one calibrated sample, an own one and a foreign one; answers are of both."""
    kinds = [np.array([TEXT, IMAGE, IMAGE, ANSWER, ANSWER], np.int8), np.array([TEXT, BEHIND, ANSWER], np.int8)]
    made = Trial.of(kinds, [False, True], 1)
    seen = made.see([streamed([4, 5, 3])], "x", 2)
    found = [(group, rows.tolist()) for group, rows, other in seen.cells if (rows == other).all()]
    assert found == [
        ("own kinds", [[1, 0]]), ("own kinds", [[1, 1], [1, 2]]), ("own kinds", [[1, 3], [1, 4]]),
        ("foreign kinds", [[2, 0]]), ("foreign kinds", [[2, 1]]), ("foreign kinds", [[2, 2]]),
        ("answers", [[1, 3], [1, 4], [2, 2]]),
    ]  # fmt: skip


def test_places_are_spread_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "ROWS", 4)
    made = Trial.of([np.zeros(7, np.int8), np.zeros(3, np.int8)], [False, False], 0)
    ((_, rows, _),) = made.see([streamed([7, 3])], "x", 2).cells
    assert rows.tolist() == [[0, 0], [0, 3], [0, 6], [1, 2]]


def test_places_scale_with_what_a_picture_became() -> None:
    """A stage may have other numbers of tokens of a picture than the one in front."""
    made = Trial.of([np.full(4, IMAGE, np.int8)], [True], 0)
    for length, expected in ((4, [0, 1, 2, 3]), (16, [2, 6, 10, 14]), (2, [0, 0, 1, 1])):
        ((group, rows, _),) = made.see([streamed([length])], "x", 2).cells
        assert (group, rows[:, 1].tolist()) == ("foreign kinds", expected)


def test_errors_are_relative_and_kinds_count_the_same() -> None:
    """Of the first group 1 of 4 and 0; of the second, whose inputs have drifted, (3 - 1)² of 3²."""
    one, two = np.array([[2.0, 0.0]], np.float32), np.array([[0.0, 5.0]], np.float32)
    unseen = Unseen([("own kinds", one, one), ("own kinds", two, two),
                     ("answers", np.array([[3.0, 0.0]], np.float32), np.array([[2.0, 0.0]], np.float32))])  # fmt: skip
    weight, other = np.array([[1.0, 1.0]], np.float32), np.array([[0.5, 1.0]], np.float32)
    found = unseen.errors({"w": weight}, {"w": other})
    assert found == {"own kinds": pytest.approx(0.25 / 2), "answers": pytest.approx(4 / 9)}
    assert no_worse({"own kinds": 0.1, "answers": 0.2}, {"own kinds": 0.1, "answers": 0.2})
    assert not no_worse({"own kinds": 0.0, "answers": 0.21}, {"own kinds": 0.1, "answers": 0.2})
    assert no_worse({}, {})


def matrices(seed: int, tokens: int, *, drifted: bool = False) -> Matrices:
    """Two matrices with statistics of a few tokens, and unseen inputs that have little in common with them."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(tokens, 64)).astype(np.float32) * np.linspace(0.2, 3, 64, dtype=np.float32)
    near = x + (0.05 * draw.normal(size=x.shape)).astype(np.float32)
    moments = Moments(64, second_stream=drifted)
    moments.add(x, np.ones(tokens, np.float32), near if drifted else None)
    weights = {name: draw.normal(size=(rows, 64)).astype(np.float32) for name, rows in (("a", 24), ("b", 8))}
    cells = []
    for group in GROUPS:
        inputs = draw.normal(size=(40, 64)).astype(np.float32)
        cells.append((group, inputs, inputs + (0.02 * draw.normal(size=inputs.shape)).astype(np.float32)))
    return Matrices(weights, dict.fromkeys(weights, SCHEME), moments.means(), Unseen(cells))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 200), st.booleans(), st.sampled_from(["mse", "gptq", "descent"]))
def test_nothing_is_worse_than_what_is_simpler(seed: int, tokens: int, drifted: bool, method: str) -> None:
    """On no group, however little the statistics say of the inputs."""
    group = matrices(seed, tokens, drifted=drifted)
    nearest, searched, kept = quantize_group(group, None, RECIPES[method])
    errors = [group.errors(rounded.made) for rounded in (nearest, searched, kept)]
    assert no_worse(errors[1], errors[0])
    assert no_worse(errors[2], errors[1])
    assert nearest.method == "rtn"
    assert searched.method in ("rtn", "mse")
    assert kept.method in {searched.method, method, *RECIPES[method].weaker}


def test_a_method_that_generalizes_badly_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of three tokens and no prior move weights freely; with thousands, the method stays."""
    monkeypatch.setattr(quantizer, "PRIOR", 0.0)
    assert {quantize_group(matrices(seed, 3), None, RECIPES["descent"])[2].method for seed in range(4)} <= {
        "rtn",
        "mse",
    }
    draw = np.random.default_rng(0)
    mixed = draw.normal(size=(64, 64)).astype(np.float32)
    x, unseen = (draw.normal(size=(n, 64)).astype(np.float32) @ mixed for n in (4000, 60))
    weights = {"a": draw.normal(size=(16, 64)).astype(np.float32)}
    means = Means((x.T @ x / len(x)).astype(np.float32), np.abs(x).mean(0), None)
    group = Matrices(weights, {"a": SCHEME}, means, Unseen([(name, unseen, unseen) for name in GROUPS]))
    assert quantize_group(group, None, RECIPES["descent"])[2].method == "descent"


def test_without_unseen_inputs_the_method_is_taken() -> None:
    group = matrices(0, 3)
    made = quantize_group(Matrices(group.weights, group.schemes, group.means), None, RECIPES["gptq"])
    assert [rounded.method for rounded in made] == ["rtn", "mse", "gptq"]


def test_blocks_of_tables_climb_as_far_as_nothing_is_worse() -> None:
    unseen, rows = matrices(1, 20).unseen, np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    coarse, fine = (quantize(rows, bits=bits, group_size=32, symmetric=False) for bits in (2, 4))
    assert _climb(rows, [coarse, fine], unseen) == 1
    assert _climb(rows, [fine, coarse], unseen) == 0
    assert _climb(rows, [coarse, fine, coarse], unseen) == 1
    assert _climb(rows, [fine, coarse, coarse], Unseen(())) == 2


def test_each_block_of_a_table_is_left_to_what_is_not_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method may be good where the search is worse than rounding to nearest, and the other way round."""
    group = matrices(1, 2000)
    rows = np.random.default_rng(1).normal(size=(96, 64)).astype(np.float32)
    table = lazy(tmp_path, "t", rows)
    made = {bits: quantize(rows, bits=bits, group_size=32, symmetric=False) for bits in (2, 3, 4)}
    monkeypatch.setattr(quantizer, "HEAD_ROWS", 40)
    for search, method, kept in ((2, 4, ("rtn", "method")), (4, 2, ("mse", "mse")), (2, 2, ("rtn", "rtn")),
                                 (4, 4, ("mse", "method"))):  # fmt: skip
        ways = {"rtn": 3, "mse": search, "method": method}
        for name, bits in ways.items():
            monkeypatch.setitem(
                METHODS, name, lambda w, *_, bits=bits: quantize(w, bits=bits, group_size=32, symmetric=False)
            )
        found = quantize_table(table, SCHEME, group.inputs, "method", group.unseen)
        for one, name in zip(found, kept, strict=True):
            assert one.groups is not None
            np.testing.assert_array_equal(one.groups.values, made[ways[name]].values)


def judgement(kl: float) -> Judgement:
    return Judgement({}, {}, {}, 1.0, {}, dict.fromkeys(GROUPS, kl))


@pytest.mark.parametrize(
    ("strong", "searched", "kept", "method"),
    [(0.1, 0.2, True, "descent"), (0.25, 0.2, True, SEARCHED), (0.35, 0.2, True, SEARCHED),
     (0.35, 0.31, False, SEARCHED), (0.29, 0.31, True, "descent"), (0.3, 0.3, True, "descent")],
)  # fmt: skip
def test_the_strongest_that_is_worse_than_nothing_simpler(
    strong: float, searched: float, kept: bool, method: str, tmp_path: Path
) -> None:
    judged = {"descent": judgement(strong), SEARCHED: judgement(searched), NEAREST: judgement(0.3)}
    stores = {name: Store(tmp_path / name) for name in ("descent", SEARCHED)}
    made = choose("descent", stores, judged)
    assert (made.kept, made.method) == (kept, method)
    assert made.measured is judged[method if kept else NEAREST]
    assert list(made.tried) == [*stores][: 1 + [*stores].index(method)]
    assert not choose("descent", {}, judged).kept
