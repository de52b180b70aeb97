"""The documentation: pages that build strictly, code that is right, a public API without gaps."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from lensmith import runtimes
from lensmith.runtimes.bundle import manifest

from tests.paths import ROOT, TINY

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"```python\n(.*?)```", re.S)


def code_of(page: Path) -> list[str]:
    return PYTHON.findall(page.read_text(encoding="utf-8"))


def test_pages_build(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs lensmith[docs]")
    pytest.importorskip("mkdocstrings", reason="needs lensmith[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in runtimes.__all__:
        assert re.search(rf'id="lensmith\.runtimes\.[\w.]*\b{name}"', api), name


def test_the_public_api_is_whole() -> None:
    named = re.findall(r"^::: lensmith\.runtimes\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(runtimes.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_in_pages_work(page: Path) -> None:
    for code in code_of(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lensmith"):
                if "exporters" in (node.module or ""):
                    pytest.importorskip("onnx_ir", reason="needs lensmith[export]")
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_every_section_of_the_manifest_is_described() -> None:
    """Each field of each record that the bundle format has, in code letters."""
    page = (ROOT / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    elsewhere = {"Kernels", "EngineEntry"}  # TensorRT's own words
    records = [kind for kind in vars(manifest).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    missing = {f"{kind.__name__}.{name}" for kind in records if kind.__name__ not in elsewhere
               for name in kind.__struct_fields__ if name not in words}  # fmt: skip
    assert not missing


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a small trained model, made once."""
    pytest.importorskip("onnx_ir", reason="needs lensmith[export]")
    from lensmith.exporters.pipeline import Options, export, prepare

    @cache
    def made(model: str) -> Path:
        folder = tmp_path_factory.mktemp(model) / "bundle"
        return export(prepare(TINY / model, Options()), folder, golden="never").path

    return made


def test_a_picture_of_ones_own(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page draws is answered as the page says."""
    page = ROOT / "docs" / "getting-started.md"
    monkeypatch.chdir(tmp_path)
    exec(next(code for code in code_of(page) if code.startswith("# draw.py")), {})
    asked = re.findall(r'(?m)^lensmith run \S+ "(.+)" --(.+) (mine\.\w+).* # (\w+)$', page.read_text(encoding="utf-8"))
    assert {file for _, _, file, _ in asked} == {"mine.png", "mine.gif"}
    model = runtimes.load(bundle_of("qwen3_vl"))
    for question, kind, file, answer in asked:
        medium: dict[str, Any] = {"images": [file]} if kind == "image" else {"videos": [file], "fps": 1}
        assert model.ask(question, **medium).read() == answer, question


def test_every_extra_is_named() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    rows = "".join(re.findall(r"(?m)^\| (`.+?) \|", (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")))
    assert set(re.findall(r"`([\w-]+)`", rows)) == extras.keys() - {"all"}


def test_a_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page makes with transformers is a checkpoint without tensors that are zeros or ones alone."""
    pytest.importorskip("transformers", reason="needs lensmith[torch]")
    from lensmith.exporters.pipeline import Options, prepare
    from safetensors.numpy import load_file

    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    code = code_of(ROOT / "docs" / "add-a-family.md")
    exec(next(part for part in code if part.startswith("# first.py")), {})
    assert prepare("build/first", Options(precision="fp32")).spec.family == "llava"
    assert all(tensor.std() > 0 for tensor in load_file("build/first/model.safetensors").values())


@pytest.mark.parametrize("model", ["qwen3_vl", "qwen3_5"])
def test_a_bundle_is_driven_from_its_description(model: str, bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The driver that the page prints, which knows nothing of lensmith, gives the answer of its runtime."""
    bundle = bundle_of(model)
    code = next(code for code in code_of(ROOT / "docs" / "bundle-format.md") if code.startswith("# driver.py"))
    (tmp_path / "driver.py").write_text(code, encoding="utf-8")
    assert "lensmith." not in code.replace("lensmith.json", "")
    picture, question = TINY / "heldout" / "images" / "0001.png", "What word is written?"
    answer = runtimes.load(bundle).ask(question, [picture])
    command = [sys.executable, str(tmp_path / "driver.py"), str(bundle), str(picture), question]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["text"] == answer.read() == "lion"


def test_services_start_with_options_that_exist() -> None:
    """The unit of systemd and the container of docs/install.md."""
    from lensmith.cli.serve import serve

    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (unit,) = re.findall(r"^ExecStart=/opt/lensmith/bin/lensmith serve (.+)$", text, re.M)
    entry, command = (json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.+\])$", text, re.M))
    assert entry[:2] == ["lensmith", "serve"]
    for given in (unit.split(), [*entry[2:], *command]):
        values, *_ = serve.make_parser(click.Context(serve)).parse_args([*given])  # an error for an unknown option
        assert (values["threads"], values["context"]) == ("4", "4096")
        assert values["bundles"] == (given[0],)
