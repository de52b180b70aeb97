"""Reports: intervals, JSON, tables and the page."""

from __future__ import annotations

import dataclasses
import io
import re
import sys

import pytest
from lensmith.exporters.reports.intervals import mcnemar, paired_difference, wilson
from lensmith.exporters.reports.records import (
    HISTOGRAM_EDGES,
    Agreement,
    ComponentSize,
    Contender,
    Repeated,
    Report,
    TaskScore,
    Workload,
)
from lensmith.exporters.reports.report import html, table
from lensmith.exporters.reports.sections import headline, sections
from lensmith.targets.errors import InputError, MissingExtra
from rich.console import Console

HOSTILE = '<script>alert("$x_1$")</script> & [red]co'


def spread(value: float) -> Repeated:
    return Repeated.of([value, 0.9 * value, 1.2 * value])


def contender(name: str, *, speed: float, is_bundle: bool = False) -> Contender:
    return Contender(
        name=name, engine="engine 1.0", is_bundle=is_bundle, load_ms=900 / speed, image_ms=spread(8.0),
        vision_ms=spread(400 / speed), prefill_ms=spread(200 / speed), decode_tokens_per_s=spread(10 * speed),
        peak_memory_bytes=int(800e6 / speed),
    )  # fmt: skip


def agreement(name: str, where: str, kl: float) -> Agreement:
    histogram = tuple(int(index == 9) * 50 for index in range(len(HISTOGRAM_EDGES) - 1))
    return Agreement(name, where, 50, kl, kl / 2, 3 * kl, 4 * kl, 0.98, histogram)


def make_report(name: str = "some model") -> Report:
    ours, others = f"lensmith {name}", ("PyTorch float32", "PyTorch bfloat16")
    compared = [(ours, 0.004), (others[1], 0.0002)]
    return Report(
        model=name,
        family="qwen3_vl",
        precision="int4",
        parameters=1000,
        bundle_bytes=3_700_000,
        source_bytes=11_000_000,
        contenders=(contender(ours, speed=4.0, is_bundle=True), *(contender(other, speed=1.0) for other in others)),
        workload=Workload("photo.jpg", 896, 672, name, 611, 588, 32, 3, 2),
        components=(
            ComponentSize("Decoder matrices", 9_000_000, 2_700_000),
            ComponentSize("Vision encoder", 2_000_000, 1_000_000),
        ),
        reference=others[0],
        agreement=tuple(agreement(who, where, kl) for where in ("answers", "prompts") for who, kl in compared),
        perplexity={ours: 1.19, others[0]: 1.18, others[1]: 1.18},
        tasks=(TaskScore("read", 100, 90, 4, 1), TaskScore(name, 50, 20, 2, 3)),
        samples="32 samples of tasks.jsonl with its answers",
        environment={"CPU": "Some CPU", "Python": "3.11"},
        command=f"lensmith compare bundle --against {name}",
        notes=("A note.",),
    )


def test_wilson_interval_of_known_proportions() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_paired_interval_is_that_of_the_formula() -> None:
    low, high = paired_difference(both=20, only_first=12, only_second=2, samples=50)  # margins 32 and 22 of 50
    assert (low, high) == pytest.approx((-0.3292, -0.0562), abs=1e-4)  # 0.0562 to 0.3292 for the first less the second
    same = paired_difference(both=10, only_first=0, only_second=0, samples=12)
    assert same[0] == pytest.approx(-same[1])
    mirrored = paired_difference(both=20, only_first=2, only_second=12, samples=50)
    assert mirrored == pytest.approx((-high, -low))
    assert paired_difference(0, 0, 0, 0) == (-1.0, 1.0)


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 7) == mcnemar(7, 1) == pytest.approx(18 / 256)


def test_ratios_are_to_the_better_of_the_rivals() -> None:
    """The bundle is twice as fast and half as large as the second of them."""
    speeds = {"bundle": 4.0, "one": 1.0, "two": 2.0}
    contenders = tuple(contender(name, speed=speed) for name, speed in speeds.items())
    report = dataclasses.replace(make_report(), contenders=contenders)
    first_token = (8 + 200 + 100) / (8 + 100 + 50)  # the image, the encoder and the prompt
    twice = dict.fromkeys(("load", "vision", "prefill", "decode", "memory"), 2.0)
    assert report.ratios == pytest.approx({**twice, "size": 11 / 3.7, "first_token": first_token})


def test_scores_are_of_what_each_answered_right() -> None:
    score = TaskScore("read", samples=100, both=90, only_reference=4, only_bundle=1)
    assert (score.reference_accuracy, score.bundle_accuracy) == (0.94, 0.91)
    assert (score.reference_interval, score.bundle_interval) == (wilson(94, 100), wilson(91, 100))
    assert score.difference == pytest.approx((-0.03, *paired_difference(90, 4, 1, 100)))
    total = make_report().total
    assert total is not None
    assert (total.samples, total.both, total.only_reference, total.only_bundle) == (150, 110, 6, 4)


def test_repeated_measurements_are_their_median_and_ends() -> None:
    assert Repeated.of([5.0, 1.0, 2.0]) == Repeated(median=2.0, low=1.0, high=5.0)


def test_json_round_trip() -> None:
    report = make_report()
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(report.to_json()).to_json() == report.to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "lensmith-report-1"}',
        make_report().to_json()[:-40],
        make_report().to_json().replace("lensmith-report-1", "lensmith-report-2"),
    ],
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a report"):
        Report.from_json(text)


def test_values_of_another_type_are_refused() -> None:
    text = make_report().to_json().replace('"bundle_bytes": 3700000', '"bundle_bytes": "many"')
    with pytest.raises(InputError, match="not a report"):
        Report.from_json(text)


def test_ratios_compare_with_the_better_rival() -> None:
    report = make_report()
    faster = dataclasses.replace(report.contenders[2], vision_ms=spread(200.0), peak_memory_bytes=400_000_000)
    report = dataclasses.replace(report, contenders=(*report.contenders[:2], faster))
    assert report.ratios["vision"] == pytest.approx(2.0)
    assert report.ratios["memory"] == pytest.approx(2.0)
    assert report.ratios["decode"] == pytest.approx(4.0)
    assert report.ratios["size"] == pytest.approx(11 / 3.7)


def test_all_tasks_together() -> None:
    total = make_report().total
    assert total is not None
    assert (total.samples, total.bundle_accuracy, total.reference_accuracy) == (150, 114 / 150, 116 / 150)
    difference, low, high = total.difference
    assert low < difference < 0 < high


def test_headline_says_better_and_worse() -> None:
    report = make_report()
    assert "75 % less memory" in headline(report)
    slower = dataclasses.replace(contender("lensmith", speed=0.5), is_bundle=True)
    worse = dataclasses.replace(report, contenders=(slower, *report.contenders[1:]), tasks=(), agreement=())
    assert "100 % more memory" in headline(worse)
    assert "at 50.0 % of the speed" in headline(worse)


def test_page_is_whole_and_refers_to_nothing() -> None:
    pytest.importorskip("matplotlib")
    page = html(make_report())
    assert page.count("<svg ") == 6 + 4  # those of the whole width once more for phones
    assert page.count('<div class="wide">') == page.count('<div class="narrow">') == 4
    assert page.count("<section ") == len(list(sections(make_report()))) + 1
    outside = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", page)
    assert "http://" not in outside
    assert "https://" not in outside
    assert not re.search(r"<(script|link|img|iframe)|\ssrc=|@import|url\((?!#)", page)
    assert "#0000" not in page  # every colour became a variable
    assert "3.70 MB" in page
    assert html(make_report()) == page


def test_page_escapes_every_name() -> None:
    pytest.importorskip("matplotlib")
    page = html(make_report(HOSTILE))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("</style>") == 1 + page.count("<svg ")


def test_page_without_tasks_and_distributions() -> None:
    pytest.importorskip("matplotlib")
    report = dataclasses.replace(make_report(), tasks=(), agreement=())
    assert html(report).count("<svg ") == 4 + 2


def test_page_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=re.escape("lensmith[report]")):
        html(make_report())


def test_table_prints_names_as_they_are() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(make_report(HOSTILE)))
    text = console.export_text()
    assert "[red]co" in text
    assert "Time to first token" in text
    assert "Some CPU" in text
