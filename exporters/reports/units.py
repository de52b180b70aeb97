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


def points(share: float) -> str:
    """A difference of shares in percentage points: "+1.2", "0.0"."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}") if round(100 * share, 1) else "0.0"


def nats(value: float) -> str:
    """A KL divergence, without the unit: "0.0042", "8.1e-05"."""
    return f"{value:.4f}" if value >= 0.001 else f"{value:.1e}" if value else "0"


def duration(seconds: float) -> str:
    """A time to wait: "8.3 s", "2 min 41 s", "1 h 4 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
