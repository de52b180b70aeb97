"""What is said before the work: precisions that want samples, and what another program makes of the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lensmith.exporters.notes import notes
from lensmith.exporters.pipeline import Calibrated, Options, prepare

from tests.helpers.extras import Ran
from tests.paths import TINY

Cli = Callable[..., Ran]
SAID = {
    ("onnx", "int3"): "add --calibrate descent",
    ("onnx", "int2"): "add --calibrate descent",
    ("gguf", "q3_k_m"): "add --calibrate imatrix",
    ("gguf", "q2_k"): "add --calibrate imatrix",
}
FLOATS_AND_MORE = {"onnx": ("fp16", "int8", "int4"), "gguf": ("f16", "q8_0", "iq4_xs", "q4_0")}
UNSAID = [(format, precision) for format, names in FLOATS_AND_MORE.items() for precision in names]


def needs_quantizer(format: str, precision: str) -> None:
    if format == "gguf" and precision not in ("f16", "q8_0"):
        pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")


@pytest.mark.parametrize("case", SAID)
def test_few_levels_want_samples(case: tuple[str, str]) -> None:
    needs_quantizer(*case)
    job = prepare(TINY / "qwen3_vl", Options(format=case[0], precision=case[1]))
    assert [note for note in notes(job) if SAID[case] in note and case[1] in note]
    assert not list(notes(replace(job, calibrated=Calibrated(evidence={"method": "descent"}))))


@pytest.mark.parametrize("case", UNSAID)
def test_enough_levels_say_nothing(case: tuple[str, str]) -> None:
    needs_quantizer(*case)
    assert not list(notes(prepare(TINY / "qwen3_vl", Options(format=case[0], precision=case[1]))))


def test_notes_come_before_the_work_and_in_plans(cli: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    planned = cli("plan", TINY / "qwen3_vl", "--precision", "int2")
    assert "note: int2 rounds to so few levels" in planned.out
    assert json.loads(cli("plan", TINY / "qwen3_vl", "--precision", "int2", "--json").out)["notes"]
    ran = cli("export", TINY / "qwen3_vl", "--precision", "int2", "-o", tmp_path / "b", "--golden", "never", "--json")
    assert ran.code == 0
    assert "add --calibrate descent" in caplog.text
    assert json.loads(ran.out)["plan"]["notes"]


def test_llava_is_warned_of_stock_llama_cpp() -> None:
    job = prepare(TINY / "llava", Options(format="gguf", precision="f16"))
    assert [note for note in notes(job) if "class token" in note and "lensmith run" in note]
    assert not list(notes(prepare(TINY / "llava", Options(precision="int4"))))
