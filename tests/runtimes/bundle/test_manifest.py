"""Every field of a manifest, damaged in every way: one sentence that names it, or the field may have that value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lensmith.runtimes.bundle.bundle_writer import BundleWriter
from lensmith.runtimes.bundle.checked_manifest import check_manifest
from lensmith.runtimes.bundle.opening import MANIFEST, open_bundle
from lensmith.targets.errors import InputError

from tests.helpers.extras import Ran
from tests.helpers.manifests import CONTENT, DAMAGES, DELETE, damaged, fields

SMALLEST = {**CONTENT, "format_version": 1, "files": {"decoder.onnx": {"size": 1, "sha256": "0" * 64}}}
KINDS = ("smallest", "qwen3-vl-2b", "tarn-2b", "vqwen3-4b", "arlow-vision", "gguf", "tensorrt", "plugin")
CARRIED = ("generation", "options")  # what the exporter's own files and options say is carried along


def shortened(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest whose long lists have one entry."""
    precision = dict(list(manifest["precision"].items())[:1])
    files = dict(list(manifest["source"]["files"].items())[:1])
    return {**manifest, "precision": precision, "source": {**manifest["source"], "files": files}}


@pytest.fixture(params=KINDS)
def manifest(request: pytest.FixtureRequest, made: Callable[[str], Path]) -> dict[str, Any]:
    if request.param == "smallest":
        return SMALLEST
    return shortened(json.loads((made(request.param) / MANIFEST).read_text()))


def test_every_damaged_field_has_its_sentence(manifest: dict[str, Any]) -> None:
    refused = taken = 0
    for path in fields(manifest):
        for damage in DAMAGES.values():
            try:
                check_manifest(damaged(manifest, path, damage), "here")
                taken += 1
            except InputError as error:
                refused += 1
                text = str(error)
                assert any(str(part) in text for part in path) or "has format" in text, (path, text)
                assert "\n" not in text
                assert len(text) < 800
    assert refused > taken > 0


def test_every_field_needs_its_type(manifest: dict[str, Any]) -> None:
    """No field takes both a text and an object, except where it is carried along."""
    for path in fields(manifest):
        if path[0] in CARRIED or path[:2] == ("evidence", "calibration"):
            continue
        taken = [damage for damage in ("x", {"x": ["y"]}, [[["z"]]]) if is_taken(damaged(manifest, path, damage))]
        assert len(taken) < 2, path


def test_unknown_fields_are_named(manifest: dict[str, Any]) -> None:
    for section in ("source", "limits", "image", "evidence", "graphs", "prompt", "video", "encoder"):
        if section in manifest:
            made = damaged(manifest, (section, "newer"), 1)
            with pytest.raises(InputError, match=r"newer|graphs\[\.\.\.\]"):
                check_manifest(made, "here")
    with pytest.raises(InputError, match="the manifest has the field 'x', which this lensmith does not know"):
        check_manifest({**manifest, "x": 1}, "here")


def is_taken(manifest: dict[str, Any]) -> bool:
    try:
        check_manifest(manifest, "here")
    except InputError:
        return False
    return True


DISAGREEMENTS: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "end token": (("prompt", "eos_token_ids"), [10**6], "prompt.eos_token_ids has 1000000 of a vocabulary of"),
    "special token": (("prompt", "token_ids", "<|image_pad|>"), 10**6, "prompt.token_ids has 1000000"),
    "image token": (("prompt", "tokens", "image_token"), "<x>", "prompt.token_ids lacks the image_token '<x>'"),
    "merge": (("prompt", "merge_size"), 4, "prompt.merge_size is not image.merge_size"),
    "patch": (("image", "patch_size"), 7, "limits.max_image_tokens should be"),
    "range": (("limits", "min_pixels"), 1 << 26, "limits.min_pixels is above limits.max_pixels"),
    "video": (("video", "patch_size"), 7, "video.patch_size is not image.patch_size"),
    "frames": (("video", "min_frames"), 1 << 20, "video.min_frames is above video.max_frames"),
    "features": (("graphs", "vision_encoder", "outputs", "image_features", "shape"), ["n", 7], "is not the encoder's"),
    "positions": (("graphs", "decoder", "inputs", "position_ids", "shape"), [4, "b", "s"], "expected [3, batch, seq]"),
    "logits": (("graphs", "decoder", "outputs", "logits", "shape"), [1, 1, "v"], "of which the last is a number"),
    "state": (("graphs", "decoder", "outputs", "present.0.key"), DELETE, "outputs['present.0.key'] is not as inputs"),
    "format": (("options", "format"), "gguf", "options.format is 'gguf' and the decoder a .onnx"),
    "dialect": (("graphs", "decoder", "dialect"), "tensorrt", "dialect is 'tensorrt', expected ort or cuda"),
    "tokenizer": (("files", "tokenizer.json"), DELETE, "'tokenizer.json', which is not one of its files"),
    "no prompt": (("prompt",), DELETE, "'prompt' is missing, which a bundle with a decoder needs"),
    "keys": (
        ("graphs", "decoder", "inputs", "past_key_values.0.key", "shape"),
        [1, 1 << 10, "capacity", 1 << 10],
        "is",
    ),
    "enlarged": (("limits", "min_pixels"), 1 << 27, "limits.min_pixels"),
    "heads": (("graphs", "decoder", "inputs", "past_key_values.0.key", "shape"), [1, 1 << 30, 1 << 30, 4], "can be"),
}


def test_states_have_sizes_that_models_have(made: Callable[[str], Path]) -> None:
    manifest = json.loads((made("tarn-2b") / MANIFEST).read_text())
    decoder = manifest["graphs"]["decoder"]
    for past, present in (("past_key_values.3.key", "present.3.key"), ("past.0.recurrent", "present.0.recurrent")):
        kept = decoder["inputs"][past]
        wide = {**kept, "shape": [1 << 15 if isinstance(size, int) else size for size in kept["shape"]]}
        ports = {"inputs": {**decoder["inputs"], past: wide}, "outputs": {**decoder["outputs"], present: wide}}
        with pytest.raises(InputError, match="more than can be"):
            check_manifest(damaged(manifest, ("graphs", "decoder"), {**decoder, **ports}), "here")


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_sections_agree(made: Callable[[str], Path], case: str) -> None:
    path, value, message = DISAGREEMENTS[case]
    manifest = json.loads((made("qwen3-vl-2b") / MANIFEST).read_text())
    with pytest.raises(InputError) as caught:
        check_manifest(damaged(manifest, path, value), "here")
    assert message in str(caught.value)


def test_what_is_carried_along_changes_nothing(
    made: Callable[[str], Path], tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    """Odd values of what the runtime only shows are shown."""
    bundle = shutil.copytree(made("qwen3-vl-2b"), tmp_path / "bundle")
    manifest = json.loads((bundle / MANIFEST).read_text())
    first = next(iter(manifest["precision"]))
    for path, value in (
        (("family",), "[/red]"),
        (("source", "license"), "[bold]\u202e"),
        (("options", "x"), {"[/b]": [[None]]}),
        (("precision", first, "reason"), "[/]"),
        (("source", "parameters"), 1 << 50),
        (("tools", "[/x]"), "1"),
        (("evidence", "golden", "reason"), "[/y]"),
    ):
        (bundle / MANIFEST).write_text(json.dumps(damaged(manifest, path, value)))
        assert cli("inspect", bundle, "--tensors").code == 0, path
        assert cli("inspect", bundle, "--json").code == 0, path


def test_a_file_that_matters_is_listed(made: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(made("qwen3-vl-2b"), tmp_path / "bundle")
    (bundle / "notes.txt").write_text("mine")
    open_bundle(bundle)
    for name in ("mtp.onnx", "golden/cases.json", "decoder.engine", "model.gguf"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("{}")
        with pytest.raises(InputError, match=r"is not listed in lensmith\.json, so nobody vouches for it"):
            open_bundle(bundle)
        (bundle / name).unlink()


def test_a_manifest_that_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    def write() -> None:
        with BundleWriter(tmp_path / "out") as writer:
            writer.add("decoder.onnx").touch()
            writer.close({**CONTENT, "limits": {**CONTENT["limits"], "extra": 1}})

    with pytest.raises(InputError, match="limits has the field 'extra'"):
        write()
    assert not list(tmp_path.iterdir())
