"""Norms and rotations of heads: next to float64, the same bits wherever a token stands, and sizes that do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from lensmith.exporters.formats.onnx.native_operators import DOMAIN
from onnx import helper

from tests.fuzz.cases import expected
from tests.fuzz.driver import Case, Tensor
from tests.helpers.native import Array, need, open_session
from tests.runtimes.engines.test_instruction_sets import bits, sets_here

GIVEN = {"query": 1, "key": 1, "query_weight": 1, "key_weight": 1, "positions": 7, "cos": 1, "sin": 1}  # types of ONNX
MADE = ("rotated_query", "rotated_key")
BY_TOKEN = ("query", "key", "positions")


@dataclass(frozen=True)
class Heads:
    """Random inputs of one call; `turned` 0 are all values of a head."""

    heads: int
    kv_heads: int
    width: int
    turned: int = 0
    batch: int = 1
    tokens: int = 1
    epsilon: float = 1e-6

    def inputs(self) -> dict[str, Array]:
        draw, rows = np.random.default_rng(self.width + self.tokens), self.batch * self.tokens
        angles = draw.uniform(-9, 9, (rows, (self.turned or self.width) // 2))
        shapes = [(self.batch, self.tokens, count * self.width) for count in (self.heads, self.kv_heads)]
        query, key = (3 * draw.normal(size=shape).astype(np.float32) for shape in shapes)
        weights = (draw.normal(1, 0.5, self.width).astype(np.float32) for _ in range(2))
        positions = draw.permutation(rows).reshape(self.batch, self.tokens)
        tables = (table(angles).astype(np.float32) for table in (np.cos, np.sin))
        return dict(zip(GIVEN, (query, key, *weights, positions, *tables), strict=True))

    def session(self, *, native: bool = True, threads: int = 2) -> ort.InferenceSession:
        node = helper.make_node("NormRotary", [*GIVEN], MADE, domain=DOMAIN, num_heads=self.heads,
                           kv_num_heads=self.kv_heads, rotary_embedding_dim=self.turned,
                           epsilon=self.epsilon)  # fmt: skip
        return open_session(node, GIVEN, dict.fromkeys(MADE, 1), native=native, threads=threads)

    def run(self, feed: dict[str, Array], **options: Any) -> list[Array]:
        made: list[Array] = self.session(**options).run(None, feed)
        return made

    def expected(self, feed: dict[str, Array]) -> tuple[Array, Array]:
        sizes = (self.heads, self.kv_heads, self.turned)
        return expected(Case("NormRotary", sizes, tuple(map(Tensor.of, feed.values())), (self.epsilon,)))


# Heads of real models and others, of one token and of many, all turned and a part; an epsilon that counts.
SOME = [
    Heads(16, 8, 128),
    Heads(16, 2, 256, turned=64, tokens=70),
    Heads(8, 8, 80, batch=3, tokens=5),
    Heads(3, 1, 20, turned=6, tokens=9),
    Heads(2, 1, 33, turned=2, tokens=40),
    Heads(4, 2, 64, tokens=3, epsilon=0.5),
]


@pytest.fixture(autouse=True)
def kernel() -> None:
    need("NormRotary")


def flat(made: list[Array]) -> Array:
    return np.concatenate([part.ravel() for part in made])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_it_is_what_float64_says_in_the_kernel_and_in_the_function(case: Heads, native: bool) -> None:
    feed = case.inputs()
    wanted, bound = case.expected(feed)
    made = case.run(feed, native=native)
    assert [part.shape for part in made] == [feed["query"].shape, feed["key"].shape]
    assert (np.abs(flat(made) - wanted) <= bound).all()


@pytest.mark.parametrize("case", SOME, ids=str)
def test_threads_and_instruction_sets_change_no_bit(case: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = case.inputs()
    wanted = bits(flat(case.run(feed)))
    for threads in (1, 3):
        np.testing.assert_array_equal(bits(flat(case.run(feed, threads=threads))), wanted)
    for name in sets_here(monkeypatch):
        np.testing.assert_array_equal(bits(flat(case.run(feed))), wanted, err_msg=name)


@pytest.mark.parametrize("case", [case for case in SOME if case.tokens > 1], ids=str)
def test_a_token_of_many_is_the_token_alone(case: Heads) -> None:
    """What makes answers the same however a prompt is cut, and drafted tokens those of single steps."""
    feed, session = case.inputs(), case.session()
    together = session.run(None, feed)
    for start, end in ((0, 1), (1, case.tokens // 2 + 1), (case.tokens // 2 + 1, case.tokens)):
        for row in range(case.batch):
            some = {name: part[row : row + 1, start:end] if name in BY_TOKEN else part for name, part in feed.items()}
            for made, whole in zip(session.run(None, some), together, strict=True):
                np.testing.assert_array_equal(bits(made), bits(np.ascontiguousarray(whole[row : row + 1, start:end])))


@pytest.mark.parametrize("native", [True, False])
def test_no_tokens(native: bool) -> None:
    made = Heads(4, 2, 16, tokens=0).run(Heads(4, 2, 16, tokens=0).inputs(), native=native)
    assert [part.shape for part in made] == [(1, 0, 64), (1, 0, 32)]


RIGHT = Heads(4, 2, 16, batch=2, tokens=3)
FLOATS = np.ones(512, np.float32)


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("query", FLOATS[:256].reshape(4, 64), "the input query has the shape [4, 64], expected [any, any, 64]"),
        ("query", FLOATS[:384].reshape(2, 3, 64)[..., :63], "query has the shape [2, 3, 63], expected [any, any, 64]"),
        ("key", FLOATS[:128].reshape(2, 2, 32), "the input key has the shape [2, 2, 32], expected [2, 3, 32]"),
        ("key", FLOATS[:384].reshape(2, 3, 64), "the input key has the shape [2, 3, 64], expected [2, 3, 32]"),
        ("query_weight", FLOATS[:0], "0 of a head's 0 values are turned, expected an even number that it has"),
        ("query_weight", FLOATS[:15], "15 of a head's 15 values are turned, expected an even number that it has"),
        ("query_weight", FLOATS[:16].reshape(1, 16), "query_weight has the shape [1, 16], expected [any]"),
        ("key_weight", FLOATS[:18], "the input key_weight has the shape [18], expected [16]"),
        ("positions", np.zeros((1, 6), np.int64), "the input positions has the shape [1, 6], expected [2, 3]"),
        ("positions", np.full((2, 3), 6), "a token has the position 6, of the 6 of the inputs cos and sin"),
        ("positions", np.full((2, 3), -1), "a token has the position -1, of the 6 of the inputs cos and sin"),
        ("positions", np.full((2, 3), 2**62), "a token has the position 4611686018427387904, of the 6 of the inputs"),
        ("cos", FLOATS[:96].reshape(6, 16), "the input cos has the shape [6, 16], expected [any, 8]"),
        ("cos", FLOATS[:32].reshape(4, 8), "the input sin has the shape [6, 8], expected [4, 8]"),
        ("sin", FLOATS[:40].reshape(5, 8), "the input sin has the shape [5, 8], expected [6, 8]"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(name: str, part: Array, expected: str) -> None:
    with pytest.raises(Exception, match="NormRotary: ") as caught:
        RIGHT.run({**RIGHT.inputs(), name: np.ascontiguousarray(part)})
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Heads(0, 2, 16), "num_heads is 0, expected 1 to 16384"),
        (Heads(4, 1 << 40, 16), "kv_num_heads is 1099511627776, expected 1 to 16384"),
        (Heads(4, 2, 16, turned=-2), "rotary_embedding_dim is -2, expected 0 to 16384"),
        (Heads(4, 2, 16, turned=7), "7 of a head's 16 values are turned, expected an even number that it has"),
        (Heads(4, 2, 16, turned=18), "18 of a head's 16 values are turned, expected an even number that it has"),
        (Heads(4, 2, 16, turned=8), "the input cos has the shape [6, 8], expected [any, 4]"),
        (Heads(4, 2, 16, epsilon=-1e-6), "epsilon is -1e-06, expected 0 to 1"),
        (Heads(4, 2, 16, epsilon=float("nan")), "epsilon is nan, expected 0 to 1"),
    ],
)
def test_an_attribute_that_does_not_fit_is_refused(case: Heads, expected: str) -> None:
    with pytest.raises(Exception, match="NormRotary: ") as caught:
        case.run(RIGHT.inputs())
    assert expected in str(caught.value)
