"""A calibration in one sentence, and its figures that stand out."""

from __future__ import annotations

from collections.abc import Iterator

from ...runtimes.bundle.calibration_evidence import (
    CALIBRATED,
    NEAREST,
    CalibrationEvidence,
    drifts,
)
from .sections import Tile
from .units import nats, percent, times

MOST = 1e4  # ratios beyond it are told in words


def headline(evidence: CalibrationEvidence) -> str:
    """What was gained at the same size, or why the bundle is rounded to nearest, in one sentence."""
    nearest, calibrated = (evidence.judged(name).mean_kl for name in (NEAREST, CALIBRATED))
    if evidence.samples.warnings and not evidence.kept and not evidence.tried:
        return f"Rounded to nearest: {evidence.samples.warnings[-1]}."
    if nearest is None or calibrated is None:
        word = f"Calibrated by {evidence.method}" if evidence.kept else "Rounded to nearest, which was better"
        return f"{word}; how far it is from the float model was not recorded."
    if not evidence.kept and (groups := evidence.tried.get(evidence.method)):
        return (
            f"Rounding to nearest was kept: {evidence.method} is further from the float model on "
            f"{' and '.join(groups)}; over all held-out samples of kinds that were calibrated on it is "
            f"{nats(calibrated)} nats away, rounding to nearest {nats(nearest)}."
        )
    if not evidence.kept:
        return (
            f"Rounding to nearest was kept: on held-out samples it is {nats(nearest)} nats from the float model, "
            f"{evidence.method} {nats(calibrated)}."
        )
    than = "the same as" if nearest == calibrated else f"{less(nearest, calibrated)} than"
    return (
        f"At the same size, weights calibrated by {evidence.method} are {nats(calibrated)} nats from the float model "
        f"on held-out samples, {than} the {nats(nearest)} of rounding to nearest{_tops(evidence)}."
    )


def less(before: float, after: float) -> str:
    """How many times less: "3.55 x less" with the sign of multiplication, "1.20 x more", "the same"."""
    if before == after:
        return "the same"
    low, high = sorted((before, after))
    word = "less" if after < before else "more"
    return f"{times(high / low)} {word}" if low and high / low < MOST else f"far {word}"


def _tops(evidence: CalibrationEvidence) -> str:
    nearest, calibrated = evidence.judged(NEAREST), evidence.judged(CALIBRATED)
    if nearest.same_top is None or calibrated.same_top is None:
        return ""
    count = sum(calibrated.positions.values())
    shares = f"{percent(calibrated.same_top)} of {count:,} positions instead of {percent(nearest.same_top)}"
    return f", and their likeliest token is that of the float model at {shares}"


def tiles(evidence: CalibrationEvidence) -> Iterator[Tile]:
    """What the bundle has next to what it could have had; figures that are missing are left out."""
    sides = (CALIBRATED, NEAREST) if evidence.kept else (NEAREST, CALIBRATED)
    bundle, other = map(evidence.judged, sides)
    name = "rounded to nearest" if evidence.kept else evidence.method
    if bundle.mean_kl and other.mean_kl:
        detail = f"{nats(bundle.mean_kl)} instead of {nats(other.mean_kl)} nats"
        yield _ratio_tile(other.mean_kl / bundle.mean_kl, "divergence", detail)
    yield from _share_tile(bundle.same_top, other.same_top, "same top token", name)
    yield from _share_tile(bundle.mean_accuracy, other.mean_accuracy, "right answers", name)
    last = drifts(evidence)[-1:]
    ends = [last[0].mean(side) if last else None for side in sides]
    if ends[0] and ends[1]:
        yield _ratio_tile(ends[1] / ends[0], "error in the last layer", "of its inputs, on held-out samples")


def _ratio_tile(ratio: float, what: str, detail: str) -> Tile:
    return Tile(times(max(ratio, 1 / ratio)), f"{'less' if ratio >= 1 else 'more'} {what}", detail, ratio < 1)


def _share_tile(bundle: float | None, other: float | None, label: str, name: str) -> Iterator[Tile]:
    if bundle is not None and other is not None:
        yield Tile(percent(bundle), label, f"{name} {percent(other)}", bundle < other)
