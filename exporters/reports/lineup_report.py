"""A report of many builds for people: tables for the terminal, one self-contained page, Markdown for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from .lineup_plots import draw_lineup
from .lineup_records import Lineup
from .lineup_sections import lineup_headline, lineup_sections, lineup_tiles, noise_text
from .records import Report
from .report import page, section_tables
from .sections import ReportSection, headline, sections

IN_SHORT = ("overview", "ratios", "tasks", "failed")  # on the terminal


def lineup_table(lineup: Lineup) -> Group:
    """The figures as tables of rich."""
    shown = [section for section in lineup_sections(lineup) if section.name in IN_SHORT]
    parts: list[RenderableType] = [Text(lineup_headline(lineup), style="bold"), *section_tables(shown)]
    machine = ", ".join(f"{name} {value}" for name, value in lineup.environment.items())
    return Group(*parts, Text(), *(Text(note, style="dim") for note in (*lineup.notes, machine)))


def lineup_html(lineup: Lineup) -> str:
    """One HTML page with plots, without references to anything outside. Raises MissingExtra without matplotlib."""
    models = list(lineup.references)
    return page(
        "lineup.html.jinja",
        command="lensmith compare",
        title=f"{', '.join(models)}: {len(lineup.bundles)} builds",
        headline=lineup_headline(lineup),
        tiles=list(lineup_tiles(lineup)),
        sections=list(lineup_sections(lineup)),
        plots=draw_lineup(lineup),
        facts=list(_facts(lineup)),
        commands=_commands(lineup),
    )


def _facts(lineup: Lineup) -> Iterator[tuple[str, str]]:
    yield from lineup.environment.items()
    yield from ((entrant.name, entrant.engine) for entrant in lineup.entrants if entrant.engine)
    yield "prompt", f"{lineup.prompt} ({lineup.image})"
    yield "noise", noise_text(lineup)
    yield from (("note", note) for note in lineup.notes)


def _commands(lineup: Lineup) -> list[str]:
    made = [entrant.command for entrant in lineup.entrants if entrant.command]
    return [*made, *([lineup.command] if lineup.command else [])]


def lineup_markdown(lineup: Lineup) -> str:
    """Tables for a pull request, with the machine and the commands folded behind them."""
    shown = [section for section in lineup_sections(lineup) if section.name in IN_SHORT]
    facts = "\n".join(f"- {_cell(name)}: {_cell(value)}" for name, value in _facts(lineup))
    return _markdown(lineup_headline(lineup), shown, facts, _commands(lineup))


def report_markdown(report: Report) -> str:
    """The same of one bundle and its checkpoint."""
    facts = "\n".join(f"- {_cell(name)}: {_cell(value)}" for name, value in report.environment.items())
    return _markdown(headline(report), list(sections(report)), facts, [report.command] if report.command else [])


def _markdown(first: str, shown: list[ReportSection], facts: str, commands: list[str]) -> str:
    parts = [_cell(first), *(_table(section) for section in shown)]
    parts.append(f"<details><summary>How it was measured</summary>\n\n{facts}\n\n</details>")
    if commands:
        fence = "\n".join(commands).replace("```", "'''")
        parts.append(f"<details><summary>How to reproduce</summary>\n\n```\n{fence}\n```\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _table(section: ReportSection) -> str:
    rows = [section.head, tuple("---" if index == 0 else "---:" for index in range(len(section.head))), *section.rows]
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return f"### {_cell(section.title)}\n\n{_cell(section.lead)}\n\n" + "\n".join(lines)


def _cell(text: str) -> str:
    """A text that neither ends its cell nor is read as HTML or Markdown."""
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", text.replace("\n", " ").replace("<", "&lt;"))
