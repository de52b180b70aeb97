"""`lensmith verify`: whether this device computes what the bundle computed when it was built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..targets.errors import CheckFailed
from .option_types import AS_JSON, BUNDLE, DEVICE, KEYS, Once
from .screen import console, print_json, table

if TYPE_CHECKING:
    from ..runtimes.evidence.verification import VerifyReport


@click.command(cls=Once)
@BUNDLE
@DEVICE
@KEYS
@AS_JSON
def verify(bundle: Path, device: str | None, keys: tuple[Path, ...], as_json: bool) -> None:
    """Check each byte of BUNDLE and replay PyTorch's recorded answers. Exit code 1 when something differs."""
    from ..runtimes.evidence.verification import verify as replay

    report = replay(bundle, device=device, trusted_keys=keys or None)
    if as_json:
        print_json(report.to_json())
    else:
        console().print(_verification(report))
    if not report.passed:
        raise CheckFailed(f"{report.summary()}; export the bundle again or report this device")
    if not as_json:
        click.echo(f"passed: {report.summary()}")


def _verification(report: VerifyReport) -> Any:
    rows = [
        (row.case, row.output, row.figure, f"{row.value:.3g}", "" if row.limit is None else f"{row.limit:.3g}",
         "" if row.passed else "FAILED")
        for row in report.rows
    ]  # fmt: skip
    return table(f"Against {report.reference}", ["case", "output", "figure", ">value", ">limit", ""], rows)
