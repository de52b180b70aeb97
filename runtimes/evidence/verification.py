"""Replays the golden traces of a bundle on this device, without PyTorch, and says where it diverges first.

How near a bundle is to PyTorch was judged at its export. Here the question is whether this device computes what the
bundle gave when it was built.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bundle.manifest import Manifest
from ..bundle.opening import Bundle, open_bundle
from ..bundle.signature import Key
from ..engines.arithmetic import arithmetic
from ..engines.run_wishes import for_cuda
from ..generation.loading import answers, open_loaded
from .built import AgainstBuilt, read_built
from .outputs import outputs
from .replay import (
    EXACT,
    AgainstPyTorch,
    Row,
    judged,
)
from .traces import OWN, read_traces


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
            whose = "itself as it was built" + (
                f" and with {self.reference}" if self.exact and self.reference != OWN else ""
            )
            return f"{self.bundle} agrees with {whose}: {len(self.rows)} figures within their limits"
        where = f"{self.bundle} diverges first at {row.output} ({row.case})"
        if row.figure == "bits_differ":
            return f"{where}: its values are not the bits that the same kernels gave when it was built"
        if row.figure == "settings_differ":
            return f"{where}: it is not what the bundle was built with; copy or export it again"
        return f"{where}: {row.figure} is {row.value:.3g}, limit {row.limit:.3g}"

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        first = self.first_divergence
        return {
            **{key: getattr(self, key) for key in ("bundle", "reference", "exact", "passed")},
            "first_divergence": None if first is None else _plain(first),
            "rows": [_plain(row) for row in self.rows],
        }


def verify(
    bundle: str | Path | Bundle,
    *,
    threads: int | None = None,
    device: str | None = None,
    trusted_keys: Iterable[Key] | None = None,
    native: bool | None = None,
) -> VerifyReport:
    """Check all hashes of a bundle, then replay its golden traces; `threads`, `device` and `native` as of `load`.

    Raises InputError for a damaged bundle and for one without traces; a divergence is a report that did not pass.
    """
    opened = open_bundle(
        bundle.path if isinstance(bundle, Bundle) else bundle, check="sha256", trusted_keys=trusted_keys
    )
    traces, built = read_traces(opened), read_built(opened)
    longest = max((len(case.token_ids) + len(case.answer) for case in traces.cases), default=1)
    room = {"context": min(longest, opened.manifest.limits.context)} if answers(opened) else {}
    wishes: dict[str, Any] = {"threads": threads, "device": device, "native": native}
    model = open_loaded(opened, **wishes, **room)
    against = AgainstPyTorch(traces), AgainstBuilt(built, arithmetic(opened, **wishes))
    exact = is_exact(opened.manifest)
    limits = EXACT if exact else None
    rows = list(against[1].settings(opened))
    rows += [judged(row, limits) if judge is against[0] else row
            for output in outputs(model, traces) for judge in against for row in judge.rows(output)]  # fmt: skip
    rows += against[1].overall()
    return VerifyReport(opened.path.resolve().name, traces.reference, exact, tuple(_condense(rows)))


def is_exact(manifest: Manifest) -> bool:
    """Whether a bundle computes in float32 all along, so that it must give PyTorch's values."""
    return rounds_no_activations(manifest) and all(entry.bits == 32 for entry in manifest.precision.values())


def rounds_no_activations(manifest: Manifest) -> bool:
    """Whether all activations, keys and values are float32, so that other kernels differ in last bits alone."""
    options = manifest.options
    onnx = options.format != "gguf"  # llama.cpp's GELU comes from a float16 table
    floats = all(entry.bits >= 16 for entry in manifest.precision.values())
    return floats and onnx and not for_cuda(manifest) and options.kv_cache == "float"


def _plain(row: Row) -> dict[str, Any]:
    """A row for JSON, which has no infinity: null stands for it, and for NaN."""
    return {**asdict(row), "value": row.value if math.isfinite(row.value) else None}


def _condense(rows: list[Row]) -> Iterator[Row]:
    """Of the steps of an answer one row for each figure: the first that fails, else the one nearest its limit."""
    kept: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.case, row.figure)
        old = kept.get(key)
        if old is None or (old.passed and (not row.passed or row.value > old.value)):
            kept[key] = row
    return iter(kept.values())
