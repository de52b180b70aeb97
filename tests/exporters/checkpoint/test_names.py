"""The same weights under the names that versions and wrappers give them: one checkpoint, or one clear refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.checkpoint.names import canonical_names
from lensmith.exporters.evidence.reference import Reference
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.targets.errors import InputError
from safetensors.numpy import load_file, save_file

from tests.helpers.ladder import need_torch
from tests.paths import TINY

FAMILIES = ("qwen3_vl", "qwen3_5", "llava")
Rename = Callable[[str], str]

VARIANTS: Mapping[str, Rename] = {
    "without model.": lambda name: name.removeprefix("model."),
    "a model within": lambda name: f"model.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled, data parallel, peft": lambda name: f"_orig_mod.module.base_model.model.{name}",
    "parts compiled": lambda name: name.replace("visual.", "visual._orig_mod.").replace("layers.", "layers._orig_mod."),
    "language_model.model": lambda name: name.replace("model.language_model.", "language_model.model."),
    "head inside": lambda name: name.replace("lm_head.", "language_model.lm_head."),
    "text at the top": lambda name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
    "tower inside": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
    "no words in front": lambda name: name.replace("model.", "").replace("language_", ""),
}


def renamed(family: str, folder: Path, rename: Rename) -> Path:
    """A trained checkpoint with an output head of its own, whose tensors have other names."""
    shutil.copytree(TINY / family, folder)
    tensors = {stored: tensor.raw() for stored, tensor in _canonical(family).items()}
    save_file({rename(name): values for name, values in tensors.items()}, folder / "model.safetensors")
    return folder


def _canonical(family: str) -> Mapping[str, Any]:
    tensors = dict(open_checkpoint(TINY / family).tensors)
    return tensors | {"lm_head.weight": tensors["model.language_model.embed_tokens.weight"]}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_all_writers(family: str, variant: str, tmp_path: Path) -> None:
    """The same tensors, byte for byte, under the names of transformers 5; nothing is left over."""
    job = prepare(renamed(family, tmp_path / "renamed", VARIANTS[variant]), Options())
    expected = _canonical(family)
    assert list(job.checkpoint.tensors) == sorted(expected)
    for name, tensor in job.checkpoint.tensors.items():
        assert tensor.raw().tobytes() == expected[name].raw().tobytes(), name


@pytest.mark.parametrize("variant", ["without model.", "peft", "parts compiled", "text at the top"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pytorch_gets_the_same_weights(family: str, variant: str, tmp_path: Path) -> None:
    """Traces are recorded from the whole model, also where transformers alone would not find its tensors."""
    need_torch()
    path = renamed(family, tmp_path / "renamed", VARIANTS[variant])
    ours, theirs = (Reference(folder, threads=1).model.state_dict() for folder in (path, TINY / family))
    assert all(bool((ours[name] == values).all()) for name, values in theirs.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_names_do_not_change_a_bundle(family: str, tmp_path: Path) -> None:
    sources = TINY / family, renamed(family, tmp_path / "renamed", VARIANTS["without model."])
    bundles = [export(prepare(s, Options()), tmp_path / f"{i}", golden="never") for i, s in enumerate(sources)]
    one, other = ({name: record["sha256"] for name, record in b.content["files"].items()} for b in bundles)
    assert one == other


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    path = renamed("qwen3_vl", tmp_path / "mixed", lambda name: name)
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {"visual.pos_embed.weight": tensors["model.visual.pos_embed.weight"]},
              path / "model.safetensors")  # fmt: skip
    twice = "twice, as 'model.visual.pos_embed.weight' and as 'visual.pos_embed.weight'; two checkpoints are mixed"
    with pytest.raises(InputError, match=twice):
        prepare(path, Options())


def test_unknown_names_are_refused_as_they_are_stored(tmp_path: Path) -> None:
    path = renamed("qwen3_vl", tmp_path / "other", lambda name: name.replace("model.visual.", "module.model.tower."))
    with pytest.raises(InputError, match=r"holds 0: the weights") as error:
        prepare(path, Options())
    assert error.value.exit_code == 2
    tensors = load_file(TINY / "qwen3_vl" / "model.safetensors")
    save_file(tensors | {"module.model.visual.new": np.zeros(1, np.float32)}, path / "model.safetensors")
    with pytest.raises(InputError, match=r"1 tensors .* such as 'module\.model\.visual\.new'"):
        prepare(path, Options())


def test_names_of_encoders_alone_stay() -> None:
    names = ["blocks.0.norm1.weight", "module.x"]
    assert canonical_names(names, ()) == {name: name for name in names}


def test_shards_of_several_number_types(tmp_path: Path) -> None:
    """Values of float64, float32, float16 and bfloat16 are those that PyTorch reads as float32."""
    need_torch()
    path = renamed("qwen3_vl", tmp_path / "mixed", lambda name: name)
    tensors = load_file(path / "model.safetensors")
    kinds = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
    (path / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for shard, kind in enumerate(kinds):
        part = {name: values.astype(kind) for name, values in list(tensors.items())[shard::4]}
        save_file(part, path / f"model-{shard}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{shard}.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    theirs = Reference(path, threads=1).model.state_dict()
    for name, tensor in prepare(path, Options()).checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), theirs[name].numpy())
