"""The calibration of a bundle in reports: its records, what is said, what is drawn, and the commands that show it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import io
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.reports import calibration_plots
from lensmith.exporters.reports.calibration_sections import sections
from lensmith.exporters.reports.calibration_summary import headline, tiles
from lensmith.exporters.reports.records import Report
from lensmith.exporters.reports.report import (
    calibration_html,
    calibration_table,
    html,
    table,
)
from lensmith.exporters.reports.sections import ReportSection
from lensmith.exporters.reports.svg import HALF, STYLE, WIDTH
from lensmith.runtimes.bundle.calibration_evidence import (
    CALIBRATED,
    NEAREST,
    CalibrationEvidence,
    Judged,
    MatrixPlace,
    drifts,
    place,
    read_evidence,
    short_kinds,
)
from lensmith.runtimes.storage.files import dump_json
from lensmith.targets.errors import InputError
from rich.console import Console

from tests.exporters.reports.test_report import HOSTILE, make_report
from tests.helpers import calibrations

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 4},
    "one layer": {"layers": 1, "mixed": True},
    "36 layers, mixed": {"layers": 36, "mixed": True},
    "hybrid, all bits": {"layers": 28, "hybrid": True, "wide": True},
    "80 layers": {"layers": 80, "mixed": True},
    "fallback": {"layers": 5, "kept": False},
}
SUBJECTS = ("judgement", "drift", "bits", "outliers", "sensitivity", "activations", "samples")
PARTIAL = ("method", "samples", "seconds", "matrices", "sensitivity", "judgement", "kept")


def found(layers: int = 36, **chosen: Any) -> CalibrationEvidence:
    """As it comes from a file, where the names of objects are sorted."""
    evidence = read_evidence(json.loads(dump_json(calibrations.manifest(layers, **chosen))))
    assert evidence is not None
    return evidence


def named(evidence: CalibrationEvidence) -> dict[str, ReportSection]:
    return {section.name: section for section in sections(evidence)}


def rows_of(section: ReportSection) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in section.rows}


def printed(what: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def page_of(evidence: CalibrationEvidence) -> str:
    pytest.importorskip("matplotlib")
    return calibration_html(evidence, model="some model", precision="int4")


def refers_to_nothing(page: str) -> bool:
    outside = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", page)
    return not re.search(r"https?://|<(script|link|img|iframe)|\ssrc=|@import|url\((?!#)", outside)


def test_evidence_is_read_as_it_was_recorded() -> None:
    recorded = calibrations.evidence(6, mixed=True)
    assert json.loads(json.dumps(dataclasses.asdict(found(6, mixed=True)))) == {**recorded, "measured": None}


def test_reports_with_a_calibration_go_to_json_and_back() -> None:
    report = dataclasses.replace(make_report(), calibration=found(6, mixed=True))
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(report.to_json()).to_json() == report.to_json()


def test_reports_of_before_are_read() -> None:
    data = json.loads(make_report().to_json())
    del data["calibration"]
    assert Report.from_json(json.dumps(data)) == make_report()


def test_bundles_without_evidence_have_none() -> None:
    assert read_evidence({}) is None
    assert read_evidence({"evidence": {"golden": {"recorded": False}}}) is None
    assert read_evidence({"evidence": {"calibration": {}}}) is None


def test_damaged_evidence_is_one_sentence() -> None:
    for part, value in {"matrices": {"a": 1}, "judgement": [], "seconds": "long", "kept": 1}.items():
        damaged = {"evidence": {"calibration": {**calibrations.evidence(2), part: value}}}
        with pytest.raises(InputError, match="calibration evidence is damaged"):
            read_evidence(damaged)


def test_evidence_of_later_versions_is_read() -> None:
    manifest = calibrations.manifest(2)
    manifest["evidence"]["calibration"] |= {"peak_memory_bytes": 1}
    manifest["evidence"]["calibration"]["matrices"][0] |= {"rank": 4}
    assert read_evidence(manifest) == found(2)


def test_tables_are_stored_as_the_manifest_says() -> None:
    entry = {"bits": 4, "group_size": 32, "symmetric": True, "reason": "table"}
    norm = {**entry, "bits": 32}
    manifest = calibrations.manifest(2, mixed=True) | {"precision": {calibrations.TABLE: entry, "model.norm": norm}}
    evidence = read_evidence(manifest)
    assert evidence is not None
    assert {row.name for row in evidence.matrices} - {row.name for row in found(2).matrices} == {calibrations.TABLE}
    assert named(evidence)["sensitivity"].rows[0] == ("token table", "0.0040", "11.0 %", "4 (1)")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.language_model.layers.11.self_attn.q_proj.weight", MatrixPlace("decoder", 11, "self_attn.q_proj")),
        ("model.layers.3.mlp.down_proj.weight", MatrixPlace("decoder", 3, "mlp.down_proj")),
        ("model.visual.blocks.0.attn.qkv.weight", MatrixPlace("vision encoder", 0, "attn.qkv")),
        ("vision_tower.vision_model.encoder.layers.9.mlp.fc1.weight", MatrixPlace("vision encoder", 9, "mlp.fc1")),
        ("model.visual.deepstack_merger_list.2.linear_fc1.weight", MatrixPlace("DeepStack mergers", 2, "linear_fc1")),
        ("mtp.layers.0.mlp.up_proj.weight", MatrixPlace("draft head", 0, "mlp.up_proj")),
        ("model.visual.merger.linear_fc1.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_places_of_matrices(name: str, expected: MatrixPlace | None) -> None:
    assert place(name) == expected


def test_kinds_keep_their_block_where_it_tells_them_apart() -> None:
    assert short_kinds(["a.proj", "b.proj", "b.up"]) == {"a.proj": "a.proj", "b.proj": "b.proj", "b.up": "up"}


def test_a_layer_counts_each_of_its_inputs_once() -> None:
    nearest = {f"model.layers.0.{name}.weight": value for name, value in (("q", 0.01), ("k", 0.01), ("o", 0.04))}
    calibrated = {name: value / 4 for name, value in nearest.items()}
    recorded = {"judgement": {"nearest": {"drift": nearest}, "calibrated": {"drift": calibrated}}}
    evidence = read_evidence({"evidence": {"calibration": recorded}})
    assert evidence is not None
    (row,) = drifts(evidence)
    assert row.inputs[NEAREST] == (0.01, 0.04)
    assert row.mean(NEAREST) == pytest.approx(0.02)  # geometric
    assert row.mean(CALIBRATED) == pytest.approx(0.005)


def test_headline_says_what_was_gained() -> None:
    said = headline(found())
    assert "0.0108 nats" in said
    assert "4.00\N{MULTIPLICATION SIGN} less than the 0.0433 of rounding to nearest" in said
    assert "97.4 % of 8,000 positions instead of 89.5 %" in said


def test_headline_says_why_nearest_was_kept() -> None:
    evidence = found(kept=False)
    assert headline(evidence) == (
        "Rounding to nearest was kept: descent is further from the float model on foreign kinds and answers; over all "
        "held-out samples of kinds that were calibrated on it is 0.0520 nats away, rounding to nearest 0.0433."
    )
    first = next(tiles(evidence))
    assert (first.figure, first.label, first.worse) == ("1.20\N{MULTIPLICATION SIGN}", "less divergence", False)
    assert named(evidence)["samples"].rows[-1][1].startswith("weights rounded to nearest")


def test_equal_candidates_are_called_the_same() -> None:
    evidence = found()
    same = dataclasses.replace(evidence, judgement={**evidence.judgement, CALIBRATED: evidence.judged(NEAREST)})
    assert "the same as the 0.0433" in headline(same)


def test_the_vision_encoder_alone_is_a_column_where_it_was_judged() -> None:
    evidence = found(4)
    assert "vision encoder alone" not in named(evidence)["judgement"].head
    evidence = dataclasses.replace(evidence, judgement={**evidence.judgement, "encoder": Judged(kl={"image": 0.01})})
    section = named(evidence)["judgement"]
    assert section.head.index("vision encoder alone") == 2
    assert section.rows[0] == ("KL, image", "0", "0.0100", "0.0600", "0.0150", "4.00\N{MULTIPLICATION SIGN} less")
    assert section.rows[1][2] == "-"


def test_drafts_are_rows_where_there_is_a_draft_head() -> None:
    rows = rows_of(named(found(4, hybrid=True))["judgement"])
    assert rows["drafts like the float model's"] == ("100.0 %", "90.0 %", "97.5 %", "+7.5 points")
    assert rows["drafts accepted"] == ("96.0 %", "91.0 %", "94.8 %", "+3.8 points")
    assert not [name for name in rows_of(named(found(4))["judgement"]) if "drafts" in name]


def test_activations_say_what_was_kept_and_why() -> None:
    section = named(found())["activations"]
    assert dict(zip(section.head[1:], rows_of(section)["vision.qkv"], strict=True)) == {
        "error": "3.0e-05",
        "kept in": "int8",
    }
    assert rows_of(section)["vision.fc2"] == ("2.0e-02", "float32")
    assert "may add 5.0e-04" in section.lead
    assert "what was chosen 9.0e-05" in section.lead
    assert "activations" not in named(dataclasses.replace(found(), activations=None))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_drawings_are_described_by_the_ends_of_their_tables(shape: dict[str, Any]) -> None:
    """For those who do not see them."""
    evidence = found(**shape)
    shown = named(evidence)
    if "sensitivity" in shown:
        largest = max(evidence.sensitivity.values())
        (most,) = {row[0] for row in shown["sensitivity"].rows if row[1] == f"{largest:.4f}"}
        assert shown["sensitivity"].alt == (
            f"Bars of the sensitivity of {len(shown['sensitivity'].rows)} layers; the most sensitive is {most}"
        )
    first, last = shown["drift"].rows[0], shown["drift"].rows[-1]
    told = re.findall(r"from (\S+) to (\S+)", shown["drift"].alt.replace(",", ""))
    assert [[f"{float(end):.0e}" for end in pair] for pair in told] == [
        [f"{float(row[side]):.0e}" for row in (first, last)] for side in (1, 2)
    ]
    assert f"decoder layers {first[0]} to {last[0]}:" in shown["drift"].alt
    where, times, _ = shown["outliers"].rows[0]
    assert shown["outliers"].alt.endswith(f"the most is {times} at {where}")
    counts = [int(count) for row in shown["bits"].rows for count in row[1:] if count != "-"]
    assert [int(count) for count in re.findall(r"(\d+) of the ", shown["bits"].alt)] == counts


def test_outliers_outside_of_layers_have_their_own_names() -> None:
    recorded = calibrations.evidence(2)
    row = {**recorded["matrices"][0], "name": "lm_head.weight", "outliers": 1e6}
    manifest = {"evidence": {"calibration": {**recorded, "matrices": [*recorded["matrices"], row]}}}
    evidence = read_evidence(manifest)
    assert evidence is not None
    assert named(evidence)["outliers"].rows[0][:2] == ("lm_head", "1,000,000")


def test_tables_of_every_subject() -> None:
    shown = named(found(mixed=True))
    assert tuple(shown) == SUBJECTS
    rows = rows_of(shown["judgement"])
    assert rows["KL, image"] == ("0", "0.0600", "0.0150", "4.00\N{MULTIPLICATION SIGN} less")
    assert rows["same top token, all positions"] == ("100.0 %", "89.5 %", "97.4 %", "+7.9 points")
    assert rows["right answers, all tasks"] == ("87.5 %", "81.2 %", "85.9 %", "+4.7 points")
    assert [row[0] for row in shown["drift"].rows] == [str(layer) for layer in range(36)]
    assert sum(int(count) for row in shown["bits"].rows for count in row[1:] if count != "-") == 36 * 7 + 24 * 4 + 3 + 1
    assert shown["outliers"].rows[0] == ("decoder, layer 2: down_proj", "2,560", "4")
    assert len(shown["outliers"].rows) == 10
    assert [row[0] for row in shown["sensitivity"].rows] == ["token table", *(f"layer {index}" for index in range(36))]
    assert rows_of(shown["samples"])["time"][0] == "30 min 44 s"
    assert "13,056 tokens of images" in rows_of(shown["samples"])["calibrated on"][0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_page_is_whole_and_refers_to_nothing(shape: dict[str, Any]) -> None:
    evidence = found(**shape)
    page, shown = page_of(evidence), list(sections(evidence))
    assert page.count("<section ") == len(shown)
    assert page.count("<svg ") == 2 * (3 + bool(evidence.sensitivity))  # each once more for phones
    assert refers_to_nothing(page)
    assert "#0000" not in page  # every colour became a variable
    assert page_of(evidence) == page
    alts = re.findall(r'<figure role="img" aria-label="([^"]+)"', page)
    assert 2 * len(alts) == page.count("<svg ")
    assert not {section.title for section in shown} & set(alts)  # each says what its plot shows


def test_page_of_a_comparison_has_the_calibration() -> None:
    pytest.importorskip("matplotlib")
    report = make_report()
    page = html(dataclasses.replace(report, calibration=found(mixed=True)))
    assert page.count("<svg ") == 6 + 4 + 2 * 4
    assert all(f'<section id="{name}"' in page for name in SUBJECTS)
    assert refers_to_nothing(page)
    assert "Calibration" not in html(report)


def test_terminal_of_a_comparison_is_brief() -> None:
    report = make_report()
    text = printed(table(dataclasses.replace(report, calibration=found())))
    assert "calibrated by descent" in text
    assert "Outlier channels" not in text
    assert "calibrated" not in printed(table(report))


@pytest.mark.parametrize("missing", [*PARTIAL, "drift", "kl", "positions"])
def test_partial_evidence_is_shown_as_far_as_it_goes(missing: str) -> None:
    recorded = copy.deepcopy(calibrations.evidence(4, mixed=True))
    for part in (recorded, *recorded["judgement"].values()):
        part.pop(missing, None)
    evidence = read_evidence({"evidence": {"calibration": recorded}})
    assert evidence is not None
    assert headline(evidence).endswith(".")
    assert "<section " in page_of(evidence)
    assert "descent" in printed(calibration_table(evidence)) or missing == "method"


@pytest.mark.parametrize("side", [NEAREST, CALIBRATED])
@pytest.mark.parametrize("figure", sorted(calibrations.evidence(2)["judgement"][NEAREST]))
def test_a_figure_that_one_side_lacks_is_left_out(side: str, figure: str) -> None:
    recorded = copy.deepcopy(calibrations.evidence(2))
    del recorded["judgement"][side][figure]
    evidence = read_evidence({"evidence": {"calibration": recorded}})
    assert evidence is not None
    told = f"{headline(evidence)} {list(tiles(evidence))} {sections(evidence)}"
    assert "None" not in told.replace("=None", "")
    if figure == "same_top":
        assert "likeliest token" not in headline(evidence)
        assert "same top token" not in str(list(tiles(evidence)))


def test_evidence_of_a_method_alone() -> None:
    evidence = read_evidence({"evidence": {"calibration": {"method": "awq"}}})
    assert evidence is not None
    assert headline(evidence) == "Calibrated by awq; how far it is from the float model was not recorded."
    assert list(named(evidence)) == ["samples"]
    assert "<svg" not in page_of(evidence)


def test_evidence_of_an_importance_matrix_counts_its_matrices() -> None:
    recorded = {key: value for key, value in calibrations.evidence(2).items() if key in ("samples", "seconds")}
    recorded |= {"method": "imatrix", "matrices": 20}
    entry = {"bits": 4, "group_size": 256, "symmetric": False, "reason": "q4_k"}
    precision = {"model.layers.0.self_attn.q_proj.weight": entry}
    evidence = read_evidence({"evidence": {"calibration": recorded}, "precision": precision})
    assert evidence is not None
    assert rows_of(named(evidence)["samples"])["matrices measured"] == ("20",)
    assert named(evidence)["bits"].rows == (("4 bits, groups of 256", "1"),)
    assert page_of(evidence).count("<svg ") == 2


def test_page_escapes_every_name() -> None:
    pytest.importorskip("matplotlib")
    recorded = json.loads(json.dumps(calibrations.evidence(2, mixed=True)).replace("q_proj", json.dumps(HOSTILE)[1:-1]))
    recorded |= {"method": HOSTILE}
    evidence = read_evidence({"evidence": {"calibration": recorded}})
    assert evidence is not None
    page = calibration_html(evidence, model=HOSTILE, precision="int4")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("width", [WIDTH, HALF])
@pytest.mark.parametrize("plot", calibration_plots.PLOTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_labels_never_overlap(shape: dict[str, Any], plot: str, width: float) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    text_type = importlib.import_module("matplotlib.text").Text
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(width, 2), layout="constrained")
        calibration_plots.PLOTS[plot](figure, found(**shape))
        if not figure.axes:
            assert plot == "sensitivity"
            return
        importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).draw()
        texts = [text for text in figure.findobj(text_type) if text.get_visible() and text.get_text().strip()]
        unseen = set(_unseen(figure))
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text not in unseen]
    overlaps = [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if _overlap(one, other)]
    assert not overlaps
    right, top = figure.bbox.width, figure.bbox.height
    assert not [name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > right or box.y1 > top]


def _unseen(figure: Any) -> Iterator[Any]:
    """The labels of ticks outside of the axes, which are not drawn."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        yield from (tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high)


def _overlap(one: Any, other: Any) -> bool:
    """More than half a pixel in both directions, which is what rounding may give."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return bool(across > 0.5 and down > 0.5)


def test_every_cell_of_the_heat_map_is_written_and_coloured() -> None:
    drawn = calibration_plots.draw(found(36, mixed=True))["bits"]
    assert len(re.findall(r">[48]</text>", drawn)) >= 36 * 7 + 24 * 4 + 3
    assert {"var(--ours)", "var(--vision)"} <= set(re.findall(r"var\(--\w+\)", drawn))
    assert len(set(re.findall(r"opacity: ([\d.]+)", drawn))) >= 3  # of groups of 32, 64 and 128


@pytest.fixture
def calibrated(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with evidence of a calibration in its manifest."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / "lensmith.json").read_text(encoding="utf-8"))
    manifest["evidence"]["calibration"] = calibrations.evidence(4)
    (folder / "lensmith.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_inspect_shows_the_calibration(cli: Any, calibrated: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "pages" / "calibration.html"
    ran = cli("inspect", calibrated, "--html", page)
    assert ran.code == 0
    assert "4.00\N{MULTIPLICATION SIGN} less than the 0.0433" in " ".join(ran.out.split())
    assert "nearest_error" not in ran.out  # tables, no dump of the evidence
    assert ran.out.splitlines()[-1] == str(page)
    assert "<h1>" in page.read_text(encoding="utf-8")


def test_inspect_json_stays_json(cli: Any, calibrated: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = cli("inspect", calibrated, "--json", "--html", tmp_path / "calibration.html")
    assert json.loads(ran.out)["evidence"]["calibration"]["method"] == "descent"
    assert (tmp_path / "calibration.html").is_file()


def test_inspect_without_calibration_says_how_to_get_one(cli: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    ran = cli("inspect", tiny_bundle, "--html", tmp_path / "calibration.html")
    assert ran.code == 2
    assert "was not calibrated" in ran.err
    assert "--calibrate descent" in ran.err
    assert not (tmp_path / "calibration.html").exists()


def test_inspect_without_matplotlib_names_the_extra(
    cli: Any, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = cli("inspect", calibrated, "--html", tmp_path / "calibration.html")
    assert ran.code == 2
    assert "lensmith[report]" in ran.err
