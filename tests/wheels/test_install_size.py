"""What an installation needs, and what of it may be missing."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from tests.helpers.extras import MAIN, run_without
from tests.paths import ROOT
from tests.wheels.install_size import needed, plain, size

PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
LEFT_OUT = ("pygments", "markdown_it", "mdurl", "huggingface_hub", "hf_xet", "yaml", "filelock", "fsspec", "anyio",
            "httpx", "httpx2", "httpcore", "httpcore2", "h11", "idna", "tqdm", "truststore", "flatbuffers",
            "packaging")  # fmt: skip


@pytest.mark.parametrize("command", [["run", "Hi", "--max-new-tokens", "2"], ["inspect"], ["embed", "Hi"]])
def test_what_is_left_out_is_not_needed(command: list[str], tiny_bundle: Path, tmp_path: Path) -> None:
    verb, *rest = command
    out = ["-o", tmp_path / "out.npz"] if verb == "embed" else []
    ran = run_without(LEFT_OUT, MAIN, verb, tiny_bundle, *rest, *out)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_page_has_what_lensmith_asks_for() -> None:
    rows = re.findall(r"^\| ([\w, -]+) \| [\d.]+ \| (yes|no) \|", PAGE, re.M)
    imported = {name: known == "yes" for names, known in rows for name in names.split(", ")}
    asked = {name for name, by in needed("lensmith", set()) if by == "lensmith"}
    assert asked <= {name for name, known in imported.items() if known}
    (alone,) = re.findall(r"^pip install --no-deps lensmith-\*\.whl (.+)$", PAGE, re.M)
    used = {name for name, known in imported.items() if known}
    assert {"lensmith", *alone.split(), "typing-extensions"} == used


def test_sizes_are_those_of_the_files() -> None:
    assert plain("Jinja2_extra.x") == "jinja2-extra-x"
    files = importlib.metadata.files("click") or ()
    there = sum(Path(str(file.locate())).stat().st_size for file in files if file.suffix != ".pyc")
    assert size("click") == there > 100_000
