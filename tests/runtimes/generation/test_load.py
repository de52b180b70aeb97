"""Loading obeys each option or refuses it; the package is typed, knows its version and exports what its users need."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lensmith
import numpy as np
import pytest
from lensmith import runtimes
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.synth.making import synth
from lensmith.runtimes import (
    Encoder,
    ImageLimits,
    InputError,
    Model,
    VideoLimits,
    load,
)
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.engines.engine_table import Wishes
from lensmith.runtimes.engines.run_wishes import check_wishes

from tests.helpers.contents import content
from tests.paths import ROOT


@pytest.fixture(scope="module")
def encoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    source = synth("arlow-vision", folder / "source", tiny=True)
    return export(prepare(source, Options(precision="fp32")), folder / "bundle", golden="never").path


BAD: dict[str, list[Any]] = {
    "threads": [0, -1, 1000, 1e12, 2.0, "2", True, math.nan],
    "context": [0, -1, 10**12, 64.0, "64", True],
    "device": ["gpu", 0, "", "CPU"],
    "min_pixels": [0, -1, 1e12, "1024", 10**12],
    "max_pixels": [0, -1, math.nan, "1024", 10**12],
    "max_video_pixels": [0, -1, 1e12, "1024", 10**12],
    "image_limits": [5, {"max_file_bytes": 5}, VideoLimits()],
    "video_limits": [5, ImageLimits()],
    "conversations": [0, -1, 1e12, 10**12, "2", True],
    "profile": ["yes", 1],
    "native": ["yes", 1],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_of_models(name: str, tiny_bundle: Path) -> None:
    for value in BAD[name]:
        with pytest.raises(InputError, match=name.removeprefix("max_video_")) as caught:
            load(tiny_bundle, **{"context": 64, name: value})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "name", ["threads", "context", "device", "min_pixels", "max_pixels", "image_limits", "profile"]
)
def test_bad_values_of_encoders(name: str, encoder_bundle: Path) -> None:
    for value in BAD[name]:
        with pytest.raises(InputError, match=name):
            load(encoder_bundle, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("max_video_pixels", 4096), ("video_limits", VideoLimits()), ("conversations", 2)]
)
def test_what_encoders_do_not_know(name: str, value: Any, encoder_bundle: Path) -> None:
    with pytest.raises(InputError, match=f"{name} has no effect"):
        load(encoder_bundle, **{name: value})


def test_encoders_cannot_be_asked(encoder_bundle: Path) -> None:
    encoder = load(encoder_bundle, threads=np.int64(1), native=False)  # type: ignore[arg-type]
    assert isinstance(encoder, Encoder)
    for method in (encoder.ask, encoder.generate):
        with pytest.raises(InputError, match="use image, clip or features"):
            method("What is this?", [])


@pytest.mark.parametrize("wish", [{"fps": 0}, {"fps": math.inf}, {"fps": "2"}, {"num_frames": 1.5}, {"num_frames": 0}])
def test_wishes_for_clips(wish: dict[str, Any], encoder_bundle: Path) -> None:
    encoder = load(encoder_bundle, threads=1)
    assert isinstance(encoder, Encoder)
    with pytest.raises(InputError, match=f"{next(iter(wish))} of a clip"):
        encoder.clip([np.zeros((64, 64, 3), np.uint8)] * 4, **wish)


def test_times_of_an_encoder_are_those_of_its_parts(encoder_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, ticks = load(encoder_bundle, threads=1), iter([10.0, 10.25, 10.75])
    assert isinstance(encoder, Encoder)
    monkeypatch.setattr("lensmith.runtimes.generation.encoder.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    made = encoder.image(np.zeros((64, 64, 3), np.uint8))
    assert (made.image_ms, made.vision_ms) == (250, 500)
    assert len(made) == len(made.features) != len(made.grid)


def test_unknown_options_are_no_options(tiny_bundle: Path) -> None:
    with pytest.raises(TypeError, match="thread"):
        load(tiny_bundle, thread=2)  # type: ignore[call-arg]


def test_good_values(tiny_bundle: Path) -> None:
    model = load(tiny_bundle, threads=1, context=64, device="cpu", max_pixels=2048, conversations=2, profile=False)
    assert isinstance(model, Model)
    assert model.decoder.capacity == 64
    assert model.ask("Hi", max_new_tokens=2, ignore_eos=True).read() is not None


ENGINE = {"flavour": "tensorrt", "version": "0", "capabilities": [], "profiles": [{}]}


@pytest.mark.parametrize(
    ("graph", "wishes", "words"),
    [
        ({"file": "model.gguf"}, Wishes(native=True), "native=True has no effect"),
        ({"file": "model.gguf"}, Wishes(profile=True), "profile=True has no effect"),
        ({"engine": ENGINE, "dialect": "tensorrt"}, Wishes(device="cpu"), "device='cpu' has no effect"),
        ({"engine": ENGINE, "dialect": "tensorrt"}, Wishes(threads=2), ""),
        ({"plugin": {"profiles": [{}]}, "dialect": "tensorrt"}, Wishes(profile=True), "profile=True has no effect"),
        ({"dialect": "cuda"}, Wishes(threads=2, device="cpu"), ""),
        ({"dialect": "cuda"}, Wishes(native=True, device="cpu"), "native=True has no effect"),
        ({"file": "model.gguf"}, Wishes(threads=2, native=False), ""),
    ],
)
def test_what_an_engine_cannot_obey(graph: dict[str, Any], wishes: Wishes, words: str, tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, content({"decoder": graph}))
    if not words:
        check_wishes(bundle, wishes)
        return
    with pytest.raises(InputError, match=words):
        check_wishes(bundle, wishes)


@pytest.mark.parametrize("value", [0, -1, 1e9, "5", True, None, math.nan])
def test_limits_check_themselves(value: Any) -> None:
    for name in ("max_decoded_pixels", "max_file_bytes"):
        with pytest.raises(InputError, match=name):
            ImageLimits(**{name: value})
    for name in ("max_source_frames", "max_source_pixels", "max_file_bytes"):
        with pytest.raises(InputError, match=name):
            VideoLimits(**{name: value})
    with pytest.raises(InputError, match="image_limits"):
        VideoLimits(frame=value or 0)  # type: ignore[arg-type]


def test_the_package_knows_its_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == ".src/lensmith/__init__.py"
    assert [int(number) >= 0 for number in lensmith.__version__.split(".")] == [True] * 3


def test_public_names() -> None:
    assert {name for name in runtimes.__all__ if not hasattr(runtimes, name)} == set()
    assert {"InputError", "LensmithError", "CheckFailed", "MissingExtra", "ImageLimits", "VideoLimits"} <= set(
        runtimes.__all__
    )


def test_users_code_is_typed(tmp_path: Path) -> None:
    """What a program that uses the package gets to know from mypy."""
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(
        "import lensmith\nfrom lensmith.runtimes import load\n"
        "model = load('bundle', threads=2, context=64)\nreveal_type(lensmith.__version__)\nreveal_type(model)\n"
        "answer = model.ask('Hi', max_new_tokens=3)\nreveal_type(answer)\nload('bundle', thread=2)\n",
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        os.devnull,
        "--follow-imports",
        "silent",
        str(program),
    ]
    environment = {**os.environ, "MYPYPATH": str(ROOT / ".src")}
    out = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path).stdout
    assert 'Revealed type is "' in out
    assert re.search(r"Model \| |Union\[[\w.]+\.Model, ", out)  # as mypy of today writes it, and of before
    assert "Answer" in out
    assert "Any" not in out
    assert 'Unexpected keyword argument "thread"' in out
    assert out.count("error:") == 1, out
