"""A few random mutations of each kind: a sentence and exit code 2, or an answer; never a signal or a defect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.campaign import KINDS, run_cases, spread
from tests.paths import TINY

pytest.importorskip("onnx", reason="needs lensmith[export]")
CASES = 70


def test_mutated_files_are_refused_or_read(made: Callable[[str], Path], tmp_path: Path) -> None:
    bundles = [made(kind) for kind in ("qwen3-vl-2b", "tarn-2b", "vqwen3-4b")]
    originals = {kind: bundles for kind in KINDS if kind not in ("config", "header", "golden")}
    originals["config"] = [TINY / family for family in ("qwen3_vl", "qwen3_5", "llava")]
    media = TINY / "heldout" / "images" / "0001.png"
    tallies = run_cases(spread(originals, media, CASES), tmp_path)
    assert not [finding for tally in tallies.values() for finding in tally.findings]
    assert all(tally.codes[2] for tally in tallies.values())  # the mutations are noticed
    assert sum(tally.codes[0] for tally in tallies.values())
