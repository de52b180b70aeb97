"""Figures as people read them."""

from __future__ import annotations


def megabytes(count: float) -> str:
    """Bytes in decimal units of three digits: "812 kB", "3.74 MB", "2.10 GB"; nothing is "-"."""
    if not count:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{_three(count / size)} {unit}"
    return f"{count / 1e3:.0f} kB"


def milliseconds(value: float) -> str:
    """A duration: "8.3 ms", "412 ms", "12.4 s"."""
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def percent(share: float) -> str:
    """A share: "97.4 %"."""
    return f"{100 * share:.1f} %"


def times(ratio: float) -> str:
    """A ratio: "2.31 x" with the sign of multiplication."""
    return f"{_three(ratio)}\N{MULTIPLICATION SIGN}"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
