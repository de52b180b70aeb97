"""Packed weights: every consumer's own unpacking gives the weights that the integers stand for, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.exporters.formats.onnx.ort import OrtDialect
from lensmith.exporters.graphs.graph_terms import Value
from lensmith.exporters.graphs.matrices import Matrix, Table
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.storage.packing import (
    around_eight,
    pack_low_first,
    pack_planes,
    unpack_low_first,
    unpack_planes,
)
from lensmith.exporters.storage.rounding import Groups, dequantize
from lensmith.exporters.storage.scheme import CHANNEL, make_policy
from lensmith.runtimes import user_message
from lensmith.runtimes.evidence.replay import relative_error
from numpy.typing import NDArray
from onnx import helper
from onnxscript import nn

from tests.exporters.storage.test_quantize import run
from tests.helpers.extras import load
from tests.helpers.ladder import TRAINED
from tests.helpers.packed_products import draw_groups, operator_graph, product_graph, scheme_of

Array = NDArray[Any]
FEW = settings(max_examples=30, deadline=None)
BITS, GROUPS = (2, 3, 4, 8), (32, 64, 128, CHANNEL)


def session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def products(groups: Groups, x: Array, *, accuracy_level: int = 1) -> Array:
    """x [n, columns] times the weights as the dialect has it compute."""
    found: Array = session(product_graph(groups, accuracy_level)).run(None, {"x": x})[0]
    return found


@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**32 - 1))
def test_low_first_and_back(count: int, bits: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (3, count)).astype(np.uint8)
    packed = pack_low_first(values, bits)
    assert packed.shape == (3, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack_low_first(packed, bits, count), values)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_planes_and_back(eights: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 8, (3, 8 * eights)).astype(np.uint8)
    packed = pack_planes(values)
    assert packed.shape == (3, 3 * eights)  # three bits for each value, and no more
    np.testing.assert_array_equal(unpack_planes(packed, 8 * eights), values)


def test_bytes_lie_as_documented() -> None:
    values = np.array([[1, 2, 3, 0, 7, 4, 5, 6]], np.uint8)
    assert pack_low_first(values, 4).tolist() == [[0x21, 0x03, 0x47, 0x65]]
    assert pack_planes(values).tolist() == [[0b00_11_10_01, 0b10_01_00_11, 0b1111_0000]]
    assert around_eight(np.array([0, 3], np.uint8), 2).tolist() == [6, 9]


@FEW
@given(st.sampled_from(BITS), st.sampled_from(GROUPS), st.booleans(), st.integers(1, 3), st.integers(1, 37),
       st.integers(0, 2**32 - 1))  # fmt: skip
def test_identity_gives_the_weights(
    bits: int, group: int, symmetric: bool, multiple: int, rows: int, seed: int
) -> None:
    columns = (group or 80) * multiple
    groups = draw_groups(rows, columns, group, bits, symmetric, seed)
    found = products(groups, np.eye(columns, dtype=np.float32))
    np.testing.assert_array_equal(found.T, dequantize(groups))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [16, 48, 384, 640, 2048])
def test_a_row_with_one_scale_keeps_one(bits: int, columns: int) -> None:
    """Whatever power of two divides the columns."""
    groups = draw_groups(5, columns, CHANNEL, bits, symmetric=False)
    matrix = Matrix(5, columns, scheme_of(groups))
    values, scales, points = matrix.store(groups)
    assert (values.nbytes, scales.shape, points.nbytes) == (5 * columns * bits // 8, (5, 1), 5)
    np.testing.assert_array_equal(products(groups, np.eye(columns, dtype=np.float32)).T, dequantize(groups))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_functions_round_activations_as_ever(bits: int, group: int, symmetric: bool) -> None:
    """Operators of our own, by their functions: activations of one value are exact in int8."""
    groups = draw_groups(33, 256, group, bits, symmetric)
    x = np.eye(256, dtype=np.float32)
    error = np.abs(products(groups, x, accuracy_level=4).T - dequantize(groups))
    # The kernel takes the product with the zero point from that with the level: up to 2^bits scales, four roundings of
    # 2^-24 each.
    assert np.all(error <= 2.0 ** max(bits, 4) * 2**-22 * np.abs(groups.scales.astype(np.float32)).max())


@FEW
@given(st.sampled_from([4, 8]), st.sampled_from(GROUPS), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_looked_up_rows_are_the_weights(bits: int, group: int, symmetric: bool, shared: bool, seed: int) -> None:
    groups = draw_groups(48, (group or 80) * 2, group, bits, symmetric, seed)
    table = Table(48, groups.values.shape[1], scheme_of(groups), shared=shared)
    table._set_name("table")

    def build(op: Any, ids: Value) -> tuple[Value, nn.Module]:
        return OrtDialect().gather_rows(op, ids, table), table

    if table.view is not None:
        table.view.const_value = ir.tensor(pack_low_first(groups.values, bits), name="view")
    made = session(operator_graph(ir.DataType.INT64, [None], build, groups, lambda _: table.weight))
    ids = np.array([47, 0, 3, 2])
    np.testing.assert_array_equal(made.run(None, {"x": ids})[0], dequantize(groups)[ids])


@FEW
@given(st.sampled_from([2, 4, 8]), st.sampled_from([16, 32, 64, 128, 256]), st.booleans(), st.integers(0, 2**32 - 1))
def test_low_first_is_the_layout_of_the_stock_kernels(bits: int, group: int, symmetric: bool, seed: int) -> None:
    """MatMulNBits in float32 and GatherBlockQuantized, without the dialect between them and the bytes."""
    groups = draw_groups(9, 2 * group, group, bits, symmetric, seed)
    stored: dict[str, Array] = {
        "values": pack_low_first(groups.values, bits),
        "scales": groups.scales.astype(np.float32),
    }
    if groups.zero_points is not None:
        stored["points"] = pack_low_first(groups.zero_points, bits)
    look_up = helper.make_node("GatherBlockQuantized", ["values", "x", *list(stored)[1:]], ["y"], bits=bits,
                               domain="com.microsoft", block_size=group, gather_axis=0, quantize_axis=1)  # fmt: skip
    ids = np.arange(9)[::-1].copy()
    np.testing.assert_array_equal(run(look_up, ids, stored), dequantize(groups)[ids])
    product = helper.make_node("MatMulNBits", ["x", *stored], ["y"], domain="com.microsoft", K=2 * group, N=9,
                               bits=bits, block_size=group, accuracy_level=1)  # fmt: skip
    stored["values"] = stored["values"].reshape(9, 2, -1)
    np.testing.assert_array_equal(run(product, np.eye(2 * group, dtype=np.float32), stored).T, dequantize(groups))


@pytest.mark.parametrize(("precision", "bits"), [("int3", 3), ("int2", 2)])
def test_few_bits_are_for_the_matrices_of_the_decoder(precision: str, bits: int) -> None:
    policy = make_policy(precision, group_size=64)
    found = {role: policy.scheme(role, 256).bits for role in ("decoder", "table", "vision.qkv", "merger")}
    assert found == {"decoder": bits, "table": 4, "vision.qkv": 8, "merger": 8}
    assert make_policy(precision, group_size=CHANNEL).scheme("decoder", 384).group_size == 384
    assert make_policy(precision, group_size=CHANNEL).scheme("decoder", 100).bits == 16


@pytest.mark.parametrize("precision", ["int8", "int4", "int3", "int2"])
@pytest.mark.parametrize("group", [32, CHANNEL])
def test_bundles_answer_with_and_without_kernels(precision: str, group: int, tmp_path: Path) -> None:
    job = prepare(TRAINED, Options(precision=precision, group_size=group, symmetric=group == CHANNEL))
    bundle = export(job, tmp_path / "bundle", golden="never")
    found = []
    for native in (True, False):
        model = load(bundle.path, threads=1, context=128, native=native)
        request = model.prepare([user_message("What is a picture?")])
        found.append(model.prefill(request).copy())
        answer = model.ask("What word is written?", max_new_tokens=8, ignore_eos=True)
        answer.read()
        assert len(answer.ids) == 8
    assert relative_error(*found) < 0.05  # both round activations to 8 bits; what they mean is tested by products
    rows = [row.precision for row in make_plan(job).storage if row.component == "decoder"]
    assert any("one scale for each row" in precision for precision in rows) == (group == CHANNEL)


def test_fewer_bits_take_less_disk() -> None:
    for bits in BITS:
        plan = make_plan(prepare(TRAINED, Options(precision=f"int{bits}", group_size=CHANNEL)))
        rows = [row for row in plan.storage if row.component == "decoder" and row.precision.startswith(f"int{bits},")]
        each = 8 * sum(row.disk_bytes for row in rows) / sum(row.parameters for row in rows)
        assert bits <= each <= bits + 1 / 4  # rows have 96 or more columns, and a scale 16 bits
