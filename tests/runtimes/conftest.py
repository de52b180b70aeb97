"""Bundles of the trained models, made once for all files here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.paths import TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Compiles a trained model, by its name ("qwen3_vl", "qwen3_vl gguf") and precision."""
    from lensmith.exporters.pipeline import Options, export, prepare

    folder = tmp_path_factory.mktemp("trained")

    @cache
    def make(family: str, precision: str) -> Path:
        options: dict[str, Any] = {"precision": precision}
        if family.endswith(" gguf"):
            pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
            options["format"] = "gguf"
        job = prepare(TINY / family.removesuffix(" gguf"), Options(**options))
        return export(job, folder / f"{family} {precision}", golden="never").path

    return make
