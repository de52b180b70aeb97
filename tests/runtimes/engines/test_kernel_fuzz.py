"""Kernels under AddressSanitizer and UndefinedBehaviorSanitizer: all lengths, extremes, and sizes that do not fit."""

from __future__ import annotations

import platform
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.cases import (
    attention,
    cached,
    is_right,
    joined_product,
    product,
    products,
    right_case,
    rotary,
    signed_product,
)
from tests.fuzz.driver import LACKING, Array, Case, Tensor, build, cannot_sanitize, describe, run_cases
from tests.fuzz.kernels import check, draw_cases
from tests.helpers.native import need

SOME = 400  # cases here; more of them: python -m tests.fuzz.kernels
LENGTHS = range(1, 68)
BF16 = 2**-8  # of a value, by rounding it


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("MatMulInt4")
    need("AttentionBf16")
    folder = tmp_path_factory.mktemp("sanitized")
    reason = cannot_sanitize(folder)
    if reason:
        pytest.skip(reason)
    return build(folder)


def outputs(program: Path, *cases: Case) -> list[Array]:
    """What right cases give."""
    run = run_cases(program, cases)
    assert run.crash is None, run.crash
    made = [outcome.output.reshape(outcome.dims[0]) for outcome in run.outcomes if outcome.output is not None]
    assert len(made) == len(cases)
    return made


def test_sizes_that_do_not_fit_are_refused_and_others_answered(program: Path) -> None:
    counts = check(program, draw_cases(SOME, seed=1))
    assert min(counts["answered"], counts["refused"]) > SOME / 4


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_products_of_every_length(program: Path, bits: int) -> None:
    draw = np.random.default_rng(bits)
    cases = [product(draw, bits=bits, inputs=length) for length in LENGTHS]
    cases += [product(draw, bits=bits, outputs=length, rows=1 + length % 3) for length in LENGTHS]
    cases += [product(draw, bits=bits, rows=rows) for rows in range(1, 15)]
    cases += [product(draw, bits=bits, block=block, rows=rows) for block in (16, 32, 64, 128) for rows in (1, 2, 3)]
    check(program, cases)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_joined_products_give_what_each_gives(program: Path, count: int) -> None:
    draw = np.random.default_rng(count)
    cases = [joined_product(draw, count=count, rows=rows, bits=bits) for rows in (0, 1, 3, 9) for bits in (2, 3, 4, 8)]
    check(program, cases)
    alone = [run_cases(program, products(case)).outcomes for case in cases]
    for outcome, each in zip(run_cases(program, cases).outcomes, alone, strict=True):
        assert outcome.output is not None
        assert outcome.output.tobytes() == b"".join(made.output.tobytes() for made in each if made.output is not None)


def test_signed_products_of_every_length(program: Path) -> None:
    cases = [signed_product(length, 1 + length % 3, 1 + length % 7) for length in (*LENGTHS, 255, 256, 257, 300)]
    cases += [signed_product(70, length, 2) for length in LENGTHS]
    for case, made in zip(cases, outputs(program, *cases), strict=True):
        x, weights = (tensor.values.astype(np.float64) for tensor in case.inputs[:2] if tensor is not None)
        assert (
            np.abs(made - (x @ weights.T + 1)).max() < 0.6 * np.abs(weights).sum(axis=1).max() * np.abs(x).max() / 127
        )


@pytest.mark.parametrize(
    ("index", "part"),
    [(0, np.ones((3, 71), np.float32)), (1, np.ones(70, np.int8)), (1, np.ones((5, 0), np.int8)),
     (1, np.ones((4, 70), np.int8)), (2, np.ones(4, np.float16)), (3, np.ones((5, 1), np.float32))],
)  # fmt: skip
def test_signed_products_refuse_sizes(program: Path, index: int, part: Array) -> None:
    case = signed_product(70, 5, 3)
    inputs = [Tensor.of(part) if at == index else tensor for at, tensor in enumerate(case.inputs)]
    (outcome,) = run_cases(program, [replace(case, inputs=tuple(inputs))]).outcomes
    assert "MatMulInt8Rows: the input" in outcome.error


def test_attention_of_every_length(program: Path) -> None:
    draw = np.random.default_rng(0)
    cases = [attention(draw, keys=length, width=16) for length in (*LENGTHS, 127, 128, 129)]
    cases += [attention(draw, queries=length, width=16) for length in LENGTHS]
    cases += [attention(draw, width=width, queries=7, keys=70) for width in range(2, 68, 2)]
    check(program, [*cases, attention(draw, width=254), attention(draw, width=256)])


@pytest.mark.parametrize("kept", [0, 1], ids=["float16", "int8"])
def test_cached_attention_of_every_length(program: Path, kept: int) -> None:
    draw, make = np.random.default_rng(0), partial(cached, bytes=kept)
    cases = [make(draw, past=length, width=16) for length in (*range(8), 63, 64, 65, 511, 512, 513, 1100)]
    cases += [make(draw, queries=length, past=100, width=16) for length in (*range(1, 20), 95, 96, 97, 130)]
    cases += [make(draw, width=width, queries=3) for width in range(16, 257, 16)]
    check(program, [*cases, *(make(draw, group=group) for group in range(1, 9))])


def test_heads_of_every_width(program: Path) -> None:
    draw = np.random.default_rng(0)
    cases = [rotary(draw, width=width, turned=0) for width in range(2, 140, 2)]
    cases += [rotary(draw, width=width, turned=2 * (width // 4) or 2) for width in range(2, 140)]
    check(program, [*cases, *(rotary(draw, rows=rows) for rows in range(1, 12))])


@pytest.mark.parametrize("rows", [1, 2, 3, 7])  # few and many
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_spoils_its_row_alone(program: Path, rows: int, value: float) -> None:
    case = product(np.random.default_rng(rows), bits=4, inputs=200, outputs=70, block=32, rows=rows)
    x = case.inputs[0]
    assert x is not None
    values = x.values.copy()
    values[rows - 1, [3, 77]] = value, 1  # behind it are numbers, and a block of its own
    made, right = outputs(program, replace(case, inputs=(Tensor.of(values), *case.inputs[1:])), case)
    assert not np.isfinite(made[rows - 1]).any()
    np.testing.assert_array_equal(made[: rows - 1], right[: rows - 1])


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("exponent", [-80, -20, 60])
def test_products_of_any_magnitude(program: Path, rows: int, exponent: int) -> None:
    """A power of two changes no rounding: what goes in smaller comes out smaller, to the bit."""
    case = product(np.random.default_rng(rows), bits=4, inputs=200, outputs=70, block=32, rows=rows)
    x, without_bias = case.inputs[0], case.inputs[1:4]
    assert x is not None
    scaled = Tensor.of(x.values * np.float32(2.0**exponent))
    plain, made = outputs(program, *(replace(case, inputs=(some, *without_bias)) for some in (x, scaled)))
    np.testing.assert_array_equal(made, plain * np.float32(2.0**exponent))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the sets of x86-64")
@pytest.mark.parametrize("name", ["avx2", "avxvnni", "avx512", "avx512bf16"])
def test_every_instruction_set_gives_the_same_bits(program: Path, name: str) -> None:
    draw = np.random.default_rng(7)
    cases = [right_case(draw) for _ in range(SOME)]
    quickest, run = run_cases(program, cases), run_cases(program, cases, name)
    if run.crash and run.crash.returncode == LACKING:
        pytest.skip(run.crash.text)
    assert run.crash is None, run.crash
    for case, outcome, wanted in zip(cases, run.outcomes, quickest.outcomes, strict=True):
        assert outcome.output is not None, describe(case)
        assert wanted.output is not None, describe(case)
        assert outcome.output.tobytes() == wanted.output.tobytes(), describe(case)


def attend(program: Path, q: Array, k: Array, v: Array) -> Array:
    case = Case("AttentionBf16", (1,), tuple(Tensor.of(x[None].astype(np.float32)) for x in (q, k, v)))
    assert is_right(case)
    made: Array = outputs(program, case)[0][0]
    return made


@pytest.mark.parametrize("keys", [1, 5, 63, 64, 65, 130])
@pytest.mark.parametrize("score", [-1e4, -1e8, -1e20, -1e35, 1e4, 1e20, 1e35])
def test_equal_scores_of_any_size_give_the_mean(program: Path, keys: int, score: float) -> None:
    v = np.random.default_rng(keys).normal(size=(keys, 4))
    q, k = np.full((7, 4), np.sign(score) * abs(score) ** 0.5), np.full((keys, 4), abs(score) ** 0.5)
    np.testing.assert_allclose(attend(program, q, k, v), np.tile(v.mean(axis=0), (7, 1)), atol=2 * BF16 * abs(v).max())


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
def test_scores_that_rise_or_fall_from_tile_to_tile(program: Path, offset: float, descending: bool) -> None:
    """Scores j / 8 + offset of 200 keys: later tiles outweigh what was summed before, or hardly count."""
    keys = 200
    order = np.arange(keys)[::-1] if descending else np.arange(keys)
    scores = order // 32 * 2.0  # the same in half a tile, each step a factor of 7
    q = np.tile([np.sqrt(2), np.sqrt(2)], (5, 1))  # the square root of the width: a score is the sum of its key
    v = np.random.default_rng(1).normal(size=(keys, 2))
    weights = np.exp(scores - scores.max())
    wanted = weights @ v / weights.sum()
    k = np.stack([scores, np.full(keys, offset)], axis=1)
    made = attend(program, q, k, v)
    # The scale of queries is rounded once, so that all scores are stretched alike by up to one part in 256.
    np.testing.assert_allclose(made, np.tile(wanted, (5, 1)), atol=0.05 if offset else 0.03)


def test_keys_of_minus_infinity_are_left_out(program: Path) -> None:
    draw = np.random.default_rng(2)
    v, k = draw.normal(size=(100, 4)), np.zeros((100, 4))
    out = draw.permutation(100)[:60]
    k[out] = -np.inf
    kept = np.setdiff1d(np.arange(100), out)
    made = attend(program, np.ones((9, 4)), k, v)
    np.testing.assert_allclose(made, np.tile(v[kept].mean(axis=0), (9, 1)), atol=2 * BF16 * abs(v).max())
    k[:] = -np.inf
    assert np.isnan(attend(program, np.ones((9, 4)), k, v)).all()  # as PyTorch has it


def test_one_key_outweighs_all(program: Path) -> None:
    draw = np.random.default_rng(3)
    v, k = draw.normal(size=(150, 8)), draw.normal(size=(150, 8))
    for at in (0, 63, 64, 149):
        raised = k.copy()
        raised[at] = 1e3
        made = attend(program, np.ones((3, 8)), raised, v)
        np.testing.assert_allclose(made, np.tile(v[at], (3, 1)), rtol=BF16)


def test_heads_and_batches_do_not_mix(program: Path) -> None:
    """One head and one batch row at a time gives the bits of all together."""
    case = attention(np.random.default_rng(4), heads=3, width=10, queries=53, keys=66)
    whole = outputs(program, case)[0]
    tensors = [tensor.values for tensor in case.inputs if tensor is not None]
    for row in range(len(whole)):
        for head in range(3):
            some = [x[row, :, 10 * head : 10 * head + 10] for x in tensors]
            np.testing.assert_array_equal(attend(program, *some), whole[row, :, 10 * head : 10 * head + 10])
