"""Quantized checkpoints: floats bit for bit those of each format, integers kept, missing parts named."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.checkpoint.prequantized.gptq_layout import _zero_points
from lensmith.exporters.checkpoint.prequantized.integers import IntegerTensor
from lensmith.exporters.checkpoint.prequantized.kept import kept_rows, own_groups
from lensmith.exporters.checkpoint.safetensors_files import read_header
from lensmith.exporters.checkpoint.source_weights import open_weights
from lensmith.exporters.evidence.reference import Reference
from lensmith.exporters.formats.tensorrt.tensorrt_weights import QdqMatrix
from lensmith.exporters.graphs.matrices import Matrix
from lensmith.exporters.pipeline import (
    Job,
    Options,
    export,
    prepare,
)
from lensmith.exporters.storage import weights
from lensmith.exporters.storage.packing import unpack_low_first
from lensmith.exporters.storage.rounding import Groups, dequantize
from lensmith.exporters.storage.scheme import Scheme
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.targets.errors import InputError
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.helpers import hf
from tests.helpers.extras import Ran
from tests.helpers.prequantized import (
    VARIANTS,
    Variant,
    _levels,
    _stream,
    awq,
    declare,
    decoder_only,
    fp8,
    gptq,
    int8_rows,
    llm_int8,
    nf4,
    packed,
    quantized_copy,
)
from tests.helpers.prequantized_data import EXPECTED, FILE
from tests.paths import TINY

FP8_CONFIG = {"quantization_config": {"quant_method": "fp8"}}
Copies = Callable[[str], Path]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """Makes a quantized copy of the trained model, and one with the floats it stands for, once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("quantized")
            made[name] = quantized_copy(TINY / "qwen3_vl", out, VARIANTS[name], decoder_only)
        return made[name]

    return make


def library_cases() -> Iterator[Any]:
    with safe_open(FILE, "numpy") as file:
        settings = json.loads(file.metadata()["settings"])
    yield from (pytest.param(name, declared, id=name) for name, declared in settings.items())


def floats(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.astype(np.float32)


@pytest.mark.parametrize(("name", "declared"), list(library_cases()))
def test_weights_are_those_of_the_library(name: str, declared: dict[str, Any], tmp_path: Path) -> None:
    whole = {key.split("|")[1]: tensor for key, tensor in read_header(FILE).items() if key.split("|")[0] == name}
    tensors = {end: tensor.raw() for end, tensor in whole.items()}
    expected = floats(tensors.pop(EXPECTED))
    save_file({f"m.{end}": value for end, value in tensors.items()}, tmp_path / "model.safetensors")
    found = open_weights(tmp_path, {"quantization_config": declared}).tensors["m.weight"]
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(found.rows(3, 10), expected[3:10])
    assert np.array_equal(floats(found.raw()), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_are_those_of_the_floats(name: str, copies: Copies) -> None:
    ours, theirs = (open_checkpoint(copies(name) / copy).tensors for copy in ("stored", "floats"))
    assert list(ours) == list(theirs)
    for tensor in ours:
        assert np.array_equal(ours[tensor].numpy(), theirs[tensor].numpy()), tensor


@pytest.mark.parametrize("name", VARIANTS)
def test_some_rows_are_those_of_the_whole(name: str, tmp_path: Path) -> None:
    """Rows that begin and end within words, blocks and groups."""
    parts, whole = VARIANTS[name].make(np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32))
    small(tmp_path, {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()}, text_config={})
    declare(tmp_path, VARIANTS[name])
    weight = open_checkpoint(tmp_path).tensor("m.weight")
    for start, stop in ((0, 64), (3, 10), (5, 6), (9, 32), (33, 63), (63, 64)):
        np.testing.assert_array_equal(weight.rows(start, stop), whole[start:stop])


def test_rows_that_begin_within_a_byte_and_a_block(tmp_path: Path) -> None:
    """Of 33 values of 4 bits each, behind one another in blocks of 64."""
    parts, whole = nf4(64).make(np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32))
    small(tmp_path, {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()}, text_config={})
    declare(tmp_path, nf4(64))
    weight = open_checkpoint(tmp_path).tensor("m.weight")
    for start, stop in ((0, 64), (1, 2), (2, 5), (33, 64), (63, 64)):
        np.testing.assert_array_equal(weight.rows(start, stop), whole[start:stop])


@pytest.mark.parametrize("sparsity", [{"ignore": []}, {"format": "dense"}, None])
def test_bytes_with_zero_points_of_groups(sparsity: object, tmp_path: Path) -> None:
    """Nothing is left out where a configuration of sparsity names no format."""
    levels, scales, zeros, expected = _levels(WAVES.repeat(2, axis=1), 8, 32, symmetric=False)
    parts = {"weight": levels - 128, "weight_zero_point": zeros - 128}
    tensors = {f"m.{end}": part.astype(np.int8) for end, part in parts.items()}
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "int", "symmetric": False, "group_size": 32}}}
    config = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups,
              "sparsity_config": sparsity}  # fmt: skip
    folder = small(tmp_path, {**tensors, "m.weight_scale": scales.astype(np.float16)}, quantization_config=config)
    weight = open_checkpoint(folder).tensor("m.weight")
    np.testing.assert_array_equal(weight.numpy(), expected)
    np.testing.assert_array_equal(weight.rows(3, 9), expected[3:9])


def test_blocks_as_compressed_tensors_declares_them(tmp_path: Path) -> None:
    """Two by two scales for 64 x 128 values would cut these in half, and are of blocks of 48 x 80."""
    parts, expected = fp8((48, 80), scale="weight_scale").make(WAVES.repeat(2, axis=1))
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "float", "block_structure": [48, 80]}}}
    config = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    tensors = {f"m.{end}": part for end, part in parts.items()}
    weight = open_checkpoint(small(tmp_path, tensors, quantization_config=config)).tensor("m.weight")
    np.testing.assert_array_equal(weight.numpy(), expected)


def test_blocks_that_differ_by_group_follow_from_the_scales(tmp_path: Path) -> None:
    """A block of 40 would fit a weight of 64 with two scales as well, and be wrong."""
    scales = np.array([[1, 2], [3, 4]], np.float32)
    tensors = {"m.weight": np.ones((64, 64), ml_dtypes.float8_e4m3fn), "m.weight_scale": scales}
    groups = {f"group_{side}": {"weights": {"block_structure": [side, side]}} for side in (40, 32)}
    config = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    weight = open_checkpoint(small(tmp_path, tensors, quantization_config=config)).tensor("m.weight")
    np.testing.assert_array_equal(weight.numpy(), np.kron(scales, np.ones((32, 32), np.float32)))


@pytest.mark.parametrize("name", ["load_in_4bit", "load_in_8bit"])
def test_older_declarations_of_bitsandbytes_name_no_method(name: str, tmp_path: Path) -> None:
    variant = llm_int8() if name == "load_in_8bit" else nf4()
    parts, expected = variant.make(np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32))
    tensors = {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()}
    opened = open_checkpoint(small(tmp_path, tensors, quantization_config={name: True}))
    np.testing.assert_array_equal(opened.tensor("m.weight").numpy(), expected)


def test_the_file_of_modelopt_has_its_settings_inside(tmp_path: Path) -> None:
    parts, expected = fp8(None, scale="weight_scale").make(np.random.default_rng(0).normal(size=(16, 32)).astype("f4"))
    small(tmp_path, {f"m.{end}": part for end, part in parts.items()})
    for algorithm in ("FP8", "NVFP4"):
        settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(settings))
        if algorithm == "FP8":
            np.testing.assert_array_equal(open_checkpoint(tmp_path).tensor("m.weight").numpy(), expected)
    with pytest.raises(InputError, match=r"hf_quant_config\.json names the algorithm 'NVFP4'"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("name", "method"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_files_of_tools_declare_their_method(name: str, method: str, tmp_path: Path) -> None:
    variant = gptq(4, 32) if method == "gptq" else awq(32)
    parts, expected = variant.make(np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32))
    small(tmp_path, {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()})
    settings = {key: value for key, value in variant.settings.items() if key != "quant_method"}
    (tmp_path / name).write_text(json.dumps(settings))
    opened = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(opened.tensor("m.weight").numpy(), expected)
    assert opened.changes["quantization"] == {"method": method, "declared_in": name, "unused": []}


def test_the_outer_declaration_counts_first(tmp_path: Path) -> None:
    """Of two of the same method, as transformers takes them."""
    parts, expected = awq(32).make(np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32))
    tensors = {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()}
    inner = {"quantization_config": {**awq(32).settings, "version": "gemv"}}
    opened = open_checkpoint(small(tmp_path, tensors, text_config=inner, quantization_config=awq(32).settings))
    np.testing.assert_array_equal(opened.tensor("m.weight").numpy(), expected)


def test_modules_of_other_bits_in_gptq(tmp_path: Path) -> None:
    """`dynamic` has rules for single modules; how many bits each has follows from its words."""
    weight = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    tensors: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    for name, bits in (("a", 4), ("b", 8), ("c", 2)):
        parts, expected[name] = gptq(bits, 32).make(weight)
        tensors |= {f"{name}.{end}": np.ascontiguousarray(part) for end, part in parts.items()}
    config = {"quant_method": "gptq", "bits": 4, "dynamic": {"b": {"bits": 8}, "c": {"bits": 2}}}
    opened = open_checkpoint(small(tmp_path, tensors, quantization_config=config))
    for name, values in expected.items():
        np.testing.assert_array_equal(opened.tensor(f"{name}.weight").numpy(), values)


@pytest.mark.parametrize("name", ["gptq asymmetric", "packed 4 bits asymmetric"])
@pytest.mark.parametrize("order", ["none", "in order", "minus one"])
def test_groups_that_are_not_scattered(name: str, order: str, tmp_path: Path) -> None:
    """However a tool says so: without the part, with the usual groups, or with -1 for all."""
    key = "g_idx" if "gptq" in name else "weight_g_idx"
    parts, expected = VARIANTS[name].make(np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32))
    parts.pop(key, None)
    usual = np.arange(128, dtype=np.int32) // 32
    parts |= {"none": {}, "in order": {key: usual}, "minus one": {key: np.full(128, -1, np.int32)}}[order]
    small(tmp_path, {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()})
    declare(tmp_path, VARIANTS[name])
    tensor = open_checkpoint(tmp_path).tensor("m.weight")
    assert isinstance(tensor, IntegerTensor)
    assert tensor.integers.order() is None
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_of_0_are_stored_around_the_end(bits: int) -> None:
    """The first version of GPTQ subtracts 1: of whole words, and of each number of 3 bits."""
    zeros = np.arange(64).reshape(2, 32) * 5 % 2**bits
    assert (zeros == 0).any()
    if bits == 3:
        stored = _stream((zeros - 1) % 8, bits).view(np.int32)
    else:
        ones = np.uint32(sum(1 << place for place in range(0, 32, bits)))
        stored = (_stream(zeros, bits).view(np.uint32) - ones).view(np.int32)
    np.testing.assert_array_equal(_zero_points(stored, bits, 32, 1), zeros)


@pytest.mark.parametrize("name", ["fp8 ragged blocks", "LLM.int8()"])
def test_bundles_are_those_of_the_floats(name: str, copies: Copies, tmp_path: Path) -> None:
    options = Options(precision="fp16")
    files = [export(prepare(copies(name) / copy, options), tmp_path / copy, golden="never").content["files"]
             for copy in ("stored", "floats")]  # fmt: skip
    assert files[0]["decoder.data"] == files[1]["decoder.data"]


def stored_groups(job: Job, bundle: Bundle) -> Iterator[tuple[str, Groups]]:
    """The integers of the decoder's matrices, by name, as its data file has them."""
    graph = next(graph for graph in job.graphs if graph.name == "decoder")
    data = np.fromfile(bundle.file("decoder.data"), np.uint8)
    for planned in weights.layout(graph, job.checkpoint)[0]:
        matrix, name = planned.source.matrix, planned.source.name
        if matrix is None or "own integers" not in bundle.content["precision"][name]["reason"]:
            continue
        parts = [data[at : at + weights.stored_bytes(parameter)].reshape(matrix.rows, -1)
                 for parameter, at in zip(planned.source.parameters, planned.offsets, strict=True)]  # fmt: skip
        bits, values, scales = matrix.scheme.bits, parts[0], parts[1].view(np.float16)
        zeros = unpack_low_first(parts[2], bits, scales.shape[1]) if len(parts) > 2 else None
        sign = np.uint8(0x80 if matrix.scheme.int8_activations else 0)
        yield name, Groups(unpack_low_first(values, bits, matrix.columns) ^ sign, scales, zeros, bits)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.kept])
def test_integers_are_kept(name: str, copies: Copies, tmp_path: Path) -> None:
    folder = copies(name)
    job = prepare(folder / "stored", Options(**VARIANTS[name].kept))
    bundle = export(job, tmp_path / "kept", golden="never")
    expected, kept = open_checkpoint(folder / "floats").tensors, dict(stored_groups(job, bundle))
    assert kept.keys() == {n for n in expected if n.endswith("proj.weight") and decoder_only(n)}
    for matrix, groups in kept.items():
        assert np.array_equal(dequantize(groups), expected[matrix].numpy()), matrix


def fine_scales() -> Variant:
    """Scales of 24 bits, which float16 does not have."""
    halves, finer = packed(4, 32), np.float32(1 + 2**-13)

    def make(weight: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        parts, restored = halves.make(weight)
        return {**parts, "weight_scale": floats(parts["weight_scale"]) * finer}, restored * finer

    return replace(halves, make=make)


@pytest.mark.parametrize(
    ("variant", "options", "reason"),
    [
        (fine_scales(), {"group_size": 32}, "with scales that float16 has not"),
        (awq(32), {"group_size": 32, "symmetric": True}, "with zero points (--asymmetric keeps them)"),
        (packed(4, 32), {"group_size": 128}, "in groups of 32 (--group-size 32 may keep them)"),
        (gptq(4, 32, shuffled=True), {"group_size": 32}, "in groups of scattered columns (act-order)"),
        (packed(4, 128), {"precision": "int8"}, "that are stored in another way here"),
    ],
)
def test_what_is_rounded_again_says_why(variant: Variant, options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = quantized_copy(TINY / "qwen3_vl", tmp_path, variant, lambda name: "layers.0.mlp" in name)
    plain, made = (export(prepare(folder / copy, Options(**options)), tmp_path / f"{copy}-bundle", golden="never")
                   for copy in ("floats", "stored"))  # fmt: skip
    entry = made.content["precision"]["model.language_model.layers.0.mlp.down_proj.weight"]
    assert entry["reason"].endswith(reason)
    assert made.content["files"]["decoder.data"] == plain.content["files"]["decoder.data"]


@pytest.mark.parametrize(
    ("name", "group", "symmetric"),
    [("awq", 32, False), ("packed 4 bits", 128, True), ("packed 4 bits asymmetric", 32, False), ("gptq", 64, True),
     ("awq of channels", 128, False), ("gptq act-order", 128, True), ("nf4", 128, True)],
)  # fmt: skip
def test_groups_are_those_of_the_checkpoint_unless_told(name: str, group: int, symmetric: bool, copies: Copies) -> None:
    job = prepare(copies(name) / "stored", Options())
    assert (job.options.group_size, job.options.symmetric) == (group, symmetric)
    told = prepare(copies(name) / "stored", Options(group_size=64, symmetric=True)).options
    assert (told.group_size, told.symmetric) == (64, True)


@pytest.mark.parametrize("activations", [ir.DataType.BFLOAT16, ir.DataType.FLOAT16])
def test_matrices_that_change_scales_keep_no_integers(activations: ir.DataType, tmp_path: Path) -> None:
    """TensorRT's, whose scales are of another type or lose their sign: the floats are rounded instead."""
    parts, _ = packed(4, 32).make(np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32))
    small(tmp_path, {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()})
    declare(tmp_path, packed(4, 32))
    tensor, scheme = open_checkpoint(tmp_path).tensor("m.weight"), Scheme(4, 32)
    assert kept_rows(Matrix(64, 128, scheme), tensor) is not None
    assert kept_rows(QdqMatrix(64, 128, scheme, activations), tensor) is None
    assert kept_rows(Matrix(64, 128, replace(scheme, bits=8)), tensor) is None
    assert kept_rows(None, tensor) is None


@pytest.mark.parametrize("variant", [packed(4, 128), packed(4, 64, symmetric=False)])
def test_groups_of_the_checkpoint_may_be_several_of_the_bundle(variant: Variant, tmp_path: Path) -> None:
    folder = quantized_copy(TINY / "qwen3_vl", tmp_path, variant, lambda name: "layers.0.mlp" in name)
    job = prepare(folder / "stored", Options(group_size=32, symmetric=False))
    kept = dict(stored_groups(job, export(job, tmp_path / "b", golden="never")))
    expected = open_checkpoint(folder / "floats")
    assert len(kept) == 3
    for name, groups in kept.items():
        assert np.array_equal(dequantize(groups), expected.tensor(name).numpy())


@pytest.mark.parametrize(
    ("variants", "bits", "found"),
    [((packed(4, 128), packed(4, 32)), 4, (32, True)),
     ((packed(4, 64), packed(4, 64, symmetric=False)), 4, (64, False)),
     ((packed(4, 128, symmetric=False), packed(4, 128)), 4, (128, False)), ((packed(4, 16),), 4, None),
     ((packed(4, 64), packed(4, 16)), 4, None), ((packed(4, 64),), 8, None),
     ((packed(8, 64), packed(4, 32)), 8, (64, True)),
     ((packed(4, 32, shuffled=True), packed(4, 64)), 4, (64, True)), ((packed(4, 32, shuffled=True),), 4, None)],
)  # fmt: skip
def test_the_largest_groups_that_hold_all_integers(
    variants: tuple[Variant, ...], bits: int, found: tuple[int, bool] | None, tmp_path: Path
) -> None:
    """Scattered groups are rounded anew whatever the size, and have no say."""
    tensors: dict[str, Any] = {}
    for index, variant in enumerate(variants):
        parts, _ = variant.make(np.random.default_rng(index).normal(size=(64, 128)).astype(np.float32))
        tensors |= {f"m{index}.{end}": np.ascontiguousarray(part) for end, part in parts.items()}
    small(tmp_path, tensors)
    declare(tmp_path, variants[0])
    assert own_groups(open_checkpoint(tmp_path).tensors.values(), bits) == found


@pytest.mark.parametrize("name", ["fp8 blocks", "gptq act-order"])
def test_reference_needs_no_library_of_the_format(name: str, copies: Copies) -> None:
    hf.import_transformers()
    ours, theirs = (Reference(copies(name) / copy, threads=1).model for copy in ("stored", "floats"))
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    for (key, one), (_, other) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert bool((one == other).all()), key


def test_evidence_and_manifest_of_a_quantized_checkpoint(
    copies: Copies, cli: Callable[..., Ran], tmp_path: Path
) -> None:
    hf.import_transformers()
    bundle = export(
        prepare(copies("fp8 blocks") / "stored", Options(precision="fp32")), tmp_path / "b", golden="always"
    )
    assert bundle.content["evidence"]["golden"]["recorded"]
    assert bundle.content["source"]["quantization"] == {
        "method": "fp8", "declared_in": "config.json (quantization_config)", "unused": []
    }  # fmt: skip
    assert "stored, quantized by fp8" in cli("inspect", bundle.path).out


def small(folder: Path, tensors: dict[str, NDArray[Any]], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", **config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


E4M3, ONES = np.ones((4, 8), ml_dtypes.float8_e4m3fn), np.ones((64, 64), np.float32)
WHOLE = np.ones((1, 1), np.int32)
WAVES = np.outer(np.arange(1, 65), np.sin(np.arange(64) + 1)).astype(np.float32)  # each block has a scale of its own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "nvfp4"}, "quantized by 'nvfp4'.*export the checkpoint of floats"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "the algorithm 'NVFP4' of ModelOpt"),
        ({"quant_method": "hqq"}, "quantized by 'hqq'.*dequantize"),
        ({"quant_method": "mxfp4"}, "quantized by 'mxfp4'"),
        ({"quant_method": "gptg"}, "quantized by 'gptg'.*did you mean 'gptq'"),
        ({"bits": 4}, "names no quant_method"),
        ("nf4", "is a str, expected an object"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized'"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "transform_config": {"a": 1}}, "rotated"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "mixed-precision",
                "config_groups": {"a": {"format": "pack-quantized"}, "b": {"format": "marlin-24"}},
            },
            "format 'marlin-24'",
        ),
        ({"load_in_4bit": True, "quant_method": "nvfp4"}, "quantized by 'nvfp4'"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "zeros are left"),
    ],
)
def test_other_formats_are_refused_before_weights_are_read(settings: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", "quantization_config": settings}))
    (tmp_path / "model.safetensors").write_bytes(b"not looked at")
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


def test_mlx_is_refused(tmp_path: Path) -> None:
    mlx = {"group_size": 64, "bits": 4}
    with pytest.raises(InputError, match=r"quantized by 'mlx'.*mlx_lm.convert"):
        open_checkpoint(small(tmp_path, {"a": np.ones(1)}, quantization=mlx, quantization_config=mlx))


def test_two_declarations_that_differ(tmp_path: Path) -> None:
    text = {"quantization_config": {"quant_method": "awq"}}
    with pytest.raises(InputError, match=r"by 'fp8' as config.json \(quantization_config\) says, and by 'awq'"):
        open_checkpoint(small(tmp_path, {"a": np.ones(1)}, text_config=text, **FP8_CONFIG))


@pytest.mark.parametrize("name", VARIANTS)
def test_each_missing_part_is_named(name: str, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    variant = VARIANTS[name]
    parts, _ = variant.make(weight)
    optional = {"g_idx", "weight_format", "weight_g_idx"} | ({"weight_zero_point"} if "packed" in name else set())
    for missing in parts.keys() - optional:
        tensors = {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items() if end != missing}
        small(tmp_path, tensors, text_config={})
        declare(tmp_path, variant)
        with pytest.raises(InputError, match=f"m.*{missing.split('.')[-1].split('_')[0]}"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_without_a_declaration_are_refused(name: str, tmp_path: Path) -> None:
    parts, _ = VARIANTS[name].make(np.ones((64, 128), np.float32))
    small(tmp_path, {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()})
    with pytest.raises(InputError, match=r"config.json has no quantization_config that says how to read them"):
        open_checkpoint(tmp_path)


def test_floats_of_8_bits_without_a_declaration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'m.weight' \(F8_E4M3\), a part of quantized weights, but its config.json"):
        open_checkpoint(small(tmp_path, {"m.weight": E4M3}))


def test_floats_that_claim_to_be_quantized(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"but no tensor is \(weight_scale_inv"):
        open_checkpoint(small(tmp_path, {"m.weight": np.ones((4, 8), np.float32)}, **FP8_CONFIG))


def test_weights_that_lost_all_scales(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m.weight is stored as F8_E4M3 without m.weight_scale_inv.*do not remove"):
        open_checkpoint(small(tmp_path, {"m.weight": E4M3}, **FP8_CONFIG))


@pytest.mark.parametrize(
    ("settings", "dtype", "scale"),
    [
        ({"quant_method": "compressed-tensors"}, ml_dtypes.float8_e4m3fn, "m.weight_scale"),
        ({"quant_method": "compressed-tensors"}, np.int8, "m.weight_scale"),
        ({"quant_method": "bitsandbytes"}, np.int8, "m.weight.absmax or m.SCB"),
        ({"quant_method": "bitsandbytes"}, np.uint8, "m.weight.absmax or m.SCB"),
    ],
)
def test_the_lost_scale_is_named(settings: dict[str, Any], dtype: Any, scale: str, tmp_path: Path) -> None:
    folder = small(tmp_path, {"m.weight": np.ones((4, 8), dtype)}, quantization_config=settings)
    with pytest.raises(InputError, match=rf"m.weight is stored as \w+ without {scale}, by which"):
        open_checkpoint(folder)


def test_one_weight_of_many_without_its_scale(tmp_path: Path) -> None:
    tensors = {"a.weight": E4M3, "a.weight_scale_inv": np.ones((1, 1), np.float32), "b.weight": E4M3}
    with pytest.raises(InputError, match=r"b.weight is stored as F8_E4M3 without b.weight_scale_inv"):
        open_checkpoint(small(tmp_path, tensors, **FP8_CONFIG))


@pytest.mark.parametrize(
    ("parts", "config", "message"),
    [
        ({"weight": E4M3, "weight_scale_inv": np.ones((3, 1), np.float32)}, {"quant_method": "fp8"}, "into no blocks"),
        ({"weight": E4M3, "weight_scale_inv": np.ones((4, 3), np.float32)}, {"quant_method": "fp8"}, "into no blocks"),
        ({"weight": E4M3, "weight_scale_inv": WHOLE}, {"quant_method": "fp8"}, "expected F32"),
        (awq(32).make(ONES)[0], {"quant_method": "awq", "version": "gemv"}, "'gemv'"),
        (awq(32).make(ONES)[0], {"quant_method": "awq", "bits": 3}, "of 3 bits"),
        (gptq(4, 32).make(ONES)[0],
         {"quant_method": "gptq", "bits": 8}, r"implies? \[16, 64\]|imply \[16, 64\]"),
        (gptq(4, 32).make(ONES)[0],
         {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "'marlin'"),
        ({**nf4().make(ONES)[0], "weight.absmax": np.ones(3, np.float32)},
         {"quant_method": "bitsandbytes"}, r"has shape \[3\]"),
        ({"weight": np.ones((4, 8), np.float32), "weight_scale": np.ones((4, 1), np.float32)},
         {"quant_method": "compressed-tensors"}, "was not compressed"),
        (awq(32).make(ONES)[0], {"quant_method": "awq", "backend": "llm-awq"}, "in the layout 'llm-awq'"),
        (awq(32).make(ONES)[0], {"quant_method": "awq", "w_bit": 3}, "of 3 bits"),
        ({**awq(32).make(ONES)[0], "qzeros": np.zeros((2, 7), np.int32)}, {"quant_method": "awq"}, r"imply \[2, 8\]"),
        ({**awq(32).make(ONES)[0], "scales": np.ones((2, 63), np.float16)}, {"quant_method": "awq"}, "imply .*64"),
        ({**awq(32).make(ONES)[0], "scales": np.ones((3, 64), np.float16), "qzeros": np.zeros((3, 8), np.int32)},
         {"quant_method": "awq"}, "3 groups do not divide 64 inputs"),
        ({**gptq(4, 32).make(ONES)[0], "qzeros": np.zeros((2, 7), np.int32)},
         {"quant_method": "gptq", "bits": 4}, r"qzeros.*imply \[2, 8\]"),
        (gptq(4, 32).make(ONES)[0], {"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "'marlin'"),
        (gptq(4, 32).make(ONES)[0], {"quant_method": "gptq", "bits": 4, "format": "marlin"}, "'marlin'"),
        ({**llm_int8().make(ONES)[0], "weight_format": np.array(1, np.uint8)},
         {"quant_method": "bitsandbytes"}, "is not 0, an order of bytes for one kind of GPU"),
        ({**llm_int8().make(ONES)[0], "weight": np.ones((64, 64), np.uint8)},
         {"quant_method": "bitsandbytes"}, "m.weight is U8.*expected I8"),
        ({**nf4().make(ONES)[0], "weight.quant_state.bitsandbytes__nf4": np.ones(9, np.int32)},
         {"quant_method": "bitsandbytes"}, "bitsandbytes__nf4 is I32.*expected U8"),
        ({**llm_int8().make(ONES)[0], "SCB": np.ones(63, np.float32)},
         {"quant_method": "bitsandbytes"}, r"SCB has shape \[63\]"),
        ({**nf4().make(ONES)[0], "weight.quant_map": np.ones(17, np.float32)},
         {"quant_method": "bitsandbytes"}, r"quant_map has shape \[17\]"),
        ({**nf4().make(ONES)[0], "weight": np.zeros((2049, 1), np.uint8)},
         {"quant_method": "bitsandbytes"}, "has 2049 bytes; its quant_state implies 2048"),
        ({**nf4(nested=16).make(WAVES)[0], "weight.nested_quant_map": np.ones(255, np.float32)},
         {"quant_method": "bitsandbytes"}, r"nested_quant_map has shape \[255\]"),
        ({**nf4(nested=15).make(WAVES)[0], "weight.nested_absmax": np.ones(4, np.float32)},
         {"quant_method": "bitsandbytes"}, r"nested_absmax has shape \[4\].*imply \[5\]"),
        ({**nf4(48).make(np.ones((48, 64), np.float32))[0]}, {"quant_method": "bitsandbytes"}, "no matrix of 4 bits"),
        ({**packed(4, 32, symmetric=False).make(ONES)[0], "weight_zero_point": np.zeros((8, 3), np.int32)},
         {"quant_method": "compressed-tensors"}, r"weight_zero_point has shape \[8, 3\].*imply \[8, 2\]"),
        ({**packed(4, 32).make(ONES)[0], "weight_scale": np.ones((63, 2), np.float16)},
         {"quant_method": "compressed-tensors"}, "gives no groups of a weight of 64 x 64"),
        ({**packed(4, 32).make(ONES)[0], "weight_global_scale": np.ones(1, np.float32)},
         {"quant_method": "compressed-tensors"}, "NVFP4"),
        ({**int8_rows().make(ONES)[0], "weight_zero_point": np.zeros((63, 1), np.int8)},
         {"quant_method": "compressed-tensors"}, "expected a number for each of 1 groups in 64 rows"),
        ({**fp8(None).make(ONES)[0], "weight_scale": np.ones((1, 1), np.float32)}, {"quant_method": "fp8"}, "has both"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(parts: dict[str, Any], config: Any, message: str, tmp_path: Path) -> None:
    tensors = {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()}
    with pytest.raises(InputError, match=message):
        open_checkpoint(small(tmp_path, tensors, quantization_config=config))


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_large_blocks_of_bitsandbytes(size: int, tmp_path: Path) -> None:
    parts, expected = nf4(size).make(WAVES)
    tensors = {f"m.{end}": part for end, part in parts.items()}
    made = open_checkpoint(small(tmp_path, tensors, quantization_config={"quant_method": "bitsandbytes"}))
    assert np.array_equal(made.tensors["m.weight"].numpy(), expected)
    assert np.array_equal(made.tensors["m.weight"].rows(5, 22), expected[5:22])


@pytest.mark.parametrize("given", [{}, {"nested_offset": None}])
def test_scales_around_no_mean(given: dict[str, Any], tmp_path: Path) -> None:
    """Of blocks that are all about zero the state names no offset."""
    key = "weight.quant_state.bitsandbytes__nf4"
    found = []
    for name, offset in (("tiny", {"nested_offset": 1e-30}), ("none", given)):
        parts, _ = nf4(nested=16).make(WAVES)
        state = json.loads(parts[key].tobytes())
        del state["nested_offset"]
        parts[key] = np.frombuffer(json.dumps({**state, **offset}).encode(), np.uint8)
        tensors = {f"m.{end}": part for end, part in parts.items()}
        made = open_checkpoint(small(tmp_path / name, tensors, quantization_config={"quant_method": "bitsandbytes"}))
        found.append(made.tensors["m.weight"].numpy())
    assert np.array_equal(found[0], found[1])
    assert found[0].std() > 0.1


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("fp8 blocks", {"weight_block_size": ["a", 4]}),
    ("fp8 blocks", {"weight_block_size": [0, -1]}),
    ("fp8 blocks", {"weight_block_size": {"a": 1}}),
    ("gptq", {"bits": "4"}),
    ("gptq", {"bits": [4]}),
    ("gptq", {"bits": 4.0}),
    ("awq", {"bits": {"a": 4}}),
    ("awq", {"version": 7}),
    ("packed 4 bits", {"config_groups": [1]}),
    ("packed 4 bits", {"config_groups": {"a": {"weights": 3}}}),
    ("packed 4 bits", {"sparsity_config": "x"}),
    ("fp8 of compressed-tensors", {"config_groups": {"a": {"weights": {"block_structure": [[1], "b"]}}}}),
    ("nf4", {"quant_method": ["bitsandbytes"], "load_in_4bit": False}),
]


@pytest.mark.parametrize(("name", "settings"), HOSTILE)
def test_settings_of_other_kinds_never_crash(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    variant = VARIANTS[name]
    parts, expected = variant.make(np.random.default_rng(0).normal(size=(96, 128)).astype(np.float32))
    small(tmp_path, {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()}, text_config={})
    declare(tmp_path, replace(variant, settings={**variant.settings, **settings}))
    with contextlib.suppress(InputError):  # refused, or read as it is
        found = open_checkpoint(tmp_path).tensor("m.weight").numpy()
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_empty_parts_are_refused(name: str, tmp_path: Path) -> None:
    parts, _ = VARIANTS[name].make(np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32))
    for empty in parts.keys() - {"g_idx", "weight_g_idx", "weight_format"}:
        shape = (0, *parts[empty].shape[1:])
        tensors = {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()}
        small(tmp_path, {**tensors, f"m.{empty}": np.zeros(shape, parts[empty].dtype)}, text_config={})
        declare(tmp_path, VARIANTS[name])
        with pytest.raises(InputError):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(("first", "last"), [(7, 7), (0, 2), (-1, 1)])
def test_groups_beyond_the_scales_are_refused(first: int, last: int, tmp_path: Path) -> None:
    parts, _ = gptq(4, 32).make(ONES)
    parts["g_idx"] = np.repeat(np.array([first, last], np.int32), 32)
    tensors = {f"m.{end}": np.ascontiguousarray(part) for end, part in parts.items()}
    config = {"quant_method": "gptq", "bits": 4}
    opened = open_checkpoint(small(tmp_path, tensors, quantization_config=config))
    with pytest.raises(InputError, match=f"names groups from {first} to {last}, of 2"):
        opened.tensor("m.weight").numpy()


def test_scales_of_activations_are_left_out_and_recorded(tmp_path: Path) -> None:
    parts, expected = fp8(None).make(np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32))
    tensors = {f"m.{end}": part for end, part in parts.items()}
    names = ("input_scale", "input_scale_ub", "input_zero_point", "output_scale", "output_zero_point",
             "activation_scale", "q_scale", "k_scale", "k_zero_point", "v_scale", "v_zero_point")  # fmt: skip
    tensors |= {f"m.{name}": np.ones(1, np.float32) for name in names}
    opened = open_checkpoint(small(tmp_path, tensors, **FP8_CONFIG))
    assert list(opened.tensors) == ["m.weight"]
    assert np.array_equal(opened.tensor("m.weight").numpy(), expected)
    assert opened.changes["quantization"]["unused"] == sorted(f"m.{name}" for name in names)
