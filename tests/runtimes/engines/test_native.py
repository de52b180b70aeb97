"""lensmith's own kernels: each against numpy, then whole bundles against ONNX Runtime's, then life without them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.evidence.golden import Golden
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.storage.packing import around_eight, pack_low_first, pack_planes
from lensmith.runtimes import user_message
from lensmith.runtimes.engines.native import (
    LIBRARY,
    SWITCH,
    available_kernels,
    wanted_kernels,
)
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.evidence.verification import verify
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.extras import load
from tests.helpers.ladder import need_torch
from tests.helpers.native import need, session
from tests.paths import TINY

Array = NDArray[Any]
ROWS = (1, 2, 3, 7, 64, 611)
# inputs, outputs, block: whole chunks of 128 inputs and parts of one, odd outputs, a last block that is not full
SHAPES = [(2048, 64, 128), (384, 67, 128), (96, 33, 32), (160, 5, 16), (192, 129, 64), (200, 1, 32), (256, 200, 32)]
EXACT = 2e-6  # of the lengths of a row and a column: float32 sums of exact integer products
BF16 = 2**-7  # of the largest value: three roundings of 2^-9 each, in scores below 4, probabilities and values


class Product:
    """A random product with weights of a few bits, and what it should be."""

    def __init__(
        self, inputs: int, outputs: int, block: int, *, bits: int = 4, zeros: bool = False, bias: bool = False
    ) -> None:
        draw = np.random.default_rng(inputs + outputs + block)
        blocks, self.name = -(-inputs // block), f"MatMulInt{bits}"
        values = draw.integers(0, 2**bits, (outputs, blocks * block)).astype(np.uint8)
        packed = pack_planes(values) if bits == 3 else pack_low_first(values, bits)
        packed = packed.reshape(outputs, blocks, -1) if bits >= 4 else packed
        points = draw.integers(0, 2 ** min(bits, 4), (outputs, blocks), np.uint8)
        zero_points = {"zeros" if zeros else "_zeros": pack_low_first(around_eight(points, min(bits, 4)), 4)}
        self.scales = draw.normal(0, 0.01, (outputs, blocks)).astype(np.float16)
        self.bias = draw.normal(size=outputs).astype(np.float32)
        self.weights: dict[str, Array] = {
            "B": packed,
            "scales": self.scales,
            **zero_points,
        }
        self.weights |= {"bias": self.bias} if bias else {}
        self.attributes = {"K": inputs, "N": outputs, "block_size": block}
        levels = values.reshape(outputs, blocks, block).astype(np.float64)
        middle = points[..., None] if zeros else 2.0 ** (bits - 1)
        self.matrix: Array = ((levels - middle) * self.scales[..., None]).reshape(outputs, -1)
        self.added = self.bias if bias else np.zeros(outputs)
        self.block = block

    def run(self, x: Array, *, native: bool = True, threads: int = 2) -> Array:
        return session(self.name, {"A": x}, self.weights, native=native, threads=threads, **self.attributes)()

    def expected(self, x: Array) -> Array:
        """With activations rounded to int8 in blocks, as the kernel says it does."""
        padded = np.zeros((len(x), self.matrix.shape[1]), np.float32)
        padded[:, : x.shape[1]] = x
        blocks = padded.reshape(len(x), -1, self.block)
        largest = np.abs(blocks).max(axis=2, keepdims=True)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest >= 1e-30)
        rounded = (np.rint(blocks * inverse) * (largest / np.float32(127))).reshape(padded.shape)
        out: Array = rounded.astype(np.float64) @ self.matrix.T + self.added
        return out

    def error(self, x: Array, found: Array) -> float:
        """The largest, relative to the lengths of the row and the column."""
        lengths = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(self.matrix, axis=1)
        return float((np.abs(found - self.expected(x)) / np.maximum(lengths, 1e-30)).max())


def activations(rows: int, inputs: int) -> Array:
    return np.random.default_rng(rows).normal(size=(rows, inputs)).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs", "block"), SHAPES)
def test_product_is_that_of_rounded_activations(rows: int, inputs: int, outputs: int, block: int, bits: int) -> None:
    need(f"MatMulInt{bits}")
    x = activations(rows, inputs)
    for zeros, bias in ((False, False), (True, True)):
        product = Product(inputs, outputs, block, bits=bits, zeros=zeros, bias=bias)
        found = product.run(x)
        # The bias is one more number to add, of a length of its own.
        assert product.error(x, found) < EXACT * (10 if bias else 1)


@pytest.mark.parametrize("rows", [1, 7, 611])
@pytest.mark.parametrize(("inputs", "outputs", "block"), [*SHAPES, (1024, 66, 256), (300, 65, 256), (40, 3, 16)])
def test_product_of_bytes(rows: int, inputs: int, outputs: int, block: int) -> None:
    need("MatMulInt8")
    product, x = Product(inputs, outputs, block, bits=8, bias=True), activations(rows, inputs)
    found = product.run(x)
    assert product.error(x, found) < 10 * EXACT
    assert np.abs(found - product.run(x, native=False)).max() < 4e-3 * np.abs(found).max()  # where it rounds otherwise
    product.weights["B"][:], x[:] = 255, -1
    sums = product.scales.repeat(block, axis=1)[:, :inputs].sum(axis=1, dtype=float)
    np.testing.assert_allclose(product.run(x)[-1], product.bias - 127 * sums, rtol=1e-4, atol=1e-3)


def signed_parts(inputs: int, outputs: int) -> dict[str, Array]:
    draw = np.random.default_rng(inputs + outputs)
    weights = draw.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    weights[0], weights[-1] = -128, 127
    scales = draw.normal(0, 0.01, outputs).astype(np.float16)
    return {"B": weights, "scales": scales, "bias": draw.normal(size=outputs).astype(np.float32)}


@pytest.mark.parametrize("rows", [1, 7, 611])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 66), (300, 65), (40, 3), (257, 1), (128, 128)])
def test_product_of_signed_bytes(rows: int, inputs: int, outputs: int) -> None:
    """One scale for each row of weights; activations are rounded in blocks of 256."""
    need("MatMulInt8Rows")
    x, parts = activations(rows, inputs), signed_parts(inputs, outputs)
    exact = Product(inputs, outputs, 256)
    exact.matrix = np.zeros((outputs, -(-inputs // 256) * 256))
    exact.matrix[:, :inputs] = parts["B"].astype(np.float64) * parts["scales"].astype(np.float64)[:, None]
    exact.added = parts["bias"]
    found = session("MatMulInt8Rows", {"A": x}, parts)()
    assert exact.error(x, found) < 10 * EXACT
    whole = session("MatMulInt8Rows", {"A": x}, parts, native=False)()  # which rounds the tensor as one
    wanted = x.astype(np.float64) @ exact.matrix[:, :inputs].T + parts["bias"]
    if rows > 100:  # enough to be no matter of chance
        assert np.abs(found - wanted).mean() < np.abs(whole - wanted).mean()
    assert np.abs(found - whole).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("rows", [1, 7])
def test_product_of_extremes(rows: int) -> None:
    need("MatMulInt4")
    product = Product(256, 67, 32, bias=True)
    x = np.zeros((rows, 256), np.float32)
    np.testing.assert_array_equal(product.run(x), np.tile(product.bias, (rows, 1)))  # zeros give the bias itself
    x[:, 3], x[:, 40], x[:, 70:90] = 1e6, -1e-20, 1e-38  # an outlier costs its own block alone
    assert product.error(x, product.run(x)) < EXACT
    x[:] = 3e38 / 256 / 16
    assert np.isfinite(product.run(x)).all()


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_threads_do_not_change_a_bit(rows: int) -> None:
    need("MatMulInt4")
    product, x = Product(384, 333, 128), activations(rows, 384)
    np.testing.assert_array_equal(product.run(x, threads=1), product.run(x, threads=2))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rows", [1, 7])
def test_function_means_the_same_product(rows: int, bits: int) -> None:
    need(f"MatMulInt{bits}")
    product, x = Product(256, 67, 32, bits=bits, zeros=True), activations(rows, 256)
    lengths = np.linalg.norm(x, axis=1).max() * np.linalg.norm(product.matrix, axis=1).max()
    # ONNX Runtime rounds activations as well, at places of its own: up to half a level of the largest in a block.
    assert np.abs(product.run(x) - product.run(x, native=False)).max() < 4e-3 * lengths


def attend(q: Array, k: Array, v: Array, heads: int, **options: Any) -> Array:
    return session("AttentionBf16", {"q": q, "k": k, "v": v}, {}, **{"native": True, **options}, num_heads=heads)()


def expected_attention(q: Array, k: Array, v: Array, heads: int) -> Array:
    """In float64."""
    split = [x.astype(np.float64).reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v)]
    scores = split[0] @ split[1].transpose(0, 1, 3, 2) / np.sqrt(split[0].shape[3])
    weights = np.exp(scores - scores.max(axis=3, keepdims=True))
    out: Array = (weights / weights.sum(axis=3, keepdims=True) @ split[2]).transpose(0, 2, 1, 3).reshape(q.shape)
    return out


@pytest.mark.parametrize("width", [8, 64, 72, 80, 128, 256])
@pytest.mark.parametrize("length", [1, 3, 64, 65, 200])
def test_attention_is_within_bfloat16(width: int, length: int) -> None:
    need("AttentionBf16")
    draw = np.random.default_rng(length)
    q, k, v = (draw.normal(size=(2, length, 3 * width)).astype(np.float32) for _ in range(3))
    error = np.abs(attend(q, k, v, 3) - expected_attention(q, k, v, 3)).max() / np.abs(v).max()
    assert error < BF16


def test_attention_of_extremes() -> None:
    need("AttentionBf16")
    draw = np.random.default_rng(0)
    q, v = (draw.normal(size=(1, 150, 64)).astype(np.float32) for _ in range(2))
    mean = attend(q, np.zeros_like(q), v, 1)
    np.testing.assert_allclose(mean, np.tile(v.mean(axis=1, keepdims=True), (1, 150, 1)), atol=BF16)
    k = np.zeros_like(q)
    q[:], k[0, 99] = 1e3, 1e3  # one key with a score beyond all others: its value comes alone
    np.testing.assert_allclose(attend(q, k, v, 1), np.tile(v[:, 99:100], (1, 150, 1)), rtol=2**-8, atol=1e-6)
    k[0, 99] = -1e3  # and one that is left out
    assert np.isfinite(attend(q, k, v, 1)).all()


def test_probabilities_are_powers_of_two_rounded() -> None:
    """Of two keys whose scores differ by 0 to 4: to the bit, but where the exact value lies between two of bfloat16."""
    need("AttentionBf16")
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    q = np.zeros((1, 5000, 8), np.float32)
    q[0, :, :2] = np.random.default_rng(0).uniform(0, 8, len(q[0]))[:, None] * [1, 0.01]  # the second makes them finer
    k = np.zeros((1, 2, 8), np.float32)
    k[0, 1, :2] = -1  # the second key has the lower score, and the only value that is not zero
    v = np.zeros_like(k)
    v[0, 1] = 1
    scaled = (q[0, :, :2] * np.float32(1.44269504 / np.sqrt(8))).astype(bfloat16).astype(np.float64)
    odds = 2.0 ** -scaled.sum(axis=1)
    found = attend(q, k, v, 1)[0, :, 0] * (1 + odds)
    assert np.mean(np.abs(found / odds.astype(bfloat16).astype(np.float64) - 1) > 2e-5) < 0.005


def test_attention_of_one_and_two_threads() -> None:
    need("AttentionBf16")
    x = np.random.default_rng(1).normal(size=(1, 131, 144)).astype(np.float32)
    np.testing.assert_array_equal(attend(x, x, x, 2, threads=1), attend(x, x, x, 2, threads=2))
    assert np.abs(attend(x, x, x, 2) - attend(x, x, x, 2, native=False)).max() < BF16 * np.abs(x).max()


@pytest.fixture(scope="module", params=[32, 128])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model in int4, with golden traces for one of the group sizes."""
    golden: Golden = "never"
    if request.param == 128:
        need_torch()
        golden = "always"
    job = prepare(TINY / "qwen3_vl", Options(group_size=request.param))
    return export(job, tmp_path_factory.mktemp("trained") / "bundle", golden=golden).path


def outputs(bundle: Path, *, native: bool) -> tuple[Array, Array]:
    """Features of a picture and logits of a question about it."""
    model = load(bundle, threads=2, context=256, native=native)
    assert bool(model.kernels) == native
    picture = Image.open(TINY / "heldout" / "images" / "0001.png")
    request = model.prepare([user_message("What word is written?", [picture])])
    features = request.features_between(0, len(request.prompt))
    assert features is not None
    return np.array(features.features), model.prefill(request).copy()


def test_bundle_gives_the_same_with_and_without(trained: Path) -> None:
    need("MatMulInt4")
    for mine, stock in zip(outputs(trained, native=True), outputs(trained, native=False), strict=True):
        assert relative_error(mine, stock) < 0.05  # both round to 8 bits and below; what they mean is tested by tasks


@pytest.mark.parametrize("switch", ["1", "0"])
def test_evidence_holds_with_and_without(trained: Path, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (trained / "golden").exists():
        pytest.skip("no golden traces")
    monkeypatch.setenv(SWITCH, switch)
    assert verify(trained).passed


def test_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted_kernels(False) == ()
    monkeypatch.setenv(SWITCH, "0")
    assert wanted_kernels() == ()
    assert wanted_kernels(True) == available_kernels(LIBRARY)


def test_library_that_is_missing_or_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert available_kernels(tmp_path / "none.so") == ()
    (tmp_path / "damaged.so").write_bytes(b"not a library")
    with caplog.at_level(logging.WARNING):
        assert available_kernels(tmp_path / "damaged.so") == ()
    assert "ONNX Runtime's own kernels are used" in caplog.text
