"""Figures as people read them: three digits, the unit that fits, and what is rounded up into the next one."""

from __future__ import annotations

import pytest
from lensmith.exporters.reports.units import (
    duration,
    megabytes,
    milliseconds,
    nats,
    percent,
    points,
    times,
)
from lensmith.runtimes.generation.timings import Timings


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "-"), (400, "0 kB"), (812_000, "812 kB"), (999_400, "999 kB"), (1e6, "1.00 MB"), (3_740_000, "3.74 MB"),
     (9_994_000, "9.99 MB"), (9_996_000, "10.0 MB"), (99_940_000, "99.9 MB"), (99_960_000, "100 MB"),
     (812e6, "812 MB"), (1e9, "1.00 GB"), (2_100_000_000, "2.10 GB")],
)  # fmt: skip
def test_bytes(count: float, shown: str) -> None:
    assert megabytes(count) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(8.26, "8.3 ms"), (99.9, "99.9 ms"), (100, "100 ms"), (412.4, "412 ms"), (9_999, "9999 ms"), (10_000, "10.0 s"),
     (12_400, "12.4 s")],
)  # fmt: skip
def test_durations(value: float, shown: str) -> None:
    assert milliseconds(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(8.26, "8.3 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (161, "2 min 41 s"), (3599, "59 min 59 s"),
     (3600, "1 h 0 min"), (3840, "1 h 4 min"), (90_000, "25 h 0 min")],
)  # fmt: skip
def test_times_to_wait(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_shares_and_ratios() -> None:
    assert percent(0.9742) == "97.4 %"
    assert [times(ratio) for ratio in (2.312, 12.31, 123.1)] == ["2.31\u00d7", "12.3\u00d7", "123\u00d7"]
    assert [points(share) for share in (0.012, -0.012, 0, 0.0004, -0.0004)] == [
        "+1.2",
        "\u22121.2",
        "0.0",
        "0.0",
        "0.0",
    ]
    assert [nats(value) for value in (0.00421, 0.001, 0.000081, 0)] == ["0.0042", "0.0010", "8.1e-05", "0"]


def test_speed_is_of_the_tokens_behind_the_first() -> None:
    timings = Timings(image_ms=1.0, vision_ms=20.0, prefill_ms=300.0, decode_ms=500.0, new_tokens=6)
    assert timings.first_token_ms == 321.0
    assert timings.tokens_per_s == 10.0
    assert Timings(new_tokens=1).tokens_per_s == 0.0
