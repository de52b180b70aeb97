"""The command line: `lensmith`. Each command imports what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..targets import telemetry as _before_onnxruntime  # noqa: F401

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code; Ctrl-C counts from the first import on."""
    try:
        from .ctrl_c import wait_for_imports

        wait_for_imports()
        from .app import main as run

        run(arguments)
    except KeyboardInterrupt:
        print("error: stopped", file=sys.stderr)
        sys.exit(130)
