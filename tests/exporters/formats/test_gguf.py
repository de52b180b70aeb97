"""GGUF files: tensor by tensor what llama.cpp's own converter writes, and refusals in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.families.qwen3_vl.qwen3_vl_gguf import vision_file
from lensmith.exporters.formats.gguf.file_types import FILE_TYPES
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.bundle.opening import Bundle, open_bundle
from lensmith.targets.errors import InputError
from safetensors.numpy import load_file, save_file

from tests.helpers import gguf_legacy, gguf_stock
from tests.helpers.extras import Ran
from tests.paths import TINY

# What lensmith says beyond the converter: the pixel range of images, which llama.cpp reads for other encoders.
# Sizes of heads that are those of llama.cpp's defaults, which the converter does not write where config.json has none.
LEFT_OUT = {"qwen2vl.attention.key_length", "qwen2vl.attention.value_length"}
OURS = {"clip.vision.image_min_pixels", "clip.vision.image_max_pixels"}
# Of Llama the converter says what llama.cpp finds by itself, and we that nothing is put around texts.
FOUND = {"llama.rope.dimension_count", "llama.vocab_size", "tokenizer.ggml.add_space_prefix"}
ADDED = {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"}
# The converter's exp() is PyTorch's in float32, off by up to one unit in the last place; ours is rounded from float64.
EXP_ERROR = 2**-23


def built(checkpoint: Path, out: Path, precision: str = "f32", **options: object) -> Bundle:
    chosen = Options(format="gguf", precision=precision, **options)  # type: ignore[arg-type]
    return export(prepare(checkpoint, chosen), out, golden="never")


def values(line: str) -> list[float]:
    return [float(value) for value in line.partition("] ")[2].split()]


@pytest.mark.parametrize("case", gguf_stock.CASES)
def test_files_equal_those_of_the_stock_converter(case: str, tmp_path: Path) -> None:
    bundle = built(gguf_stock.checkpoint(case, tmp_path), tmp_path / "bundle")
    for name, expected in gguf_stock.stored()[case].items():
        found = gguf_stock.describe(bundle.file(name))
        differing = {key for key, line in found["tensors"].items() if line != expected["tensors"].get(key)}
        assert found["tensors"].keys() == expected["tensors"].keys()
        assert all(key.endswith("ssm_a") for key in differing)
        for key in differing:
            assert values(found["tensors"][key]) == pytest.approx(values(expected["tensors"][key]), rel=EXP_ERROR)
        more = found["metadata"].keys() - expected["metadata"].keys()
        extra = OURS & more if name == "mmproj.gguf" else (LEFT_OUT | ADDED) & more
        left_out = FOUND - found["metadata"].keys()
        theirs = {key: line for key, line in expected["metadata"].items() if key not in left_out}
        assert {key: line for key, line in found["metadata"].items() if key not in extra} == theirs
        assert all(found["metadata"][key] == "BOOL false" for key in ADDED & more)


@pytest.mark.parametrize("case", [case for case, (_, split, _) in gguf_stock.CASES.items() if split == "qwen35"])
def test_the_decay_is_rounded_where_the_stock_converter_has_the_exp_of_pytorch(case: str, tmp_path: Path) -> None:
    """All that parts our files from the converter's: its values are PyTorch's bit for bit, ours the nearest floats."""
    torch = pytest.importorskip("torch", reason="needs lensmith[torch]")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("the stored values are of a CPU with AVX, whose exp() is another one")
    source = open_checkpoint(gguf_stock.checkpoint(case, tmp_path))
    ours = gguf_stock.describe(built(source.path, tmp_path / "bundle").file("model.gguf"))["tensors"]
    stock = gguf_stock.stored()[case]["model.gguf"]["tensors"]
    for name in (name for name in stock if name.endswith("ssm_a")):
        layer = name.split(".")[1]
        decay = source.tensor(f"model.language_model.layers.{layer}.linear_attn.A_log").numpy()
        theirs = np.sort(-torch.exp(torch.from_numpy(decay.copy())).numpy())
        np.testing.assert_array_equal(np.sort(np.array(values(stock[name]), np.float32)), theirs)
        nearest = np.sort(-np.exp(decay.astype(np.float64)).astype(np.float32))
        np.testing.assert_array_equal(np.sort(np.array(values(ours[name]), np.float32)), nearest)


@pytest.mark.skipif(gguf_stock.SOURCES is None, reason="LENSMITH_LLAMA_CPP does not name llama.cpp's sources")
@pytest.mark.parametrize("case", gguf_stock.CASES)
def test_the_stored_files_are_what_the_stock_converter_writes(case: str, tmp_path: Path) -> None:
    assert gguf_stock.fresh(str(gguf_stock.SOURCES), case, tmp_path) == gguf_stock.stored()[case]


# Of the old converter alone: what llama.cpp does not read any more.
OBSOLETE = {"clip.has_text_encoder", "clip.has_llava_projector"}
TRANSFORMERS_4 = os.environ.get("LENSMITH_TRANSFORMERS_4")


def test_clip_towers_equal_those_of_the_old_converter(tmp_path: Path) -> None:
    """Each value and each constant; it stores three matrices in float16, from which the checkpoint comes."""
    expected = gguf_legacy.stored()
    found = gguf_legacy.describe(built(gguf_legacy.CHECKPOINT, tmp_path / "bundle").file("mmproj.gguf"))
    assert found["tensors"] == expected["tensors"]
    assert found["metadata"] == {key: line for key, line in expected["metadata"].items() if key not in OBSOLETE}


@pytest.mark.skipif(not (gguf_stock.SOURCES and TRANSFORMERS_4), reason="LENSMITH_TRANSFORMERS_4 names no transformers")
def test_the_stored_clip_tower_is_what_the_old_converter_writes(tmp_path: Path) -> None:
    assert gguf_legacy.fresh(str(gguf_stock.SOURCES), str(TRANSFORMERS_4), tmp_path) == gguf_legacy.stored()


@pytest.mark.parametrize("precision", [name for name, kind in FILE_TYPES.items() if not kind.quantizer])
def test_every_tensor_is_stored_in_its_type(precision: str, tmp_path: Path) -> None:
    """Against gguf-py's own reading of the types, and the figures of the plan and the manifest."""
    path = synth("nemotron-4b", tmp_path / "tiny", tiny=True)
    exact, stored = built(path, tmp_path / "exact"), built(path, tmp_path / "stored", precision)
    for name in ("model.gguf", "mmproj.gguf"):
        pairs = zip(gguf.GGUFReader(exact.file(name)).tensors, gguf.GGUFReader(stored.file(name)).tensors, strict=True)
        for one, other in pairs:
            expected = gguf.quants.dequantize(gguf.quants.quantize(one.data, other.tensor_type), other.tensor_type)
            np.testing.assert_array_equal(gguf.quants.dequantize(other.data, other.tensor_type), expected)
    plan = make_plan(prepare(path, Options(format="gguf", precision=precision)))
    weights = sum(record["bytes"] for record in stored.content["precision"].values())
    assert weights == sum(row.disk_bytes for row in plan.storage)
    total = sum(record["size"] for record in stored.content["files"].values())
    assert plan.bundle_bytes - plan.golden_bytes == pytest.approx(
        total, rel=0.02
    )  # metadata and the manifest are estimates


def test_pixel_limits_are_those_of_the_bundle(tiny_checkpoint: Path) -> None:
    job = prepare(tiny_checkpoint, Options(format="gguf", precision="f32", max_pixels=200_000))
    made = job.sections
    found = vision_file(job.spec, job.family.prefixes, made).metadata()  # type: ignore[arg-type]
    assert found["clip.vision.image_max_pixels"] == made["limits"]["max_pixels"] <= 200_000
    assert found["clip.vision.image_min_pixels"] == made["limits"]["min_pixels"] < made["limits"]["max_pixels"]


def test_same_inputs_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    one, two = (built(tiny_checkpoint, tmp_path / name) for name in ("one", "two"))
    assert one.content == two.content
    assert open_bundle(one.path, check="sha256").content["files"].keys() >= {"model.gguf", "mmproj.gguf"}


def test_norms_of_float16_checkpoints_are_not_rounded(tmp_path: Path) -> None:
    """The stock converter adds one to zero-centred norms in float16; here the sum is exact."""
    bundle, source = built(TINY / "qwen3_5", tmp_path / "bundle"), open_checkpoint(TINY / "qwen3_5")
    found = {t.name: t.data for t in gguf.GGUFReader(bundle.file("model.gguf")).tensors}
    stored = source.tensor("model.language_model.norm.weight").numpy()
    np.testing.assert_array_equal(found["output_norm.weight"], stored + 1)
    decay = source.tensor("model.language_model.layers.0.linear_attn.A_log").numpy().astype(np.float64)
    assert sorted(found["blk.0.ssm_a"]) == pytest.approx(sorted(-np.exp(decay)), rel=EXP_ERROR)


def test_values_beyond_float16_are_refused(tiny_checkpoint: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    folder = tmp_path / "large"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.float32)
    tensors[name][0, 0] = 1e5
    save_file(tensors, folder / "model.safetensors")
    ran = cli("export", folder, "-o", tmp_path / "bundle", "--format", "gguf", "--precision", "f16")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "bf16" in ran.err
    assert built(folder, tmp_path / "exact", "bf16").path.is_dir()


def test_arlow_has_no_place_in_llama_cpp(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    path = synth("arlow-vision", tmp_path / "arlow", tiny=True)
    ran = cli("export", path, "-o", tmp_path / "bundle", "--format", "gguf")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "llama.cpp has no place" in ran.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("format", "precision"), [("gguf", "int4"), ("onnx", "q8_0")])
def test_precisions_belong_to_a_format(
    format: str, precision: str, tiny_checkpoint: Path, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    ran = cli("export", tiny_checkpoint, "-o", tmp_path / "b", "--format", format, "--precision", precision)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"--format {format}" in ran.err


def test_tokenizers_that_split_otherwise_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace(r"\\p{N}|", r"\\p{N}{2}|"), encoding="utf-8")
    with pytest.raises(Exception, match="not of a supported family"):
        prepare(folder, Options(format="gguf", precision="f16"))


def test_tokenizers_without_a_name_in_llama_cpp_are_refused(tmp_path: Path) -> None:
    """GPT-2's class splits in its own way, which ONNX bundles follow."""
    folder = shutil.copytree(TINY / "qwen3_vl", tmp_path / "source")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(InputError, match=r"splits text in a way that llama\.cpp has no certain name for"):
        prepare(folder, Options(format="gguf", precision="f16"))
    assert prepare(folder, Options()).family.name == "qwen3_vl"
