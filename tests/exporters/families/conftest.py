"""Fixtures of files that climb the ladder with a checkpoint drawn at random: each names its ARCHITECTURE."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import ladder
from tests.helpers.ladder import Pair, compile_pair


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the architecture."""
    return ladder.tiny(tmp_path_factory.mktemp("base") / "tiny", request.module.ARCHITECTURE)


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The checkpoint in PyTorch, and compiled."""
    ladder.need_torch()
    return compile_pair(base, tmp_path_factory.mktemp("bundle") / "bundle")
