"""The command that a report shows makes the same bundle again, file by file."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.comparing.export_command import export_command
from lensmith.runtimes.bundle.opening import Bundle, open_bundle

from tests.exporters.checkpoint.test_lora import adapter, down
from tests.paths import TINY

Cli = Callable[..., Any]
CALIBRATED = ("--calibrate", "mse", "--sample-count", 4, "--seed", 7, "--answer-tokens", 0, "--target", "cpu-any")
WAYS = {
    "groups": ("--group-size", 64, "--asymmetric", "--kv-cache", "float", "--context", 512, "--with-handler"),
    "rows": ("--group-size", "channel", "--precision", "int8", "--max-pixels", 65_536),
    "floats": ("--precision", "fp32"),
    "gguf": ("--format", "gguf", "--precision", "q4_k_m", "--tensor-type", "attn_v=f16", "--tensor-type", "ffn_up=f16"),
    "calibrated": CALIBRATED,
}


@pytest.fixture
def spaced(tmp_path: Path) -> Path:
    """A checkpoint whose path a shell would take apart."""
    return Path(shutil.copytree(TINY / "qwen3_vl", tmp_path / "my model; true"))


def again(cli: Cli, bundle: Bundle, command: str, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """What the words of the command make in another folder."""
    folder = bundle.path.parent / "again"
    folder.mkdir()
    monkeypatch.chdir(folder)
    lensmith, *words = shlex.split(command)
    assert lensmith == "lensmith"
    ran = cli(*words)
    assert ran.code == 0, ran.err
    return open_bundle(folder / bundle.path.name)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_files_come_of_it(way: str, spaced: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    out = spaced.parent / "a bundle"
    ran = cli("export", spaced, "-o", out, "--golden", "never", *WAYS[way])
    assert ran.code == 0, ran.err
    bundle = open_bundle(out)
    made = again(cli, bundle, export_command(bundle, open_checkpoint(spaced)), monkeypatch)
    assert made.content["files"] == bundle.content["files"]
    assert made.content["options"] == bundle.content["options"]


def test_an_adapter_is_named(spaced: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    lora, out = adapter(spaced.parent / "it's mine", down()), spaced.parent / "b"
    assert cli("export", spaced, "--adapter", lora, "-o", out, "--golden", "never").code == 0
    bundle = open_bundle(out)
    made = again(cli, bundle, export_command(bundle, open_checkpoint(spaced, lora)), monkeypatch)
    assert made.content["files"] == bundle.content["files"]
    told = shlex.split(export_command(bundle))
    assert told[2] == "my model; true"  # names, where the folders are not known
    assert told[told.index("--adapter") + 1] == "it's mine"


def test_what_else_a_manifest_tells(spaced: Path, cli: Cli) -> None:
    assert cli("export", spaced, "-o", spaced.parent / "b", "--golden", "never").code == 0
    bundle = open_bundle(spaced.parent / "b")
    plain = export_command(bundle)
    assert "--calibrate" not in plain
    assert "--group-size" not in plain
    asked = {"method": "descent", "budget": 1_200_000_000, "only_samples": True, "max_kl": 0.02}
    calibration = {"method": "awq", "asked": asked, "samples": {"source": "my photos"}}
    content = {**bundle.content, "evidence": {"calibration": calibration}}
    assert export_command(replace(bundle, content=content)).endswith(
        "--kv-cache float16 --calibrate descent --only-samples --budget 1200000000 --max-kl 0.02 --samples 'my photos' "
        "--golden never"
    )
    before = {"calibration": {"method": "awq", "samples": {"source": "built-in"}}}
    told = export_command(replace(bundle, content={**bundle.content, "evidence": before}))
    assert told.endswith("--calibrate awq --golden never")
