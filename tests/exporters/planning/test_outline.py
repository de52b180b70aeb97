"""A folder of configurations is enough for a plan: the tensors that it implies are those of the published models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from lensmith.exporters.checkpoint.names import canonical_names
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.targets.errors import InputError

from tests.helpers.outlines import NAMES, outline
from tests.paths import TINY


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_of_the_published_model(name: str, tmp_path: Path) -> None:
    """At full size; the layouts of `synth` are the reference, which stand for transformers' own."""
    folder, published = outline(name, tmp_path / "configs")
    job = prepare(folder, Options(), outline=True)
    used = {source.name for graph in job.graphs for source in graph.sources}
    found = {name: tensor.shape for name, tensor in job.checkpoint.tensors.items()}
    names = canonical_names(published, job.checkpoint.conventions.names)
    reference = {new: published[old] for old, new in names.items()}
    assert found.keys() == used
    assert found == {name: reference[name] for name in used}


@pytest.mark.parametrize("options", [
    Options(), Options(precision="fp16"), Options(format="gguf", precision="q8_0"),
    Options(format="tensorrt", target="jetson-thor"),
], ids=lambda options: f"{options.format} {options.precision}")  # fmt: skip
def test_without_weights_a_plan_is_the_same(options: Options, tmp_path: Path) -> None:
    shutil.copytree(TINY / "qwen3_vl", tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    whole = make_plan(prepare(TINY / "qwen3_vl", options))
    planned = make_plan(prepare(tmp_path / "configs", options, outline=True))
    assert "no weights here" in planned.notes[-1]
    same = {"checkpoint": "", "checkpoint_bytes": 0, "notes": ()}
    assert replace(planned, **same) == replace(whole, **same)  # type: ignore[arg-type]


def test_the_size_of_the_checkpoint_is_that_of_its_type(tmp_path: Path) -> None:
    """2,127,532,032 parameters of 16 bits, as in the published file of Qwen3-VL-2B."""
    folder, _ = outline("qwen3-vl-2b", tmp_path / "configs")
    plan = make_plan(prepare(folder, Options(), outline=True))
    assert (plan.parameters, plan.checkpoint_bytes) == (2_127_532_032, 2 * 2_127_532_032)
    assert "no tokenizer.json" in plan.notes[-1]


def test_what_is_no_outline(tmp_path: Path) -> None:
    """Weights are asked for where a bundle is to be built, and where files of weights are there but broken."""
    folder, _ = outline("qwen3-vl-2b", tmp_path / "configs")
    with pytest.raises(InputError, match="has neither model"):
        prepare(folder, Options())
    job = prepare(folder, Options(), outline=True)
    with pytest.raises(InputError, match="has no weights, which plans alone can do without"):
        export(job, tmp_path / "out")
    with pytest.raises(InputError, match="has no weights"):
        next(iter(job.checkpoint.tensors.values())).numpy()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match="only pickled weights"):
        prepare(folder, Options(), outline=True)
