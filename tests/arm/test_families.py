"""On Arm, bundles of all families give what they gave when they were built on another machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.synth.making import synth

from tests.arm.emulator import PROCESSORS, run
from tests.arm.patience import take_time
from tests.arm.root import ArmRoot
from tests.helpers import ladder
from tests.helpers.extras import Ran
from tests.paths import TINY

SMALL: dict[str, Any] = {"context": 200, "max_pixels": 64 * 64}  # an emulated image of usual size takes ten seconds
# A trained model of the repository, or a name of `lensmith synth`, and how it is exported.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_vl": SMALL,
    "qwen3_5": SMALL,
    "llava": {"context": 200},  # images have one size
    "nemotron-4b": SMALL,
    "qwen2-vl-2b": SMALL,
    "qwen2.5-vl-3b": SMALL,
    "smolvlm2-500m": {"context": 200},
    "arlow-vision": {"max_pixels": 128 * 128},
}
TRAINED = [name for name in FAMILIES if (TINY / name).is_dir()]
# lensmith's kernels on each processor, and ONNX Runtime's own on the one that has most ways to compute.
WAYS = [*((processor, "1") for processor in PROCESSORS), ("max", "0")]
QUICK = ("qwen3_vl", "max", "1")
PICTURE = TINY / "heldout" / "images" / "0001.png"
QUESTION = "What word is written?"
Bundles = Callable[[str], Path]


def all_or_quick(name: str, processor: str = "max", native: str = "1") -> None:
    take_time((name, processor, native) == QUICK)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Bundles in int4 with what PyTorch gave, made on this machine."""
    ladder.need_torch()
    folder = tmp_path_factory.mktemp("families")

    @cache
    def make(name: str) -> Path:
        source = TINY / name if name in TRAINED else synth(name, folder / f"{name}-source", tiny=True)
        return export(prepare(source, Options(**FAMILIES[name])), folder / name, golden="always").path

    return make


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("processor", "native"), WAYS)
def test_verify_passes(processor: str, native: str, name: str, arm: ArmRoot, bundles: Bundles) -> None:
    all_or_quick(name, processor, native)
    ran = run(arm, processor, ["-m", "lensmith.cli", "verify", bundles(name), "--json"], LENSMITH_NATIVE=native)
    report = json.loads(ran.stdout)
    assert report["passed"]
    assert {row["output"].split(":")[0] for row in report["rows"]} >= {"vision_encoder"}


@pytest.mark.parametrize("name", TRAINED)
def test_answers_are_those_of_this_machine(name: str, arm: ArmRoot, bundles: Bundles, cli: Callable[..., Ran]) -> None:
    all_or_quick(name)
    question: list[str | Path] = ["run", bundles(name), QUESTION, "--image", PICTURE, "--json", "--max-new-tokens", "8"]
    here = cli(*question)
    assert here.code == 0, here.err
    there = run(arm, "max", ["-m", "lensmith.cli", *question])
    assert json.loads(there.stdout)["ids"] == json.loads(here.out)["ids"]


def test_features_of_an_encoder(arm: ArmRoot, bundles: Bundles, tmp_path: Path) -> None:
    all_or_quick("arlow-vision")
    out = tmp_path / "features.npz"
    run(arm, "max", ["-m", "lensmith.cli", "run", bundles("arlow-vision"), "--image", PICTURE, "--out", out])
    assert out.is_file()
