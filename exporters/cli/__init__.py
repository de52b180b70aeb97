"""The command line: `lensmith`. Each command imports what it needs when it runs."""

from .app import main

__all__ = ["main"]
