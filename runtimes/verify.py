"""Replays the golden traces of a bundle on this device, without PyTorch, and says where it diverges first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..targets.errors import InputError
from .bundle import Bundle, open_bundle
from .loading import answers, open_loaded
from .replay import AGREEMENTS, Row, replay
from .traces import read_traces

# Float32 bundles: largest error relative to the largest magnitude of the output. Random-weight and trained models stay
# near 1e-5 and below (tests/test_parity.py); the rest is room for other kernels and orders of summation. The smallest
# mistake tried, another approximation of GELU, is off by 2e-4; wrong positions are off by 0.7.
EXACT_ERROR = 1e-4
EXACT_KL = 1e-6  # nats; grows with the square of the error of the logits
# Other bundles round weights and activations, so PyTorch is matched only as well as it was right after the export. The
# integer kernels of another processor round activations at other places, hence the headroom.
HEADROOM, ERROR_FLOOR, KL_FLOOR, AGREEMENT_SLACK = 1.5, 2e-3, 0.02, 0.15
# A bundle further from PyTorch than this fails, whatever was measured at the export. In nats: a trained model in int4
# stays below 0.1, tiny random weights in int4 near 1, and another model altogether is beyond 3.
KL_BOUND = 2.0


@dataclass(frozen=True)
class VerifyReport:
    """The rows in the order in which the graphs compute, each the worst of its figure, or the first that fails."""

    bundle: str
    reference: str
    exact: bool
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    @property
    def first_divergence(self) -> Row | None:
        """The first output beyond its limit."""
        return next((row for row in self.rows if not row.passed), None)

    def summary(self) -> str:
        """One sentence: passed with the worst figures, or the first output that diverges."""
        row = self.first_divergence
        if row is None:
            return f"{self.bundle} agrees with {self.reference}: {len(self.rows)} figures within their limits"
        where = f"{self.bundle} diverges first at {row.output} ({row.case})"
        return f"{where}: {row.figure} is {row.value:.3g}, limit {row.limit:.3g}"

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        first = self.first_divergence
        return {
            **{key: getattr(self, key) for key in ("bundle", "reference", "exact", "passed")},
            "first_divergence": None if first is None else _plain(first),
            "rows": [_plain(row) for row in self.rows],
        }


def verify(bundle: str | Path | Bundle, *, threads: int | None = None, device: str | None = None) -> VerifyReport:
    """Check all hashes of a bundle, then replay its golden traces, on `device` as of `load`.

    Raises InputError for a damaged bundle and for one without traces; a divergence is a report that did not pass.
    """
    opened = open_bundle(bundle.path if isinstance(bundle, Bundle) else bundle, check="sha256")
    traces = read_traces(opened)
    longest = max((len(case.token_ids) + len(case.answer) for case in traces.cases), default=1)
    room = {"context": min(longest, opened.manifest["limits"]["context"])} if answers(opened) else {}
    model = open_loaded(opened, threads=threads, device=device, **room)
    floats = all(entry["bits"] == 32 for entry in opened.manifest["precision"].values())
    options = opened.manifest["options"]
    onnx = options.get("format", "onnx") == "onnx"  # llama.cpp's GELU comes from a float16 table
    exact = floats and onnx and options.get("kv_cache", "float") == "float"
    figures = opened.manifest["evidence"].get("golden", {}).get("figures", {})
    rows = [_judge(row, exact, figures) for row in replay(model, traces)]
    return VerifyReport(opened.path.resolve().name, traces.reference, exact, tuple(_condense(rows)))


def _plain(row: Row) -> dict[str, Any]:
    """A row for JSON, which has no infinity: null stands for it, and for NaN."""
    return {**asdict(row), "value": row.value if math.isfinite(row.value) else None}


def _judge(row: Row, exact: bool, figures: Mapping[str, float]) -> Row:
    limit = _limit(row.figure, exact, figures)
    within = row.value >= limit if row.figure in AGREEMENTS else row.value <= limit
    return replace(row, limit=limit, passed=bool(within))


def _limit(figure: str, exact: bool, figures: Mapping[str, float]) -> float:
    """The largest value of a figure that passes, or the smallest for an agreement."""
    if figure.endswith("_differ"):
        return 0.0
    if exact:
        return 1.0 if figure in AGREEMENTS else EXACT_KL if figure.endswith("_kl") else EXACT_ERROR
    if figure not in figures:
        raise InputError(
            f"the manifest has no figure {figure!r} of the export to compare with; export the bundle again"
        )
    built = figures[figure]
    if figure in AGREEMENTS:
        return max(0.0, built - AGREEMENT_SLACK)
    if figure.endswith("_kl"):
        return min(HEADROOM * built + KL_FLOOR, KL_BOUND)
    return HEADROOM * built + ERROR_FLOOR


def _condense(rows: list[Row]) -> Iterator[Row]:
    """Of the steps of an answer one row for each figure: the first that fails, else the one nearest its limit."""
    kept: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.case, row.figure)
        old = kept.get(key)
        if old is None or (old.passed and (not row.passed or row.value > old.value)):
            kept[key] = row
    return iter(kept.values())
