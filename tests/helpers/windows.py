"""Modules as they are on Windows, with what Python has there alone put in their place."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest


def as_on_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A second copy of a module of lensmith, run as if this were Windows; the first stays as it is."""
    spec = importlib.util.find_spec(f"lensmith.{name}")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(sys, "platform", "win32")
        spec.loader.exec_module(module)
    return module
