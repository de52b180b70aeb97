"""A comparison or a calibration for people: tables for the terminal, and one self-contained page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...runtimes.bundle.calibration_evidence import CalibrationEvidence
from . import calibration_plots, calibration_sections, calibration_summary, judgement_rows
from .plots import draw
from .records import Report
from .sections import (
    RATIO,
    ReportSection,
    headline,
    sections,
    tiles,
)

__all__ = ["Report", "calibration_html", "calibration_table", "html", "table"]

TEMPLATES = Path(__file__).parent / "templates"
EMPHASIZED = ("total", "all tasks", RATIO, *judgement_rows.EMPHASIZED)


def table(report: Report) -> Group:
    """The figures as tables of rich: `console.print(table(report))`."""
    parts: list[RenderableType] = [Text(headline(report), style="bold"), *section_tables(sections(report))]
    if report.calibration is not None:
        parts += section_tables(list(_calibration(report.calibration))[:1])
    machine = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    parts += [Text(), *(Text(note, style="dim") for note in (*report.notes, machine))]
    return Group(*parts)


def calibration_table(evidence: CalibrationEvidence) -> Group:
    """How calibrated weights did, and what they were calibrated on, as tables of rich."""
    shown = [made for made in calibration_sections.sections(evidence) if made.name in ("judgement", "samples")]
    return Group(Text(calibration_summary.headline(evidence), style="bold"), *section_tables(shown))


def section_tables(shown: Iterable[ReportSection]) -> Iterator[RenderableType]:
    for section in shown:
        grid = Table(show_header=bool(section.head))
        for index, name in enumerate(section.head or ("", "")):
            grid.add_column(Text(name), justify="right" if index and section.head else "left", overflow="fold")
        for row in section.rows:
            grid.add_row(*map(Text, row))
        yield from (Text(), Text(section.title, style="bold"), Text(section.lead, style="dim"), grid)


def html(report: Report) -> str:
    """One HTML page with plots, without references to anything outside. Raises MissingExtra without matplotlib."""
    plots, shown = draw(report), list(sections(report))
    if report.calibration is not None:
        plots |= calibration_plots.draw(report.calibration)
        shown += _calibration(report.calibration)
    return page(
        "report.html.jinja",
        command="lensmith compare",
        report=report,
        headline=headline(report),
        tiles=list(tiles(report)),
        sections=shown,
        plots=plots,
    )


def calibration_html(evidence: CalibrationEvidence, *, model: str, precision: str) -> str:
    """The calibration of a bundle alone as one such page."""
    return page(
        "calibration.html.jinja",
        command="lensmith inspect",
        evidence=evidence,
        model=model,
        precision=precision,
        headline=calibration_summary.headline(evidence),
        tiles=list(calibration_summary.tiles(evidence)),
        sections=list(calibration_sections.sections(evidence)),
        plots=calibration_plots.draw(evidence),
    )


def _calibration(evidence: CalibrationEvidence) -> Iterator[ReportSection]:
    """The sections of a calibration on a page about more, whose first one begins with what was gained."""
    for index, made in enumerate(calibration_sections.sections(evidence)):
        if index:
            yield replace(made, title=f"Calibration: {made.title[0].lower()}{made.title[1:]}")
        else:
            lead = f"{calibration_summary.headline(evidence)} {made.lead}"
            yield replace(made, title="Calibration", lead=lead)


def page(template: str, **values: Any) -> str:
    """A template of the folder `templates` with values, which it escapes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values, emphasized=EMPHASIZED)
