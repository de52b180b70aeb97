"""The figures of outputs against PyTorch's traces, one by one, and the verdict that they lead to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.bundle.manifest import Manifest
from lensmith.runtimes.engines.contract import Floats, ImageFeatures
from lensmith.runtimes.evidence.outputs import Fed, Output
from lensmith.runtimes.evidence.replay import (
    EXACT,
    TIE,
    AgainstPyTorch,
    Exactness,
    Row,
    divergence,
    judged,
    relative_error,
    summarize,
)
from lensmith.runtimes.evidence.traces import (
    TOP,
    CaseTrace,
    ImageTrace,
    Traces,
    log_sum,
    tops_of,
)
from lensmith.runtimes.evidence.verification import VerifyReport, _condense, is_exact

from tests.helpers import contents

VOCAB, STEPS = 40, 3


def f32(values: Any) -> Any:
    return np.asarray(values, np.float32)


DRAW = np.random.default_rng(5)
FEATURES = DRAW.normal(size=(6, 8)).astype(np.float32)
TAPS = DRAW.normal(size=(2, 6, 8)).astype(np.float32)
LOGITS = DRAW.normal(0, 3, (STEPS, VOCAB)).astype(np.float32)


def traces(logits: Floats = LOGITS) -> Traces:
    image = ImageTrace("picture", (1, 4, 6), "0" * 64, ImageFeatures(FEATURES, TAPS))
    answer = [int(row.argmax()) for row in logits]
    case = CaseTrace("case", [], [1, 2, 3], logits[0], answer, tops_of(logits))
    return Traces("PyTorch", (image,), (case,))


def rows(*outputs: Fed | Output, logits: Floats = LOGITS) -> list[Row]:
    against = AgainstPyTorch(traces(logits))
    return [row for output in outputs for row in against.rows(output)]


def answer(logits: Any) -> list[Output]:
    return [Output("case", "logits", step, np.asarray(row, np.float32)) for step, row in enumerate(logits)]


def value(found: list[Row], figure: str) -> float:
    return next(row.value for row in found if row.figure == figure)


def test_the_same_outputs_have_no_error() -> None:
    features = [Output("picture", "deepstack_features", tap, TAPS[tap]) for tap in (0, 1)]
    found = rows(*features, Output("picture", "image_features", 0, FEATURES), *answer(LOGITS))
    figures = {row.figure for row in found}
    assert figures == {"deepstack_features_error[0]", "deepstack_features_error[1]", "image_features_error",
                       "logits_error", "logits_kl", "top1_agreement", "step_logits_error", "step_logits_kl",
                       "greedy_agreement"}  # fmt: skip
    assert all(judged(row, EXACT).passed for row in found)
    assert value(found, "greedy_agreement") == value(found, "top1_agreement") == 1


def test_each_output_is_compared_with_its_own() -> None:
    for tap in (0, 1):
        assert rows(Output("picture", "deepstack_features", tap, TAPS[1 - tap]))[0].value > 0.5
    assert np.isinf(rows(Output("picture", "deepstack_features", 2, TAPS[0]))[0].value)
    assert np.isinf(rows(Output("picture", "deepstack_features", 0, np.zeros((0, 0), np.float32)))[0].value)
    assert rows(Output("picture", "image_features", 0, TAPS[0]))[0].value > 0.5
    shifted = rows(*answer(LOGITS[[0, 2, 1]]))
    assert [row.value > 0.1 for row in shifted if row.figure == "step_logits_error"] == [True, True]


def test_drafts_are_compared_with_those_of_their_step() -> None:
    drafts = LOGITS[::-1] + f32([[1], [2], [3]])
    case = replace(traces().cases[0], drafts=tops_of(drafts))
    against = AgainstPyTorch(replace(traces(), cases=(case,)))
    for step in (1, 2, 3):
        right, wrong = (
            [*against.rows(Output("case", "draft_logits", step, each))] for each in (drafts[step - 1], drafts[step - 2])
        )
        assert [(row.figure, row.value, row.output) for row in right] == [
            ("draft_logits_error", 0, f"mtp: logits at step {step}"),
            ("draft_logits_kl", 0, f"mtp: logits at step {step}"),
        ]
        assert all(judged(row, EXACT).passed for row in right)
        assert not any(judged(row, EXACT).passed for row in wrong)
    assert not rows(Output("case", "draft_logits", 1, drafts[0]))  # of traces without any


def test_inputs_that_differ_fail_whatever_the_precision() -> None:
    for same in (True, False):
        row = rows(Fed("case", "token ids", "token_ids_differ", same))[0]
        assert judged(row, None).passed == judged(row, EXACT).passed == same


def test_the_error_is_relative_to_the_largest_value() -> None:
    expected = np.array([1.0, -4.0, 2.0], np.float32)
    assert relative_error(expected + f32([0, 0, 1]), expected) == 0.25
    assert relative_error(expected - f32([0, 2, 0]), expected) == 0.5
    assert relative_error(f32([0.5]), f32([0])) == 0.5
    for wrong in (expected[:2], expected * f32(np.nan), expected + f32([0, np.inf, 0])):
        assert np.isinf(relative_error(wrong, expected))


def test_the_divergence_is_of_the_found_from_the_expected() -> None:
    one, other = np.log([0.5, 0.5]), np.log([0.9, 0.1])
    assert divergence(one, other) == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    assert divergence(other, one) == pytest.approx(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5))
    assert divergence(one, one) == divergence(one, one + 1e-9) == 0  # rounding alone makes none below zero
    assert np.isinf(divergence(one, np.array([np.nan, 0.0])))


def test_the_divergence_of_a_prompt_is_of_all_tokens() -> None:
    changed = LOGITS.copy()
    last = int(LOGITS[0].argmin())
    changed[0, last] += 6
    expected = LOGITS[0].astype(np.float64) - log_sum(LOGITS[:1])[0]
    found = changed[0].astype(np.float64) - log_sum(changed[:1])[0]
    exact = float((np.exp(expected) * (expected - found)).sum())
    assert value(rows(*answer(changed)), "logits_kl") == pytest.approx(exact)
    assert exact > 1e-4


def test_the_divergence_of_a_step_counts_the_rest_as_one_more_token() -> None:
    """A shift of the recorded head alone moves probability to the rest; one of all logits moves nothing."""
    head = np.argsort(-LOGITS[1])[:TOP]
    changed = LOGITS.copy()
    changed[1, head] -= 1
    expected = np.exp(LOGITS[1].astype(np.float64) - log_sum(LOGITS[1:2])[0])
    found = np.exp(changed[1].astype(np.float64) - log_sum(changed[1:2])[0])
    pairs = [*zip(expected[head], found[head], strict=True), (1 - expected[head].sum(), 1 - found[head].sum())]
    exact = sum(p * np.log(p / q) for p, q in pairs)
    assert value(rows(*answer(changed)), "step_logits_kl") == pytest.approx(exact, rel=1e-4)
    everything = rows(*answer(LOGITS + f32([[0], [1], [1]])))
    assert value(everything, "step_logits_kl") < 1e-6
    assert value(everything, "step_logits_error") > 0.05


def test_greedy_agreement_counts_each_step() -> None:
    for wrong in range(STEPS):
        changed = LOGITS.copy()
        changed[wrong, LOGITS[wrong].argmin()] = 99
        found = rows(*answer(changed))
        assert value(found, "greedy_agreement") == pytest.approx(2 / 3)
        assert value(found, "top1_agreement") == (0 if wrong == 0 else 1)
        failed = [row.figure for row in found if not judged(row, EXACT).passed]
        assert "greedy_agreement" in failed
    changed = LOGITS.copy()
    changed[:, 0] = 99
    assert value(rows(*answer(changed)), "greedy_agreement") == 0


def test_agreements_of_two_runs_are_counted_anew() -> None:
    against = AgainstPyTorch(traces())
    for _ in range(2):
        found = [row for output in answer(LOGITS) for row in against.rows(output)]
        assert value(found, "greedy_agreement") == 1


def test_only_the_tied_tokens_agree_in_a_tie() -> None:
    """A tie does not make every token right."""
    tied = LOGITS.copy()
    order = np.argsort(-tied[0])
    tied[0, order[1]] = tied[0, order[0]] * (1 - TIE / 2)
    for place, agrees in ((0, 1), (1, 1), (2, 0)):
        found = tied.copy()
        found[0, order[place]] = 99
        assert value(rows(*answer(found), logits=tied), "top1_agreement") == agrees
    apart = LOGITS.copy()
    apart[0, order[1]] = apart[0, order[0]] * (1 - 2 * TIE)
    found = apart.copy()
    found[0, order[1]] = 99
    assert value(rows(*answer(found), logits=apart), "top1_agreement") == 0


def test_nothing_that_is_not_finite_passes() -> None:
    for step in range(STEPS):
        changed = LOGITS.copy()
        changed[step, 7] = np.nan
        found = [judged(row, EXACT) for row in rows(*answer(changed))]
        figures = {row.figure for row in found if not row.passed}
        assert figures >= ({"step_logits_kl"} if step else {"logits_error", "logits_kl"})


def test_each_figure_has_a_limit_of_its_own() -> None:
    limits = Exactness(error=0.1, kl=0.01, agreement=0.5)
    edges = {"logits_error": 0.1, "step_logits_error": 0.1, "image_features_error": 0.1, "logits_kl": 0.01,
             "step_logits_kl": 0.01}  # fmt: skip
    for figure, edge in edges.items():
        passed = [judged(Row("c", "o", figure, edge * share), limits) for share in (0.99, 1, 1.01)]
        assert [(row.limit, row.passed) for row in passed] == [(edge, True), (edge, True), (edge, False)]
    agreed = [judged(Row("c", "o", "greedy_agreement", share), limits).passed for share in (0.49, 0.5, 0.51)]
    assert agreed == [False, True, True]


def test_limits_tell_the_smallest_mistake_from_float32() -> None:
    """Another approximation of GELU is off by 2e-4, kernels that sum in another order by 1e-5."""
    assert 1e-5 < EXACT.error < 2e-4
    assert EXACT.agreement == 1
    assert 1e-5 < TIE < 2e-4


def test_summaries_keep_the_worst() -> None:
    found = [
        Row("a", "o", "logits_error", 0.1),
        Row("b", "o", "logits_error", 0.25),
        Row("c", "o", "logits_error", 0.2),
    ]
    found += [Row("a", "o", "greedy_agreement", v) for v in (0.9, 0.4, 1.0)]
    assert summarize(found) == {"logits_error": 0.25, "greedy_agreement": 0.4}


def test_the_shown_row_is_the_first_that_fails_or_the_nearest() -> None:
    def row(value: float, passed: bool = True, case: str = "a", figure: str = "f") -> Row:
        return Row(case, f"step {value}", figure, value, 1.0, passed)

    shown = list(_condense([row(0.1), row(0.5), row(0.3), row(0.7, case="b"), row(0.2, figure="g")]))
    assert [each.value for each in shown] == [0.5, 0.7, 0.2]
    shown = list(_condense([row(0.1), row(2.0, passed=False), row(3.0, passed=False), row(0.5)]))
    assert [each.value for each in shown] == [2.0]
    shown = list(_condense([row(0.9), row(0.2, passed=False), row(0.95)]))  # as of agreements, where less is worse
    assert [each.value for each in shown] == [0.2]


def test_logs_of_sums_are_exact_for_logits_of_any_size() -> None:
    rows = f32([[1000, 0, 0], [-1000, -1000, -2000], [0, 0, 0]])
    np.testing.assert_allclose(log_sum(rows), [1000, -1000 + np.log(2), np.log(3)], rtol=1e-12)


def test_a_report_fails_by_any_row_and_names_the_first() -> None:
    good, bad, worse = (Row("c", name, "f", v, 1.0, v <= 1) for name, v in (("x", 0.5), ("y", 2.0), ("z", 3.0)))
    report = VerifyReport("b", "r", False, (good, bad, worse, good))
    assert not report.passed
    assert report.first_divergence == bad
    assert report.to_json()["first_divergence"]["output"] == "y"
    assert VerifyReport("b", "r", False, (good,)).passed


def test_which_bundles_must_give_pytorchs_values() -> None:
    def manifest(bits: int = 32, dialect: str = "ort", **options: Any) -> Manifest:
        return contents.manifest(
            {"decoder": {"dialect": dialect}}, options=options, precision={"w": {"bits": 32}, "v": {"bits": bits}}
        )

    assert is_exact(manifest())
    assert is_exact(manifest(dialect="tensorrt", format="tensorrt"))
    assert not is_exact(manifest(bits=16))
    assert not is_exact(manifest(dialect="cuda"))
    assert not is_exact(manifest(format="gguf"))
    assert not is_exact(manifest(kv_cache="int8"))
