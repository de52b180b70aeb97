"""A comparison for people: tables for the terminal, and one self-contained page."""

from __future__ import annotations

from rich.console import Group

from .records import Report


def table(report: Report) -> Group:
    """The figures as tables of rich: `console.print(table(report))`."""
    raise NotImplementedError


def html(report: Report) -> str:
    """One HTML page with plots, without references to anything outside. Raises MissingExtra without matplotlib."""
    raise NotImplementedError
