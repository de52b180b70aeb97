"""Pixels and ids of golden traces are those of transformers' processors; what is off by little is named."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import re
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.evidence import their_inputs
from lensmith.exporters.evidence.golden_media import FILES, sources
from lensmith.exporters.evidence.recording import CONVERSATIONS
from lensmith.exporters.evidence.their_inputs import TheirInputs
from lensmith.exporters.formats.lowering import find_lowering
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.bundle.checked_manifest import inputs_of
from lensmith.runtimes.media.image_files import open_image
from lensmith.runtimes.media.pixels import image_spec, preprocess
from lensmith.targets.errors import CheckFailed

from tests.exporters.families.test_text_only import plain, text_model
from tests.helpers import hf
from tests.paths import TINY

NAME = FILES[0]
MERGE = 2


@cache
def manifest(path: Path, **options: Any) -> dict[str, Any]:
    hf.import_transformers()
    job = prepare(path, Options(**options))
    return {**job.sections, "options": vars(job.options), "graphs": find_lowering("onnx").signatures(job)}


def theirs(path: Path, **options: Any) -> TheirInputs:
    return TheirInputs(path, manifest(path, **options), text_only=False)


def cut(path: Path, **options: Any) -> Any:
    return preprocess(open_image(sources()[NAME]), image_spec(inputs_of(manifest(path, **options))))


@pytest.mark.parametrize("name", ["qwen3_vl", "llava"])
@pytest.mark.parametrize("most", [None, 40_000])
def test_right_pixels_pass(name: str, most: int | None) -> None:
    options = {"max_pixels": most} if most and name != "llava" else {}
    theirs(TINY / name, **options).check_image(NAME, sources()[NAME], *cut(TINY / name, **options))


def moved(patches: Any, grid: Any) -> Any:
    """An image that is a pixel further to the left: the pixels of each patch one on."""
    return np.roll(patches.reshape(*patches.shape[:-1], -1, 8), -1, axis=-1).reshape(patches.shape), grid


def transposed(patches: Any, grid: Any) -> Any:
    """Columns before rows within each block that is merged."""
    blocks = patches.reshape(-1, MERGE, MERGE, patches.shape[-1])
    return blocks.swapaxes(1, 2).reshape(patches.shape), grid


def by_rows(patches: Any, grid: Any) -> Any:
    """Patches in raster order."""
    _, height, width = grid
    blocks = patches.reshape(height // MERGE, width // MERGE, MERGE, MERGE, -1)
    return blocks.swapaxes(1, 2).reshape(patches.shape), grid


def other_colours(patches: Any, grid: Any) -> Any:
    return patches.reshape(len(patches), 3, -1)[:, ::-1].reshape(patches.shape), grid


PIXELS: dict[str, tuple[Any, str]] = {
    "moved": (moved, "the pixels of golden/image_0.png are off by"),
    "transposed": (transposed, "are off by"),
    "in raster order": (by_rows, "are off by"),
    "other colours": (other_colours, "are off by"),
    "NaN": (lambda patches, grid: (patches * np.float32(np.nan), grid), "are off by nan"),
    "turned": (lambda patches, grid: (patches, (1, grid[2], grid[1])), "has the grid (1, 34, 28)"),
    "short": (lambda patches, grid: (patches[:-4], grid), "has the grid (1, 28, 34)"),
}


@pytest.mark.parametrize("what", PIXELS)
def test_other_pixels_are_named(what: str) -> None:
    change, words = PIXELS[what]
    patches, grid = change(*cut(TINY / "qwen3_vl"))
    with pytest.raises(CheckFailed, match=re.escape(words)):
        theirs(TINY / "qwen3_vl").check_image(NAME, sources()[NAME], patches, grid)


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("name", ["qwen3_vl", "llava"])
def test_normalization_is_theirs(key: str, name: str) -> None:
    made = manifest(TINY / name)
    values = [made["image"][key][0] * 1.001, *made["image"][key][1:]]
    checked = TheirInputs(TINY / name, {**made, "image": {**made["image"], key: values}}, text_only=False)
    with pytest.raises(CheckFailed, match=f"normalized by the {key} .*, there by"):
        checked.check_image(NAME, sources()[NAME], *cut(TINY / name))


def ids(path: Path, case: str) -> list[int]:
    """By transformers' own processor, without this module."""
    processor = hf.import_transformers().AutoProcessor.from_pretrained(path)
    messages = [
        {**turn, "content": [
            {"type": "image", "image": open_image(sources()[b["image"]])} if b["type"] == "image" else b
            for b in turn["content"]
        ]}
        for turn in CONVERSATIONS[case]
    ]  # fmt: skip
    made = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    return list(made["input_ids"][0])


def test_other_ids_are_named() -> None:
    checked, right = theirs(TINY / "qwen3_vl"), ids(TINY / "qwen3_vl", "one image")
    messages = CONVERSATIONS["one image"]
    checked.check_ids("one image", messages, sources(), right)
    for wrong, place in (([*right[:-1], 0], len(right) - 1), (right[:-1], len(right) - 1), ([5, *right], 0)):
        with pytest.raises(CheckFailed, match=f"'one image' has {len(wrong)} ids, .* first other one at {place};"):
            checked.check_ids("one image", messages, sources(), wrong)


def test_a_tokenizer_alone_has_ids(tmp_path: Path) -> None:
    source = text_model(tmp_path / "text", plain)
    checked = TheirInputs(source, manifest(source), text_only=True)
    messages, right = CONVERSATIONS["text only"], ids(TINY / "qwen3_5", "text only")
    checked.check_ids("text only", messages, sources(), right)
    with pytest.raises(CheckFailed, match="'text only' has"):
        checked.check_ids("text only", messages, sources(), right[1:])


def test_a_processor_that_does_not_open_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Path(shutil.copytree(TINY / "qwen3_vl", tmp_path / "source"))
    made = manifest(source)
    (source / "tokenizer.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        checked = TheirInputs(source, made, text_only=False)
    assert "were not compared with transformers', whose processor" in caplog.text
    checked.check_image(NAME, sources()[NAME], *cut(TINY / "llava"))
    checked.check_ids("one image", CONVERSATIONS["one image"], sources(), [1])


@pytest.mark.parametrize("there", [True, False])
def test_a_processor_that_wants_torchvision(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What transformers says of it is long, and names no command."""
    source = Path(shutil.copytree(TINY / "qwen3_vl", tmp_path / "source"))
    made = manifest(source)

    def fails(*_: Any, **__: Any) -> None:
        raise ImportError("Qwen3VLVideoProcessor requires the Torchvision library but\nit was not found")

    monkeypatch.setattr(their_inputs, "_open", fails)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if there else None)
    with caplog.at_level(logging.WARNING):
        TheirInputs(source, made, text_only=False)
    assert ("run: pip install torchvision" in caplog.text) != there
    assert ("the Torchvision library but it was not found" in caplog.text) == there


@pytest.mark.parametrize(
    ("version", "lacks"), [("0.23.0", True), ("0.26.1+cpu", True), ("0.27.0", False), ("1.0", False)]
)
def test_a_torchvision_without_lanczos(
    version: str, lacks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers takes cubic weights then, and other pixels would be no fault of the bundle's."""
    source = synth("smolvlm2-500m", tmp_path / "tiny", tiny=True)
    made = manifest(source)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    monkeypatch.setattr(their_inputs, "_open", lambda *_, **__: SimpleNamespace(image_processor=None))
    with caplog.at_level(logging.WARNING):
        checked = TheirInputs(source, made, text_only=False)
    assert ("install 0.27 or later" in caplog.text) == lacks
    with contextlib.nullcontext() if lacks else pytest.raises(AttributeError):  # of the processor that is asked
        checked.check_image(NAME, sources()[NAME], *cut(source))
