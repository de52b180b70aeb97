"""The scripts in examples/ as a user runs them, on a small trained model."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.paths import ROOT, TINY

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TRAINED = TINY / "qwen3_vl"
HELDOUT = TINY / "heldout"
PICTURE = HELDOUT / "images" / "0001.png"
QUESTION = "What word is written?"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx_ir", reason="needs lensmith[export]")
    from lensmith.exporters.pipeline import Options, export, prepare

    out = tmp_path_factory.mktemp("examples") / "int4"
    return export(prepare(TRAINED, Options()), out, golden="never").path


def test_all_are_run_here_and_short() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES:
        assert f'run("{example.stem}"' in tests
        assert len(example.read_text(encoding="utf-8").splitlines()) <= 40
    assert len(EXAMPLES) == 5


def test_build_step(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs lensmith[torch]")
    out = tmp_path / "bundle"
    ran = run("build_step", TRAINED, out, "1", "--precision", "int8")
    assert ran.returncode == 1  # proven, and too large
    assert "more than the product's 1" in ran.stderr
    assert (out / "golden" / "traces.npz").is_file()
    none = run("build_step", tmp_path / "nothing", out, "1")
    assert none.returncode == 2  # what fails ends the build with its own exit code
    assert "nothing" in none.stderr + none.stdout


def test_product_loop(bundle: Path) -> None:
    ran = run("product_loop", bundle, PICTURE, QUESTION, "Read all the words.")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == "lion"
    first, second = (line.split() for line in ran.stderr.splitlines() if line.startswith("["))
    assert first[2] == "0"
    assert int(second[2]) > 30  # the picture among them
    assert run("product_loop", bundle, "no.png", QUESTION).stderr.count("\n") == 1


def test_folder_to_jsonl(bundle: Path, tmp_path: Path) -> None:
    for index in (1, 2):
        shutil.copy(HELDOUT / "images" / f"000{index}.png", tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    ran = run("folder_to_jsonl", bundle, tmp_path, QUESTION)
    assert ran.returncode == 0, ran.stderr
    one, two, other = map(json.loads, ran.stdout.splitlines())
    assert one == {"file": "0001.png", "answer": "lion", "finish_reason": "eos"}
    assert two["answer"] == "crow"
    assert other.keys() == {"file", "error"}


def test_encoder_features(made: Callable[[str], Path], bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"
    ran = run("encoder_features", made("arlow-vision"), out, PICTURE, PICTURE)
    assert ran.returncode == 0, ran.stderr
    with np.load(out) as written:
        np.testing.assert_array_equal(written["features_0"], written["features_1"])
    assert "[[1. 1.]" in ran.stdout
    assert "encoder alone" in run("encoder_features", bundle, out, PICTURE).stderr


def test_compare_bundles(bundle: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    rows = [{"images": [str(PICTURE)], "prompt": QUESTION, "answer": answer} for answer in ("lion", "tiger")]
    tasks.write_text("\n".join(map(json.dumps, rows)))
    ran = run("compare_bundles", bundle, bundle, tasks)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 2  # and no answer that differs
    assert all(": 1/2 right, " in line for line in lines)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_examples_say_what_they_take(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "BUNDLE"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert f"python examples/{script.name} " in str(left.value.code)
