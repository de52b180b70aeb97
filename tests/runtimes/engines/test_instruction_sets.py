"""Every instruction set gives the same bits, for any number of rows; LENSMITH_NATIVE chooses between them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from lensmith.runtimes import InputError
from lensmith.runtimes.engines import native
from lensmith.runtimes.engines.native import SWITCH, wanted_instructions, wanted_kernels

from tests.helpers.native import Array, need, session
from tests.runtimes.engines.test_native import Product, activations, attend, signed_parts

KNOWN = ("avx512bf16", "avx512", "avxvnni", "avx2", "i8mm", "dotprod", "neon")
ROWS = (1, 2, 3, 7, 16, 64, 600)
# inputs, outputs: more than a segment of 32 chunks, parts of a chunk, odd numbers of outputs, one output
SHAPES = ((4224, 66), (384, 67), (96, 33), (200, 1), (1000, 19))


@pytest.fixture(autouse=True)
def quickest_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    need("MatMulInt4")
    yield
    monkeypatch.delenv(SWITCH, raising=False)
    wanted_instructions(True)


def sets_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each set that this processor has is chosen in turn, and then none."""
    for name in KNOWN:
        monkeypatch.setenv(SWITCH, name)
        try:
            assert wanted_instructions() == name
        except InputError:
            continue
        yield name
    monkeypatch.delenv(SWITCH)


def bits(values: Array) -> Array:
    made: Array = values.view(np.int32)
    return made


@pytest.mark.parametrize("width", [4, 3, 2])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_products(block: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for more, (inputs, outputs) in enumerate(SHAPES):
        product = Product(inputs, outputs, block, bits=width, zeros=bool(more % 2), bias=bool(more // 2 % 2))
        x = activations(max(ROWS), inputs)
        x[5, 3], x[6, :70] = 1e6, 0
        whole = bits(product.run(x))
        for name in sets_here(monkeypatch):
            for rows in ROWS[more % 2 :: 2]:
                np.testing.assert_array_equal(bits(product.run(x[-rows:])), whole[-rows:], err_msg=name)


@pytest.mark.parametrize("block", [16, 64, 128, 256])
def test_products_of_bytes(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for inputs, outputs in ((1280, 66), (200, 1)):
        product = Product(inputs, outputs, block, bits=8, bias=True)
        product.weights["B"][0], product.weights["B"][-1] = 0, 255
        x = activations(64, inputs)
        x[5, 3], x[6, :70], x[7], x[8] = 1e6, 0, 1, -1
        whole = bits(product.run(x))
        for name in sets_here(monkeypatch):
            for rows in (1, 7, 64):
                np.testing.assert_array_equal(bits(product.run(x[-rows:])), whole[-rows:], err_msg=name)


def test_products_of_signed_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for inputs, outputs in ((1280, 66), (200, 1)):
        x, parts = activations(64, inputs), signed_parts(inputs, outputs)
        x[5, 3], x[6, :70], x[7], x[8] = 1e6, 0, 1, -1
        whole = bits(session("MatMulInt8Rows", {"A": x}, parts)())
        for name in sets_here(monkeypatch):
            for rows in (1, 7, 64):
                found = session("MatMulInt8Rows", {"A": x[-rows:]}, parts)()
                np.testing.assert_array_equal(bits(found), whole[-rows:], err_msg=name)


@pytest.mark.parametrize("width", [2, 14, 64, 72, 80, 128, 256])
def test_attention(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(width)
    for length in (1, 65, 200):
        q, k, v = (draw.normal(size=(2, length, 3 * width)).astype(np.float32) for _ in range(3))
        k[0] *= 30  # scores so far apart that probabilities vanish
        v[0, :, ::3] *= np.float32(1e-38)  # values that have no full mantissa
        found = [bits(attend(q, k, v, 3)) for _ in sets_here(monkeypatch)]
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


def test_row_of_many_is_the_row_alone() -> None:
    """What makes it right to check several drafted tokens at once."""
    product, x = Product(512, 150, 32, zeros=True, bias=True), activations(9, 512)
    together = bits(product.run(x))
    for row in range(len(x)):
        np.testing.assert_array_equal(bits(product.run(x[row : row + 1]))[0], together[row])


def test_default_is_the_first_that_this_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = sets_here(monkeypatch)
    for switch in ("", "1"):
        monkeypatch.setenv(SWITCH, switch)
        assert wanted_instructions() == first
    monkeypatch.delenv(SWITCH)
    assert wanted_instructions() == first


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted_instructions(False) is None
    monkeypatch.setenv(SWITCH, "0")
    assert wanted_instructions() is None
    assert wanted_kernels() == ()
    assert wanted_instructions(True)


@pytest.mark.parametrize("name", ["AVX2", "sse9", "neon dotprod"])
def test_set_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, name)
    with pytest.raises(InputError, match=f"LENSMITH_NATIVE is '{name}', which this processor lacks; lensmith knows "):
        wanted_kernels()


def test_set_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARY", native.LIBRARY.with_name("none.so"))
    monkeypatch.setenv(SWITCH, "avx2")
    with pytest.raises(InputError, match="LENSMITH_NATIVE is 'avx2', but lensmith's own kernels are not installed"):
        wanted_kernels()
    monkeypatch.delenv(SWITCH)
    assert wanted_kernels() == ()
