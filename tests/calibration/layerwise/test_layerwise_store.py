"""Calibrated weights on disk: what goes in comes out, and is what the data files get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.calibration.layerwise.matrix_outcomes import Outcome, OutcomeJournal
from lensmith.calibration.layerwise.store import CalibratedTensor, Store
from lensmith.exporters.checkpoint.safetensors_files import read_header
from lensmith.exporters.graphs.blocks import SourceTensor
from lensmith.exporters.graphs.matrices import Matrix, offset
from lensmith.exporters.storage.rounding import Groups, dequantize, quantize
from lensmith.exporters.storage.scheme import Scheme
from numpy.typing import NDArray
from onnxscript import nn
from safetensors.numpy import save_file

Floats = NDArray[np.float32]
SCHEMES = [(bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


def make(bits: int, *, symmetric: bool, rows: int = 6, columns: int = 64, group: int = 32) -> Groups:
    weight = np.random.default_rng(bits).normal(size=(rows, columns)).astype(np.float32)
    return quantize(weight, bits=bits, group_size=group, symmetric=symmetric)


def assert_same(found: CalibratedTensor | None, expected: CalibratedTensor) -> None:
    assert found is not None
    for key in ("columns", "rows"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))
    if expected.groups is None:
        assert found.groups is None
        return
    assert found.groups is not None
    assert found.groups.bits == expected.groups.bits
    for key in ("values", "scales", "zero_points"):
        mine, theirs = getattr(found.groups, key), getattr(expected.groups, key)
        np.testing.assert_array_equal(mine, theirs)
        assert (mine is None) == (theirs is None)
        assert mine is None or mine.dtype == theirs.dtype


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_is_put_is_got(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    bits, symmetric = data.draw(st.sampled_from(SCHEMES))
    rows, groups, size = (data.draw(st.integers(1, most)) for most in (5, 4, 40))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    zeros = None if symmetric else draw.integers(0, 2**bits, (rows, groups), np.uint8)
    values = draw.integers(0, 2**bits, (rows, groups * size), np.uint8)
    made = Groups(values, draw.normal(size=(rows, groups)).astype(np.float16), zeros, bits)
    factors = [draw.normal(size=n).astype(np.float32) if data.draw(st.booleans()) else None for n in (size, rows)]
    store, expected = Store(tmp_path_factory.mktemp("store")), CalibratedTensor(made, *factors)
    store.put("a.weight", expected)
    assert_same(store.get("a.weight"), expected)
    assert store.get("b.weight") is None


def test_effective_weights_are_without_the_factors() -> None:
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(6, 64)).astype(np.float32)
    columns, rows = (np.exp2(draw.uniform(-2, 2, n)).astype(np.float32) for n in (64, 6))
    made = CalibratedTensor(quantize(weight * columns, bits=8, group_size=32, symmetric=True), columns, rows)
    # Half a step of 8 bits of the largest product, divided by factors of 1/4 and above.
    assert np.abs(made.effective() - weight).max() < 4 * np.abs(weight * columns).max() / 255
    assert made.divided is not None
    np.testing.assert_allclose(made.effective(), dequantize(made.divided) / columns * rows[:, None], rtol=1e-6)


def test_divided_rows_stand_for_the_same_weights(tmp_path: Path) -> None:
    store, made = Store(tmp_path), make(4, symmetric=False)
    rows = np.random.default_rng(1).uniform(0.5, 2, 6).astype(np.float32)
    columns = np.full(64, 2, np.float32)
    before = CalibratedTensor(made, columns).effective()
    store.put("v.weight", CalibratedTensor(made, columns))
    for _ in range(2):  # an interrupted calibration may divide again
        store.divide_rows("v.weight", rows)
        after = store.get("v.weight")
        assert after is not None
        assert after.divided is not None
        np.testing.assert_array_equal(after.divided.values, made.values)
        # Scales are rounded to float16 once more, by half of 2^-10.
        np.testing.assert_allclose(after.effective(), before, rtol=1.01 * 2**-11)
        np.testing.assert_allclose(dequantize(after.divided) * rows[:, None], dequantize(made), rtol=1.01 * 2**-11)
        store.divide_rows("norm.weight", rows)  # one that was not calibrated
        assert_same(store.get("norm.weight"), CalibratedTensor(rows=rows))


def test_an_interrupted_write_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is there whole or not at all, and a new one takes the place of what was there."""
    store, old, new = Store(tmp_path), make(4, symmetric=True), make(2, symmetric=True)

    def stop(file: Any, **arrays: Any) -> None:
        file.write(b"half of")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", stop)
        with pytest.raises(KeyboardInterrupt):
            store.put("a.weight", CalibratedTensor(old))
    assert store.get("a.weight") is None
    store.put("a.weight", CalibratedTensor(old))
    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", stop)
        with pytest.raises(KeyboardInterrupt):
            store.put("a.weight", CalibratedTensor(new))
    assert_same(store.get("a.weight"), CalibratedTensor(old))
    store.put("a.weight", CalibratedTensor(new))
    assert_same(Store(tmp_path).get("a.weight"), CalibratedTensor(new))


@pytest.mark.parametrize("damage", ["cut", "empty", "flip"])
def test_a_damaged_file_is_never_taken_for_weights(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.put("a.weight", CalibratedTensor(make(4, symmetric=False, rows=64)))
    path = next(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes({"cut": bytes(data[: len(data) // 2]), "empty": b"", "flip": bytes(data)}[damage])
    with pytest.raises(Exception, match=r".+"):
        store.get("a.weight")


def lazy(tmp_path: Path, name: str, values: NDArray[Any]) -> Any:
    save_file({name: values}, tmp_path / "x.safetensors")
    return read_header(tmp_path / "x.safetensors")[name]


@pytest.mark.parametrize(("bits", "symmetric"), SCHEMES)
def test_parts_are_the_stored_form(tmp_path: Path, bits: int, symmetric: bool) -> None:
    """A matrix that calibration rounds to nearest gives the bytes of one that is only rounded to nearest."""
    weight = np.random.default_rng(3).normal(size=(8, 128)).astype(np.float32)
    matrix = Matrix(8, 128, Scheme(bits, 32, symmetric))
    source, store = SourceTensor("a.weight", tuple(matrix.parameters(recurse=False)), matrix), Store(tmp_path / "store")
    tensor = lazy(tmp_path, "a.weight", weight)
    assert store.parts(source, tensor) is None
    store.put("a.weight", CalibratedTensor(quantize(weight, bits=bits, group_size=32, symmetric=symmetric)))
    for found, expected in zip(store.parts(source, tensor) or [], matrix.pack(weight), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


@pytest.mark.parametrize("bits", [16, 32])
def test_parts_of_a_matrix_that_is_not_quantized(tmp_path: Path, bits: int) -> None:
    draw = np.random.default_rng(4)
    weight, columns, rows = (draw.uniform(0.5, 2, shape).astype(np.float32) for shape in ((8, 64), 64, 8))
    matrix = Matrix(8, 64, Scheme(bits))
    source, store = SourceTensor("a.weight", tuple(matrix.parameters(recurse=False)), matrix), Store(tmp_path / "store")
    store.put("a.weight", CalibratedTensor(columns=columns, rows=rows))
    (found,) = store.parts(source, lazy(tmp_path, "a.weight", weight)) or []
    assert found.dtype == (np.float16 if bits == 16 else np.float32)
    # Of 16 bits the weight is rounded before and behind the factors.
    np.testing.assert_allclose(found, weight * columns / rows[:, None], rtol=2.1 * 2**-11 if bits == 16 else 1e-6)


@pytest.mark.parametrize("by", [0.0, 1.0])
def test_parts_of_a_norm_are_divided_as_the_graph_multiplies(tmp_path: Path, by: float) -> None:
    """A norm whose checkpoint is stored around zero multiplies by 1 + weight: that is what is divided."""
    weight, rows = np.linspace(-0.5, 0.5, 8, dtype=np.float32), np.linspace(0.5, 2, 8, dtype=np.float32)
    parameter = offset([8], by)
    assert isinstance(parameter, nn.Parameter)
    store = Store(tmp_path / "store")
    store.divide_rows("norm.weight", rows)
    (found,) = store.parts(SourceTensor("norm.weight", (parameter,)), lazy(tmp_path, "norm.weight", weight)) or []
    np.testing.assert_allclose(found, (weight + by) / rows, rtol=1e-6)


def test_parts_of_a_divided_matrix(tmp_path: Path) -> None:
    """Its rows give what was divided when the next matrix multiplies it again."""
    rows, made = np.linspace(0.5, 2, 6, dtype=np.float32), make(4, symmetric=True)
    matrix = Matrix(6, 64, Scheme(4, 32))
    source, store = SourceTensor("v.weight", tuple(matrix.parameters(recurse=False)), matrix), Store(tmp_path / "store")
    store.put("v.weight", CalibratedTensor(made))
    store.divide_rows("v.weight", rows)
    values, scales = store.parts(source, lazy(tmp_path, "v.weight", np.zeros((6, 64), np.float32))) or []
    np.testing.assert_array_equal(values, matrix.store(made)[0])
    np.testing.assert_allclose(scales.astype(np.float64) * rows[:, None], made.scales, rtol=1.01 * 2**-11)


def test_a_journal_loses_the_line_that_was_cut_off_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    first, second, third, again = (Outcome(name, 0.1, 0.2, 3.0, "mse") for name in "abca")
    OutcomeJournal(path).record([first, second])
    path.write_text(path.read_text()[:-9])
    journal = OutcomeJournal(path)
    assert journal.finished == {"a"}
    journal.record([second, third])
    journal.record([again])
    assert OutcomeJournal(path).outcomes == [again, second, third]
