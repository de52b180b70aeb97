"""A comparison for people: tables for the terminal, and one self-contained page."""

from __future__ import annotations

from pathlib import Path

import jinja2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .plots import draw
from .records import Report
from .sections import RATIO, Section, headline, sections, tiles

__all__ = ["Report", "html", "table"]

TEMPLATES = Path(__file__).parent / "templates"


def table(report: Report) -> Group:
    """The figures as tables of rich: `console.print(table(report))`."""
    parts: list[RenderableType] = [Text(headline(report), style="bold")]
    for section in sections(report):
        parts += [Text(), Text(section.title, style="bold"), Text(section.lead, style="dim"), _grid(section)]
    machine = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    parts += [Text(), *(Text(note, style="dim") for note in (*report.notes, machine))]
    return Group(*parts)


def _grid(section: Section) -> Table:
    grid = Table()
    for index, name in enumerate(section.head):
        grid.add_column(Text(name), justify="right" if index else "left")
    for row in section.rows:
        grid.add_row(*map(Text, row))
    return grid


def html(report: Report) -> str:
    """One HTML page with plots, without references to anything outside. Raises MissingExtra without matplotlib."""
    plots = draw(report)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        report=report,
        headline=headline(report),
        tiles=list(tiles(report)),
        sections=list(sections(report)),
        plots=plots,
        emphasized=("total", "all tasks", RATIO),
    )
