"""The export pipeline: the same bytes from the same weights however they are stored, and every tensor accounted for."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx_ir as ir
import pytest
from lensmith.exporters.bundle_manifest import key_of
from lensmith.exporters.checkpoint import tokenizer_files
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.pipeline import (
    Options,
    export,
    prepare,
)
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.storage import weights
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.prompt import tokenizer_check
from lensmith.runtimes.storage import files
from lensmith.targets.errors import InputError
from safetensors.numpy import load_file, save_file

from tests.paths import TINY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth("qwen3-vl-2b", tmp_path_factory.mktemp("checkpoint") / "tiny", tiny=True)


def built(checkpoint: Path, out: Path, **options: object) -> Bundle:
    return export(prepare(checkpoint, Options(**options)), out, golden="never")  # type: ignore[arg-type]


def float32_copy(checkpoint: Path, out: Path) -> dict[str, np.ndarray]:
    shutil.copytree(checkpoint, out)
    return {name: t.numpy() for name, t in open_checkpoint(checkpoint).tensors.items()}


@pytest.mark.parametrize("family", ["qwen3_5", "llava"])
def test_tensors_lie_behind_each_other_and_large_ones_on_pages(family: str) -> None:
    """What a graph borrows lies in the file of the one that lends it."""
    job = prepare(TINY / family, Options())
    places: dict[str, tuple[str, int]] = {}
    for graph in job.graphs:
        jobs, size = weights.layout(graph, job.checkpoint)
        model = weights.with_data(graph, job.checkpoint)
        end = 0
        for each in jobs:
            for parameter, offset in zip(each.source.parameters, each.offsets, strict=True):
                nbytes = weights.stored_bytes(parameter)
                assert offset % (4096 if nbytes >= 4096 else 64) == 0
                assert end <= offset < end + 4096
                assert place(model, parameter) == (f"{graph.name}.data", offset)
                end = offset + nbytes
            places[each.source.name] = place(model, each.source.parameters[0])
            if each.source.alias is not None:
                assert place(model, each.source.alias) == places[each.source.name]
        assert size == end
        for source in graph.borrowed:
            assert place(model, source.parameters[0]) == places[source.name] == ("decoder.data", places[source.name][1])
    assert any(graph.borrowed for graph in job.graphs) == (family == "qwen3_5")


def place(model: ir.Model, parameter: ir.Value) -> tuple[str, int]:
    """The data file of a parameter, and where it begins there."""
    stored = model.graph.initializers[str(parameter.name)].const_value
    assert isinstance(stored, ir.ExternalTensor)
    return str(stored.location), int(stored.offset or 0)


def test_what_graphs_depend_on_is_in_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what an interrupted export has finished is used again by the same one alone."""
    folder = shutil.copytree(TINY / "qwen3_vl", tmp_path / "source")
    job = prepare(folder, Options())
    keys = [key_of(job), key_of(prepare(folder, Options(context=64))), key_of(prepare(folder, Options(group_size=32)))]
    keys.append(key_of(replace(job, calibrated=replace(job.calibrated, key="samples"))))
    keys.append(key_of(replace(job, policy=replace(job.policy, int8_roles=("vision.fc1",)))))
    keys.append(key_of(replace(job, checkpoint=replace(job.checkpoint, config={**job.checkpoint.config, "x": 1}))))
    stat = (folder / "model.safetensors").stat()
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    keys.append(key_of(job))
    with open(folder / "tokenizer_config.json", "a") as file:
        file.write(" ")
    keys.append(key_of(job))
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0")
    keys.append(key_of(job))
    assert len(set(keys)) == len(keys)
    assert key_of(job) == keys[-1]


def test_same_inputs_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    one, two = built(checkpoint, tmp_path / "one"), built(checkpoint, tmp_path / "two")
    assert one.content == two.content
    files = sorted(p.name for p in one.path.iterdir())
    assert files == sorted(p.name for p in two.path.iterdir())
    assert all((one.path / name).read_bytes() == (two.path / name).read_bytes() for name in files)


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_the_tokenizer_is_parsed_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Published ones have 7 to 11 MB; plan, prompt, bundle and vocabulary share what was read."""
    parsed = Mock(wraps=tokenizer_check.make_tokenizer)
    monkeypatch.setattr(tokenizer_check, "make_tokenizer", parsed)
    monkeypatch.setattr(tokenizer_files, "make_tokenizer", parsed)
    read = Mock(wraps=files.read_json)
    monkeypatch.setattr(tokenizer_files, "read_json", read)
    job = prepare(checkpoint, Options(format=form, precision={"onnx": "int4", "gguf": "f16"}[form]))
    make_plan(job)
    bundle = export(job, tmp_path / "bundle", golden="never")
    assert (parsed.call_count, read.call_count) == (1, 1)
    assert files.read_json(bundle.path / "tokenizer.json") == files.read_json(checkpoint / "tokenizer.json")


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_shards_and_float32_give_the_same_weights(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    tensors = float32_copy(checkpoint, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, tmp_path / "sharded" / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    one = built(checkpoint, tmp_path / "one", precision=precision)
    two = built(tmp_path / "sharded", tmp_path / "two", precision=precision)
    for name in ("vision_encoder.data", "decoder.data"):
        assert one.content["files"][name] == two.content["files"][name]


def test_float16_weights_are_read(checkpoint: Path, tmp_path: Path) -> None:
    tensors = float32_copy(checkpoint, tmp_path / "half")
    halves = {name: value.astype(np.float16) for name, value in tensors.items()}
    save_file(halves, tmp_path / "half" / "model.safetensors")
    wide = float32_copy(checkpoint, tmp_path / "wide")
    assert wide.keys() == halves.keys()
    save_file({name: v.astype(np.float32) for name, v in halves.items()}, tmp_path / "wide" / "model.safetensors")
    one, two = (built(tmp_path / name, tmp_path / f"{name}.bundle", precision="fp32") for name in ("half", "wide"))
    assert one.content["files"]["decoder.data"] == two.content["files"]["decoder.data"]


def test_every_tensor_has_a_scheme_with_a_reason(checkpoint: Path, tmp_path: Path) -> None:
    bundle = built(checkpoint, tmp_path / "bundle")
    precision = bundle.content["precision"]
    assert set(precision) == set(open_checkpoint(checkpoint).tensors)
    assert all(entry["reason"] for entry in precision.values())
    assert precision["model.language_model.layers.0.mlp.up_proj.weight"]["bits"] == 4
    assert precision["model.visual.pos_embed.weight"]["bits"] == 32
    assert precision["model.language_model.norm.weight"]["bits"] == 32


def test_the_tied_table_stands_once(checkpoint: Path, tmp_path: Path) -> None:
    bundle = built(checkpoint, tmp_path / "bundle")
    graph = ir.load(bundle.graph("decoder")).graph
    places = {name: value.const_value.offset for name, value in graph.initializers.items()
              if isinstance(value.const_value, ir.ExternalTensor)}  # fmt: skip
    assert places["embed_tokens.view"] == places["embed_tokens.weight.values"]
    assert len(set(places.values())) == len(places) - 1


def test_a_tensor_of_the_wrong_shape_is_named(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "wrong")
    config = json.loads((tmp_path / "wrong" / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"mlp\.gate_proj\.weight' has shape"):
        prepare(tmp_path / "wrong", Options())


def test_not_a_number_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = float32_copy(checkpoint, tmp_path / "nan")
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 3] = np.nan
    save_file(tensors, tmp_path / "nan" / "model.safetensors")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj"):
        built(tmp_path / "nan", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_load_file_sees_the_same_numbers(checkpoint: Path) -> None:
    tensors = open_checkpoint(checkpoint).tensors
    name = "model.visual.patch_embed.proj.bias"
    try:
        expected = load_file(checkpoint / "model.safetensors")[name]
    except TypeError:  # numpy has no bfloat16 of its own
        pytest.skip("safetensors without bfloat16 for numpy")
    np.testing.assert_array_equal(tensors[name].numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("beside", [True, False])
def test_the_bundle_has_the_template_that_counts(checkpoint: Path, tmp_path: Path, beside: bool) -> None:
    """The one in processor_config.json, with another one in a file of its own or without."""
    shutil.copytree(checkpoint, tmp_path / "copy")
    file, place = tmp_path / "copy" / "chat_template.jinja", tmp_path / "copy" / "processor_config.json"
    own = "{# own #}" + file.read_text(encoding="utf-8")
    settings = json.loads(place.read_text()) if place.is_file() else {}
    place.write_text(json.dumps({**settings, "chat_template": own}))
    if not beside:
        file.unlink()
    bundle = built(tmp_path / "copy", tmp_path / "bundle")
    assert bundle.file("chat_template.jinja").read_text(encoding="utf-8") == own
