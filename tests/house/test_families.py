"""One family in one place: nothing outside of its package names it or takes anything from it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lensmith.exporters.families.families import FAMILIES

from tests.paths import ROOT

PACKAGES = sorted(path.parent.name for path in (ROOT / "exporters" / "families").glob("*/__init__.py"))
TABLE = ROOT / "exporters" / "families" / "families.py"
FOLDERS = ("exporters", "calibration", "runtimes", "serving", "cli", "targets")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
OUTSIDE = [path for path in FILES if path != TABLE and path.parent.name not in PACKAGES]


def texts(tree: ast.Module) -> Iterator[str]:
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
        if isinstance(node, ast.ImportFrom | ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))


def test_there_are_families() -> None:
    assert {"arlow", "llava", "qwen2_5_vl", "qwen3_5", "qwen3_vl"} <= set(PACKAGES)
    assert len(FAMILIES) >= len(PACKAGES)
    assert len(OUTSIDE) > 200


def test_every_model_type_is_told_where_users_look() -> None:
    page = (ROOT / "docs" / "compile.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(?:model_type: )?(\w+)`", page.split("## What can be compiled")[1].split("\n## ")[0]))
    assert FAMILIES.keys() - told == {"arlow"}  # whose checkpoints have the name of a class: ArlowVLVisionModel


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_outside_names_a_family(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    theirs = {"idefics3"} if path.parent.name == "llamacpp" else set()  # llama.cpp's name of an encoder
    assert not FAMILIES.keys() & set(texts(tree)) - theirs
    assert not set(PACKAGES) & set(imported(tree))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_family_takes_from_others_what_they_share_alone(package: str) -> None:
    """One may be built on another, but never in a circle."""
    folder = ROOT / "exporters" / "families"
    needs = {
        name: {
            other
            for path in (folder / name).glob("*.py")
            for other in set(imported(ast.parse(path.read_text(encoding="utf-8")))) & set(PACKAGES) - {name}
        }
        for name in PACKAGES
    }
    seen, left = set[str](), {package}
    while left:
        name = left.pop()
        left |= needs[name] - seen
        seen |= needs[name]
    assert package not in seen
