"""Reports of many builds: figures, tables, Markdown, and the page on a screen and on a phone."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.reports.lineup_plots import draw_lineup
from lensmith.exporters.reports.lineup_records import (
    Drop,
    Entrant,
    LayerError,
    Lineup,
    Measured,
    TaskResult,
    compared,
    entrant_figures,
    noise_of,
)
from lensmith.exporters.reports.lineup_report import lineup_html, lineup_markdown, lineup_table
from lensmith.exporters.reports.lineup_sections import frontier, lineup_headline, lineup_sections
from lensmith.exporters.reports.records import HISTOGRAM_EDGES, Agreement, Repeated
from lensmith.exporters.reports.report import html
from lensmith.targets.errors import InputError
from rich.console import Console

from tests.exporters.reports.test_calibration_report import found
from tests.exporters.reports.test_report import make_report
from tests.helpers import chromium

HOSTILE = "<script>alert(1)</script> | *a* [b](c) `d`"


def spread(value: float) -> Repeated:
    return Repeated(value, 0.9 * value, 1.1 * value)


def measured(speed: float, memory: int = 100_000_000) -> Measured:
    return Measured(
        500 / speed, spread(5), spread(200 / speed), spread(100 / speed), spread(10 * speed), memory, 50, 40
    )


def entrant(name: str, size: int, speed: float = 1.0, right: float | None = None, **more: Any) -> Entrant:
    tasks = () if right is None else (TaskResult.of("read", "ANLS", [right, right]),)
    values = {
        "is_bundle": True,
        "engine": "engine 1.0",
        "measured": measured(speed),
        "tasks": tasks,
        "command": "make it",
    }
    return Entrant(name, "some model", f"onnx {name}", size_bytes=size, **{**values, **more})


def lineup(*entrants: Entrant, **more: Any) -> Lineup:
    values: dict[str, Any] = {
        "references": {"some model": entrants[0].name},
        "noise": {"decode": 0.1, "first token": 0.05},
        "notes": ("A note.",),
    }
    return Lineup(entrants, threads=2, repeats=3, decode_steps=32, image="a.jpg", prompt="What?", samples="8 questions",
                  environment={"CPU": "Some CPU"}, command="lensmith compare a b", **{**values, **more})  # fmt: skip


def full(name: str = "int4") -> Lineup:
    histogram = (50,) + (0,) * (len(HISTOGRAM_EDGES) - 2)
    layers = tuple(LayerError("decoder", layer, 0.1 + 0.01 * layer) for layer in range(4))
    return lineup(
        entrant("PyTorch float32", 11_000_000, 1.0, 0.95, is_bundle=False, command=""),
        entrant(name, 3_000_000, 4.0, 0.9, drop=Drop(0.05, 0.01, 0.09), layers=layers,
                agreement=Agreement(name, "answers", 50, 0.01, 0.005, 0.03, 0.05, 0.98, histogram)),
        entrant("int8", 5_000_000, 4.1, 0.95, drop=Drop(0.0, -0.01, 0.01), layers=layers),
        entrant("broken", 4_000_000, failure="it was killed", measured=None),
    )  # fmt: skip


def test_figures_are_those_of_the_entrant() -> None:
    found = entrant_figures(full().entrants[1])
    assert found == pytest.approx(
        {"size_mb": 3.0, "load_ms": 125, "image_ms": 5, "vision_ms": 50, "prefill_ms": 25, "first_token_ms": 80,
         "decode_tps": 40, "memory_mb": 100, "accuracy": 90, "accuracy_drop": 5, "kl": 0.01, "top1": 98}
    )  # fmt: skip
    assert entrant_figures(full().entrants[3]) == {"size_mb": 4.0}


def test_the_drop_is_paired() -> None:
    """Of 1, 1, 0 to 1, 0, 0: a third, of three differences 0, 1 and 0."""
    drop = Drop.of([1, 1, 0], [1, 0, 0])
    assert drop.mean == pytest.approx(1 / 3)
    assert (drop.low, drop.high) == pytest.approx((1 / 3 - 1.959964 / 3, 1 / 3 + 1.959964 / 3))


def test_within_the_noise_is_equal() -> None:
    base, near, far = entrant("base", 10), entrant("near", 10, 1.09), entrant("far", 20, 1.2)
    made = lineup(base, near, far)
    assert compared(made, "decode", near, base) == 1.0
    assert compared(made, "decode", far, base) == pytest.approx(1.2)
    assert compared(made, "size", far, base) == 0.5
    assert compared(made, "memory", far, base) == 1.0
    assert compared(made, "decode", dataclasses.replace(far, measured=None), base) is None


def test_noise_is_two_processes_apart_or_the_spread() -> None:
    """Decoding: 10 and 11 tokens/s are 10 % apart, as is half the spread; first token: 305 to 277.7 ms."""
    found = noise_of(measured(1.0), measured(1.1, 102_000_000), [measured(1.0)])
    assert found["decode"] == pytest.approx(0.1)
    assert found["memory"] == pytest.approx(0.02)
    assert found["load"] == pytest.approx(0.1)
    assert found["first token"] == pytest.approx(max(305 / (5 + 300 / 1.1) - 1, 0.1))
    quiet = dataclasses.replace(measured(1.0), decode_tokens_per_s=Repeated(10, 7, 13))
    assert noise_of(quiet, quiet, [])["decode"] == pytest.approx(0.3)


def test_the_frontier_is_what_nothing_beats() -> None:
    small, worse, best, equal = (entrant(name, size, right=right) for name, size, right in
                                 (("a", 10, 0.5), ("b", 20, 0.4), ("c", 30, 0.9), ("d", 40, 0.9)))  # fmt: skip
    assert frontier([equal, best, worse, small]) == [small, best]


def test_json_round_trip() -> None:
    made = full()
    assert Lineup.from_json(made.to_json()) == made
    for text in ("", "[]", "{}", made.to_json().replace("lineup-1", "lineup-2")):
        with pytest.raises(InputError, match="not a report"):
            Lineup.from_json(text)


def test_tables_say_what_was_found() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(lineup_table(full(HOSTILE[:20])))
    text = console.export_text()
    for words in ("3.00 MB", "+5.0", "equal", "it was killed", "A note.", "Some CPU", "decode 10.0 %", "<script>"):
        assert words in text, words
    assert lineup_headline(full()).startswith("2 bundles: int4 is the smallest with 3.00 MB")
    assert lineup_headline(full()).endswith("1 of 4 failed.")
    assert lineup_headline(lineup(entrant("x", 1, measured=None, failure="no"))) == "No bundle could be measured."


def test_parts_of_the_first_token_are_only_those_that_are_told() -> None:
    whole = dataclasses.replace(
        measured(1.0), in_parts=False, image_ms=Repeated(0, 0, 0), vision_ms=Repeated(0, 0, 0), prefill_ms=spread(305)
    )
    made = lineup(entrant("ours", 10), entrant("theirs", 10, is_bundle=False, measured=whole))
    (section,) = [each for each in lineup_sections(made) if each.name == "first_token"]
    told = ("5.0 (4.5 to 5.5)", "200 (180 to 220)", "100 (90.0 to 110)", "305")
    assert [row[2:] for row in section.rows] == [told, ("-", "-", "-", "305")]
    assert "do not tell" in section.lead
    drawn = draw_lineup(made)["first_token"]
    assert "all of it" in drawn
    assert "all of it" not in draw_lineup(lineup(entrant("ours", 10)))["first_token"]


def test_markdown_is_tables_that_nothing_breaks() -> None:
    text = lineup_markdown(full(HOSTILE))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for first, line in itertools.pairwise(lines):
        if set(line) <= set("|- :"):
            assert len(re.split(r"(?<!\\)\|", first)) == len(re.split(r"(?<!\\)\|", line))
    assert "<script" not in text
    assert r"\*a\* \[b\](c) \`d\`" in text
    assert "make it\nlensmith compare a b" in text


def test_encoders_have_errors_of_features() -> None:
    made = measured(1.0)
    made = dataclasses.replace(made, decode_tokens_per_s=None)
    shown = lineup(entrant("fp32", 10, measured=made), entrant("int8", 5, measured=made, feature_error=0.0123))
    (overview, *_) = lineup_sections(shown)
    assert overview.head == ("", "build", "size", "features after", "peak memory", "error of features")
    assert overview.rows[1][-1] == "0.0123"
    assert "its features first" in lineup_headline(shown)
    pytest.importorskip("matplotlib")
    assert lineup_html(shown).count("<svg ") == 3  # time, also for phones, and memory


def test_page_is_whole_and_refers_to_nothing() -> None:
    pytest.importorskip("matplotlib")
    page = lineup_html(full(HOSTILE))
    assert page.count("<svg ") == 6  # five plots, and that of latencies once more for phones
    assert "<script" not in page
    outside = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", page)
    assert "http" not in outside
    assert not re.search(r"<(script|link|img|iframe)|\ssrc=|@import|url\((?!#)", page)
    assert lineup_html(full(HOSTILE)) == page


@pytest.mark.skipif(chromium.program() is None, reason="needs a Chromium")
@pytest.mark.parametrize("kind", ["many", "one"])
def test_nothing_scrolls_sideways(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = "a-name-that-is-long-" * 4
    single = dataclasses.replace(make_report(name), calibration=found(36, mixed=True))
    text = lineup_html(full(name)) if kind == "many" else html(single)
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    opened = "document.querySelectorAll('details').forEach(e => e.open = true)"
    wider = "[...document.querySelectorAll('%s *')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1 && "
    wider += "getComputedStyle(e).overflowX !== 'visible').map(e => e.tagName + ' ' + e.className)"
    with chromium.page(tmp_path / "profile") as page:
        for width, phone in ((390, True), (1280, False)):
            page.resize(width, 900, phone=phone)
            page.open((tmp_path / "report.html").as_uri())
            assert page.see("document.documentElement.scrollWidth") <= width
            page.see(opened)
            assert page.see(wider % ("body" if phone else ".half")) == []
        assert {address.partition(":")[0] for address in page.requests} <= {"file", "data"}
        assert page.problems == []
