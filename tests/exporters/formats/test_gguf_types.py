"""How single tensors are stored in GGUF files, and what importance matrices say of them: by hand, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import TokenType
from lensmith.exporters.checkpoint.lazy_tensors import LazyTensor
from lensmith.exporters.families.llama_files import decoder_file
from lensmith.exporters.families.llava.llava_gguf import ClipVision
from lensmith.exporters.families.qwen3_5 import qwen3_5_gguf
from lensmith.exporters.families.qwen3_5.delta_net_order import reordered
from lensmith.exporters.families.qwen3_vl import qwen3_vl_gguf
from lensmith.exporters.families.qwen3_vl.qwen3_vl_gguf import QwenVision
from lensmith.exporters.formats.gguf import tensors
from lensmith.exporters.formats.gguf.file_types import FILE_TYPES, MMPROJ_NUMBERS, file_type
from lensmith.exporters.formats.gguf.gguf_files import encoder_precision
from lensmith.exporters.formats.gguf.gguf_writing import _general
from lensmith.exporters.formats.gguf.imatrix import (
    Energy,
    by_tensor,
    read_imatrix,
    write_imatrix,
)
from lensmith.exporters.formats.gguf.tensors import (
    Floats,
    Tensor,
    mapped,
    whole,
)
from lensmith.exporters.formats.gguf.vocabulary import _tokens
from lensmith.exporters.graphs.graph_files import Prefixes
from lensmith.exporters.graphs.rope import RopeScaling
from lensmith.exporters.job import Job
from lensmith.exporters.spec import DecoderSpec, DeltaNetSpec, ModelSpec
from lensmith.targets.errors import InputError
from numpy.typing import DTypeLike, NDArray
from tokenizers import Tokenizer

from tests.exporters.test_spec import CLIP, DECODER, HYBRID, VISION
from tests.paths import TINY


@pytest.mark.parametrize("name", FILE_TYPES)
def test_numbers_are_those_of_llama_cpp(name: str) -> None:
    kind = FILE_TYPES[name]
    known = {"f32": "ALL_F32"}.get(name, f"MOSTLY_{name.upper()}")
    assert kind.number == gguf.LlamaFileType[known]
    assert kind.quantizer == (name not in ("f32", "f16", "bf16", "q8_0"))
    assert kind.mmproj == (kind.model if not kind.quantizer else "Q8_0")
    family = name.removesuffix("_s").removesuffix("_m").removesuffix("_l").removesuffix("_xs").upper()
    assert kind.model.startswith(family[:3])  # Q4_0 for q4_0, Q4_K for q4_k_m, IQ3_S for iq3_xs
    assert kind.model in Type.__members__


def test_numbers_of_vision_files() -> None:
    assert {name: FILE_TYPES[name.lower()].number for name in MMPROJ_NUMBERS} == MMPROJ_NUMBERS
    with pytest.raises(InputError, match="did you mean 'q4_k_m'"):
        file_type("q4_k_mm")


def tensor(name: str, *shape: int) -> Tensor:
    def rows() -> Iterator[Floats]:
        yield np.ones(shape, np.float32)

    return Tensor(name, shape, (name,), rows)


@pytest.mark.parametrize(
    ("name", "shape", "wanted", "stored"),
    [
        ("blk.0.attn_q.weight", (4, 64), Type.Q8_0, Type.Q8_0),
        ("blk.0.attn_q.weight", (4, 48), Type.Q8_0, Type.F16),  # rows that do not fill blocks of 32
        ("blk.0.attn_q.weight", (4, 256), Type.Q4_K, Type.Q4_K),
        ("blk.0.attn_q.weight", (4, 64), Type.Q4_K, Type.F16),
        ("blk.0.attn_q.weight", (4, 48), Type.BF16, Type.BF16),
        ("blk.0.attn_q.bias", (64,), Type.Q8_0, Type.F32),
        ("blk.0.attn_q.bias", (4, 64), Type.Q8_0, Type.F32),
        ("blk.0.attn_norm.weight", (64,), Type.F16, Type.F32),
        ("blk.0.attn_q_norm.weight", (4, 64), Type.Q8_0, Type.F32),
        ("blk.0.ssm_conv1d.weight", (4, 64), Type.BF16, Type.F32),
        ("v.position_embd.weight", (4, 64), Type.F16, Type.F32),
        ("v.patch_embd.weight", (4, 3, 8, 32), Type.F16, Type.F16),
        ("v.patch_embd.weight", (4, 3, 8, 32), Type.BF16, Type.F32),
        ("v.patch_embd.weight.1", (4, 3, 8, 32), Type.Q8_0, Type.F32),
    ],
)
def test_each_tensor_has_its_type(name: str, shape: tuple[int, ...], wanted: Type, stored: Type) -> None:
    made = tensor(name, *shape)
    assert made.type(wanted) == stored
    if stored != Type.Q4_K:  # which gguf-py cannot write
        assert made.nbytes(wanted) == sum(map(len, made.data(wanted)))


def test_values_that_float16_cannot_hold() -> None:
    def of(value: float) -> Tensor:
        return Tensor("x.weight", (1, 32), ("x",), lambda: iter([np.full((1, 32), value, np.float32)]))

    for kind in (Type.F16, Type.Q8_0):
        list(of(-65504.0).data(kind))
        for value in (65505.0, -7e4, np.nan):
            with pytest.raises(InputError, match="beyond float16"):
                list(of(value).data(kind))
    list(of(7e4).data(Type.BF16))


class Lazy(LazyTensor):
    """Values in memory; reading more than its rows would fail the test."""

    def __init__(self, values: Floats) -> None:
        self.name, self.shape, self.dtype, self.values = "source.weight", values.shape, "F32", values

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def rows(self, start: int, stop: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        assert 0 <= start < stop <= len(self.values)
        return self.values[start:stop]

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        return self.values

    def renamed(self, name: str) -> LazyTensor:
        raise NotImplementedError


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_blocks_of_rows_cover_the_tensor(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "BLOCK_ELEMENTS", 12)  # two rows of six
    monkeypatch.setattr(tensors, "SAMPLE_ELEMENTS", 6)
    values = np.arange(rows * 6, dtype=np.float32).reshape(rows, 6)
    made = mapped("x.weight", Lazy(values), lambda x: x[:, 1::2] + 1)
    assert made.shape == (rows, 3)
    blocks = list(made.rows())
    assert max(map(len, blocks)) <= 2
    assert len(blocks[0]) == 1  # a sample
    np.testing.assert_array_equal(np.concatenate(blocks), values[:, 1::2] + 1)
    turned = whole("x.weight", Lazy(values), lambda x: x[::-1])
    assert turned.shape == values.shape
    np.testing.assert_array_equal(np.concatenate(list(turned.rows())), values[::-1])


def test_columns_of_a_delta_nets_output_say_where_they_come_from() -> None:
    """Two value heads share a key head: side by side in the checkpoint, in turns in llama.cpp."""
    net = DeltaNetSpec(key_heads=2, value_heads=4, key_dim=3, value_dim=2, kernel=4)
    values, columns = np.arange(24, dtype=np.float32).reshape(3, 8), [0, 1, 4, 5, 2, 3, 6, 7]
    made = reordered("blk.0.ssm_out.weight", "model.layers.0.linear_attn.out_proj.weight", Lazy(values), net)
    np.testing.assert_array_equal(np.concatenate(list(made.rows())), values[:, columns])
    assert made.columns is not None
    assert made.columns.tolist() == columns


def test_importance_follows_its_columns(tmp_path: Path) -> None:
    sums = np.array([1, 4, 9, 16], np.float32)
    moved = Tensor("blk.0.ssm_out.weight", (8, 4), ("out.weight",), lambda: iter([]), np.array([2, 0, 3, 1]))
    others = [tensor("blk.0.attn_q.weight", 8, 4), tensor("blk.0.attn_q.bias", 8), tensor("blk.0.conv.weight", 2, 2, 4)]
    energies = {"out.weight": Energy(sums, 8), **{other.name: Energy(sums * 2, 5) for other in others}}
    found = by_tensor(energies, [moved, *others, tensor("blk.0.unknown.weight", 8, 4)])
    assert sorted(found) == ["blk.0.attn_q.weight", "blk.0.ssm_out.weight"]
    assert found["blk.0.ssm_out.weight"].sums.tolist() == [9, 1, 16, 4]
    np.testing.assert_allclose(found["blk.0.attn_q.weight"].mean, [0.4, 1.6, 3.6, 6.4], rtol=1e-6)
    assert Energy(sums, 0).mean.tolist() == sums.tolist()
    write_imatrix(tmp_path / "made.gguf", found, ["a", "b"])
    again = read_imatrix(tmp_path / "made.gguf")
    assert {name: (energy.sums.tolist(), energy.count) for name, energy in again.items()} == {
        "blk.0.attn_q.weight": ([2, 8, 18, 32], 5), "blk.0.ssm_out.weight": ([9, 1, 16, 4], 8)}  # fmt: skip
    with pytest.raises(InputError, match="has 3 columns, the matrix 4"):
        by_tensor({"out.weight": Energy(sums[:3], 8)}, [moved])


IMAGE_SECTION = {"mean": [0.5, 0.5, 0.25], "std": [0.5, 0.5, 0.75]}
NOWHERE = Prefixes(vision="v", text="t", head="h", projector="p")


@pytest.mark.parametrize(
    "changes",
    [{"activation": "silu"}, {"projector_activation": "silu"}, {"projector_activation": "quick_gelu"},
     {"feature_depths": (1, 2)}, {"keep_class": True}, {"projector_bias": False}],
)  # fmt: skip
def test_towers_that_llama_cpp_would_compute_in_another_way(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="export it with --format onnx"):
        ClipVision(replace(CLIP, **changes), NOWHERE, IMAGE_SECTION)


@pytest.mark.parametrize(("activation", "tanh"), [("quick_gelu", False), ("gelu", True), ("gelu_tanh", True)])
def test_what_files_say_of_a_tower(activation: str, tanh: bool) -> None:
    """Layers behind the one whose states are taken are not in the file."""
    found = ClipVision(replace(CLIP, activation=activation, feature_depths=(2,)), NOWHERE, IMAGE_SECTION).metadata()
    assert found == {
        "clip.has_vision_encoder": True, "clip.vision.projection_dim": 128, "clip.vision.image_size": 60,
        "clip.vision.patch_size": 14, "clip.vision.embedding_length": 96, "clip.vision.feed_forward_length": 192,
        "clip.vision.block_count": 2, "clip.vision.attention.head_count": 4, "clip.use_gelu": tanh,
        "clip.vision.attention.layer_norm_epsilon": 1e-5, "clip.vision.image_mean": [0.5, 0.5, 0.25],
        "clip.vision.image_std": [0.5, 0.5, 0.75], "clip.vision.feature_layer": [2], "clip.projector_type": "mlp",
    }  # fmt: skip


def test_what_files_say_of_an_encoder() -> None:
    limits = {"min_pixels": 1024, "max_pixels": 4096}
    found = QwenVision(VISION, NOWHERE, 77, IMAGE_SECTION, limits).metadata()
    assert found["clip.vision.projection_dim"] == 77
    assert found["clip.vision.image_size"] == 48 * 16  # of the table of 2304 positions
    assert found["clip.vision.is_deepstack_layers"] == [True, False, False, True]
    assert (found["clip.vision.image_min_pixels"], found["clip.vision.image_max_pixels"]) == (1024, 4096)
    assert (found["clip.vision.block_count"], found["clip.use_gelu"]) == (4, True)
    for other in (replace(VISION, merge_size=3), replace(VISION, temporal_patch_size=1)):
        with pytest.raises(InputError, match="written for"):
            QwenVision(other, NOWHERE, 77, IMAGE_SECTION, limits)


TEXT = replace(DECODER, mrope_section=None)
ARCHITECTURES: list[tuple[DecoderSpec, str | None]] = [
    (TEXT, "qwen3"),
    (replace(TEXT, qkv_bias=True), None), (replace(TEXT, qk_norm=False), "llama"),
    (replace(TEXT, rope_scaling=RopeScaling("linear", 2.0)), None),
]  # fmt: skip


@pytest.mark.parametrize(("decoder", "name"), ARCHITECTURES)
def test_decoders_with_a_place(decoder: DecoderSpec, name: str | None) -> None:
    model = ModelSpec("llava", None, decoder)
    if name is None:
        with pytest.raises(InputError, match="has biases or scaled rotary positions"):
            decoder_file(model, NOWHERE)
    else:
        assert gguf.MODEL_ARCH_NAMES[decoder_file(model, NOWHERE).arch] == name


def test_what_files_say_of_a_decoder() -> None:
    """Four layers, the last of attention, and a draft head behind them, which is one more."""
    model = ModelSpec("qwen3_5", VISION, replace(HYBRID, mtp=True))
    found = qwen3_5_gguf.GGUF.decoder(model, NOWHERE).metadata()
    assert {key.removeprefix("qwen35."): value for key, value in found.items()} == {
        "block_count": 5, "context_length": 4096, "embedding_length": 128, "feed_forward_length": 384,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32,
        "attention.value_length": 32, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6,
        "rope.dimension_sections": [3, 3, 2, 0], "rope.dimension_count": 16, "ssm.conv_kernel": 4,
        "ssm.state_size": 8, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 64,
        "attention.recurrent_layers": [True, True, True, False, False], "full_attention_interval": 4,
        "nextn_predict_layers": 1,
    }  # fmt: skip
    linear = replace(HYBRID, linear_layers=frozenset(range(4)))
    alone = qwen3_5_gguf.TEXT_GGUF.decoder(ModelSpec("qwen3_5", None, linear), NOWHERE)
    assert alone.metadata()["qwen35.full_attention_interval"] == 5  # none of four
    assert "qwen35.nextn_predict_layers" not in alone.metadata()
    taps = qwen3_vl_gguf.GGUF.decoder(ModelSpec("qwen3_vl", VISION, DECODER), NOWHERE).metadata()
    assert taps["qwen3vl.n_deepstack_layers"] == 2
    assert taps["qwen3vl.rope.dimension_sections"] == [6, 5, 5, 0]
    assert "qwen3vl.rope.dimension_count" not in taps


def test_damaged_importance_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    write_imatrix(path, {}, [])
    with pytest.raises(InputError, match="has no importance of any matrix"):
        read_imatrix(path)
    write_imatrix(path, {"a.weight": Energy(np.array([1, np.nan], np.float32), 1)}, ["x"])
    with pytest.raises(InputError, match="values that are not finite"):
        read_imatrix(path)
    path.write_bytes(b"GGUF and no more")
    with pytest.raises(InputError, match="is not an importance matrix"):
        read_imatrix(path)
    write_imatrix(
        path, {"a.weight": Energy(np.ones(2, np.float32), 3), "b.weight": Energy(np.ones(2, np.float32), 7)}, ["x"]
    )
    fields = gguf.GGUFReader(path).fields
    assert (fields["imatrix.chunk_count"].contents(), fields["imatrix.chunk_size"].contents()) == (1, 7)
    assert fields["imatrix.datasets"].contents() == ["x"]


DELTA = DeltaNetSpec(key_heads=2, value_heads=4, key_dim=3, value_dim=2, kernel=2)
IN_TURNS = {  # of a part, where each of its rows comes from: value heads 0 and 2, then 1 and 3, behind 12 rows of keys
    "dt_bias": [0, 2, 1, 3], "in_proj_a.weight": [0, 2, 1, 3], "in_proj_b.weight": [0, 2, 1, 3],
    "in_proj_z.weight": [0, 1, 4, 5, 2, 3, 6, 7],
    "in_proj_qkv.weight": [*range(12), 12, 13, 16, 17, 14, 15, 18, 19],
    "conv1d.weight": [*range(12), 12, 13, 16, 17, 14, 15, 18, 19],
    "norm.weight": [0, 1],
}  # fmt: skip


@pytest.mark.parametrize("part", IN_TURNS)
def test_rows_of_a_delta_net_stand_in_turns(part: str) -> None:
    rows = IN_TURNS[part]
    values = np.arange(len(rows), dtype=np.float32)
    values = values[:, None, None] * 10 + np.arange(2) if part == "conv1d.weight" else values
    made = reordered("blk.0.x", f"model.layers.0.linear_attn.{part}", Lazy(values.astype(np.float32)), DELTA)
    found = np.concatenate(list(made.rows()))
    np.testing.assert_array_equal(found, values[rows, 0] if part == "conv1d.weight" else values[rows])
    assert made.shape == found.shape


def test_the_decay_of_a_delta_net() -> None:
    logs = np.array([0, 1, -1, 0.5], np.float32)
    made = reordered("blk.0.ssm_a", "model.layers.0.linear_attn.A_log", Lazy(logs), DELTA)
    np.testing.assert_allclose(np.concatenate(list(made.rows())), -np.exp(logs[[0, 2, 1, 3]]), rtol=1e-7)


def test_tokens_and_their_kinds() -> None:
    """Rows of the table without a token are padding; a table that is too small is refused."""
    tokenizer = Tokenizer.from_file(str(TINY / "qwen3_5" / "tokenizer.json"))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    tokens, kinds = _tokens(tokenizer, size + 2)
    assert tokens[size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert kinds[size:] == [TokenType.UNUSED] * 2
    expected = {"<|im_end|>": TokenType.CONTROL, "<|fim_prefix|>": TokenType.CONTROL, "!": TokenType.NORMAL,
                "<think>": TokenType.USER_DEFINED, "<tool_call>": TokenType.USER_DEFINED}  # fmt: skip
    assert {text: kinds[tokens.index(text)] for text in expected} == expected
    assert all(tokenizer.token_to_id(text) == tokens.index(text) for text in expected)
    assert len(_tokens(tokenizer, size)[0]) == size
    with pytest.raises(InputError, match=f"with id {size - 1}; the token table has {size - 1} rows"):
        _tokens(tokenizer, size - 1)


def test_general_facts_of_files(tmp_path: Path) -> None:
    """The name of the folder, and the repetition penalty by its key in generation_config.json."""
    folder = tmp_path / "tiny-reader"
    folder.mkdir()
    (folder / "README.md").write_text("---\n{not yaml\n---\n")
    checkpoint = SimpleNamespace(path=folder, license="mit", generation_config={"repetition_penalty": 1.25})
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen3")
    writer.add_tensor("a.weight", np.zeros((1000, 1000), np.float32))
    _general(writer, cast(Job, SimpleNamespace(checkpoint=checkpoint)))
    found = {key: value.value for part in writer.kv_data for key, value in part.items()}
    assert found["general.sampling.penalty_repeat"] == 1.25
    assert (found["general.name"], found["general.license"]) == ("tiny-reader", "mit")
    assert found["general.size_label"] == "1000K"


def test_precisions_of_encoders_that_stay_graphs() -> None:
    """What has 16 bits or more keeps 16 or 32; all else becomes 8."""
    found = {name: encoder_precision(name) for name in ("f32", "f16", "bf16", "q8_0", "q4_k_m", "iq1_s")}
    assert found == {"f32": "fp32", "f16": "fp16", "bf16": "fp16", "q8_0": "int8", "q4_k_m": "int8", "iq1_s": "int8"}
