"""How single tensors are stored in GGUF files, and what importance matrices say of them: by hand, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from lensmith.exporters.gguf import tensors
from lensmith.exporters.gguf.delta_net import reordered
from lensmith.exporters.gguf.file_types import FILE_TYPES, MMPROJ_NUMBERS, file_type
from lensmith.exporters.gguf.imatrix import Energy, by_tensor, read_imatrix, write_imatrix
from lensmith.exporters.gguf.tensors import Floats, Tensor, mapped, whole
from lensmith.exporters.lazy_tensors import LazyTensor
from lensmith.exporters.spec import DeltaNetSpec
from lensmith.targets.errors import InputError
from numpy.typing import DTypeLike, NDArray


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
    values = np.arange(rows * 6, dtype=np.float32).reshape(rows, 6)
    made = mapped("x.weight", Lazy(values), lambda x: x[:, 1::2] + 1)
    assert made.shape == (rows, 3)
    blocks = list(made.rows())
    assert max(map(len, blocks)) <= 2
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
