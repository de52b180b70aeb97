"""Mistakes about measuring show before anything is built."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.comparing.cases import photo
from lensmith.exporters.matrix import matrix_run
from lensmith.exporters.matrix.matrix_file import read_matrix
from lensmith.exporters.matrix.matrix_run import measuring_options
from lensmith.exporters.matrix.measuring_check import check_measuring
from lensmith.exporters.reports.gate import Gate
from lensmith.targets.errors import InputError

from tests.helpers.outlines import outline

MISTAKES = {
    "questions that are not there": ('tasks = "none.jsonl"', "size_mb>1", "none.jsonl"),
    "questions that are not JSON": ('tasks = "broken.jsonl"', "size_mb>1", "line 1 of .*broken.jsonl is not JSON"),
    "another benchmark": ('tasks = "tasks.jsonl"\nbenchmark = "DocVQA"', "size_mb>1", "leave out --benchmark"),
    "a picture that is none": ('image = "tasks.jsonl"', "size_mb>1", "tasks.jsonl"),
    "a picture that is not there": ('image = "none.png"', "size_mb>1", "none.png"),
    "a baseline that is not known": ('baselines = ["bitsandbytes-nf5"]', "size_mb>1", "no baseline 'bitsandbytes-nf5'"),
    "a Python that is not there": (
        'baselines = ["openvino-genai=.@/no/python"]', "size_mb>1", "is to run by /no/python, which is no program",
    ),
    "a baseline of a checkpoint that is not measured": (
        'baselines = ["bitsandbytes-nf4"]', "size_mb>1", "runs the checkpoint; name it with --against",
    ),
    "a dtype twice": ('dtypes = ["float32", "float32"]', "size_mb>1", "expected different ones"),
    "a condition without questions": ("", "accuracy_drop>1", "asks for accuracy_drop, which needs --tasks"),
    "a condition on nothing": ("", "size>1", "no figure 'size'"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    row = {"task": "read", "images": [], "prompt": "What is said?", "answer": "lion"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    (tmp_path / "broken.jsonl").write_text("{")
    photo((64, 64), seed=1).save(tmp_path / "a.png")
    outline("arlow-vision", tmp_path / "encoder")
    config = outline("nemotron-4b", tmp_path / "blind")[0] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text())["text_config"]))  # its decoder alone
    return tmp_path


def write(folder: Path, model: str, compare: str) -> Path:
    path = folder / "m.toml"
    path.write_text(f'models = ["{model}"]\n[compare]\nagainst = false\n{compare}\n')
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_nothing_is_built_before_a_mistake_shows(
    mistake: str, cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, gate, message = MISTAKES[mistake]
    built: list[Any] = []

    def run(*given: Any) -> list[Any]:
        built.append(given)
        return []

    monkeypatch.setattr(matrix_run, "run_matrix", run)
    ran = cli("matrix", write(folder, "absent", compare), "--fail-if", gate)
    assert (ran.code, built) == (2, [])
    assert ran.err.count("\n") == 1
    assert re.search(message, ran.err), ran.err


def test_an_encoder_has_nothing_to_do_with_questions_in_words(cli: Any, folder: Path) -> None:
    ran = cli("matrix", write(folder, "encoder", 'tasks = "tasks.jsonl"'), "--report", folder / "r.json")
    assert ran.code == 2
    assert "tasks.jsonl has no question with a picture, and" in ran.err
    assert not (folder / "matrix").exists()


def test_a_picture_is_no_use_to_a_model_of_text(folder: Path) -> None:
    found = read_matrix(write(folder, "blind", 'image = "a.png"'))
    with pytest.raises(InputError, match="takes no images"):
        check_measuring(found, measuring_options(found.compare))


def test_what_can_be_measured_passes(folder: Path) -> None:
    found = read_matrix(
        write(folder, "absent", 'tasks = "tasks.jsonl"\nimage = "a.png"\nbaselines = ["openvino-genai=."]')
    )
    check_measuring(found, measuring_options(found.compare), Gate.parse("accuracy<50 or size_mb>9"))


def test_without_a_report_nothing_of_it_is_asked(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_run, "run_matrix", lambda *_: [])
    assert cli("matrix", write(folder, "absent", 'tasks = "none.jsonl"'), "--json").code == 0
