"""Attention over a cache of float16 or int8: next to float64, the same bits however it is cut, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
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

NEW = ("query", "key", "value")
CACHES = ("past_key", "past_value")
SCALES = ("key_scales", "value_scales")
FLOAT, INT8, INT32, FLOAT16 = 1, 3, 6, 10  # types of ONNX


@dataclass(frozen=True)
class Attention:
    """Random inputs of one call; `capacity` rows of each cache are filled, of which `past` count."""

    heads: int
    kv_heads: int
    width: int
    queries: int
    past: tuple[int, ...]
    capacity: int
    int8: bool = False  # else float16

    @property
    def name(self) -> str:
        return "CachedAttentionInt8" if self.int8 else "CachedAttention"

    def inputs(self) -> dict[str, Array]:
        draw, batch = np.random.default_rng(self.queries + self.width), len(self.past)
        shapes: list[tuple[int, ...]] = [
            (batch, self.queries, heads * self.width) for heads in (self.heads, self.kv_heads, self.kv_heads)
        ]
        kept = (batch, self.kv_heads, self.capacity, self.width)
        made: dict[str, Array] = {
            name: draw.normal(size=shape).astype(np.float32) for name, shape in zip(NEW, shapes, strict=True)
        }
        for name in CACHES:
            made[name] = draw.integers(-128, 128, kept).astype(np.int8) if self.int8 else draw.normal(size=kept)
            made[name] = made[name].astype(np.int8 if self.int8 else np.float16)
        made["past_lengths"] = np.array(self.past, np.int32)
        for name in SCALES if self.int8 else ():
            made[name] = draw.uniform(0.01, 0.03, (1, self.kv_heads, 1, self.width)).astype(np.float32)
        return made

    def kept(self, feed: dict[str, Array], index: int) -> Array:
        """The new keys (0) or values (1) as the cache holds them, [batch, kv_heads, queries, width]."""
        rows = feed[NEW[1 + index]].reshape(-1, self.queries, self.kv_heads, self.width).transpose(0, 2, 1, 3)
        if not self.int8:
            return rows.astype(np.float16)
        return np.clip(np.rint(rows / feed[SCALES[index]]), -128, 127).astype(np.int8)

    def session(self, *, native: bool = True, threads: int = 2) -> ort.InferenceSession:
        cached = INT8 if self.int8 else FLOAT16
        given = dict.fromkeys(NEW, FLOAT) | dict.fromkeys(CACHES, cached) | {"past_lengths": INT32}
        given |= dict.fromkeys(SCALES, FLOAT) if self.int8 else {}
        made = {"output": FLOAT, "present_key": cached, "present_value": cached}
        node = helper.make_node(self.name, [*given], [*made], domain=DOMAIN, num_heads=self.heads,
                           kv_num_heads=self.kv_heads)  # fmt: skip
        return open_session(node, given, made, native=native, threads=threads)

    def run(self, feed: dict[str, Array], **options: Any) -> list[Array]:
        made: list[Array] = self.session(**options).run(None, feed)
        return made

    def expected(self, feed: dict[str, Array]) -> Array:
        case = Case(self.name, (self.heads, self.kv_heads), tuple(map(Tensor.of, feed.values())))
        return expected(case)[0].reshape(feed["query"].shape)


# Head sizes and groups of real models, few and many rows, one range of keys and several, a cache that is full.
SOME = [
    Attention(4, 2, 64, 1, (5,), 70),
    Attention(8, 1, 80, 1, (1200,), 1300),
    Attention(16, 8, 128, 70, (611,), 900),
    Attention(6, 2, 96, 130, (0,), 130),
    Attention(2, 2, 256, 60, (700,), 760),
    Attention(7, 1, 32, 3, (1999,), 2002),
    Attention(12, 4, 128, 2, (513,), 520),
    Attention(5, 1, 16, 1, (900,), 901),
]
SOME += [replace(case, int8=True) for case in SOME]


@pytest.fixture(autouse=True)
def kernel() -> None:
    need("CachedAttention")
    need("CachedAttentionInt8")


@pytest.mark.parametrize("case", SOME, ids=str)
def test_it_is_what_float64_says_in_the_kernel_and_in_the_function(case: Attention) -> None:
    feed = case.inputs()
    wanted = case.expected(feed)
    for native in (True, False):
        output, *present = case.run(feed, native=native)
        np.testing.assert_allclose(output, wanted, rtol=0, atol=5e-6)
        past = case.past[0]
        for index, (made, cache) in enumerate(zip(present, CACHES, strict=True)):
            kept, end = feed[cache].copy(), past + case.queries
            kept[0, :, past:end] = case.kept(feed, index)[0]
            if case.int8 and not native:  # ONNX Runtime's attention clears what lies behind
                kept[:, :, end:] = made[:, :, end:]
            np.testing.assert_array_equal(made, kept)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_threads_and_instruction_sets_change_no_bit(case: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = case.inputs()
    wanted = bits(case.run(feed)[0])
    for threads in (1, 3):
        np.testing.assert_array_equal(bits(case.run(feed, threads=threads)[0]), wanted)
    for name in sets_here(monkeypatch):
        np.testing.assert_array_equal(bits(case.run(feed)[0]), wanted, err_msg=name)


@pytest.mark.parametrize("case", [case for case in SOME if case.queries > 1], ids=str)
def test_a_row_of_many_is_the_row_alone(case: Attention) -> None:
    """What makes answers the same however a prompt is cut, and drafted tokens those of single steps."""
    feed, session = case.inputs(), case.session()
    together = case.run(feed)[0]
    caches = {name: feed[name] for name in CACHES}
    scales = {name: feed[name] for name in SCALES if name in feed}
    for start, end in ((0, 1), (1, case.queries // 2 + 1), (case.queries // 2 + 1, case.queries)):
        some = {name: feed[name][:, start:end] for name in NEW}
        some |= {**caches, **scales, "past_lengths": feed["past_lengths"] + start}
        if start < end:
            output, *kept = session.run(None, some)
            caches = dict(zip(caches, kept, strict=True))
            np.testing.assert_array_equal(bits(output), bits(np.ascontiguousarray(together[:, start:end])))


@pytest.mark.parametrize("int8", [False, True])
def test_rows_of_a_batch_have_lengths_of_their_own(int8: bool) -> None:
    case = Attention(4, 2, 32, 9, (600, 17, 0), 700, int8)
    feed = case.inputs()
    np.testing.assert_allclose(case.run(feed)[0], case.expected(feed), rtol=0, atol=5e-6)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("native", [True, False])
def test_caches_change_in_place(native: bool, int8: bool) -> None:
    case = Attention(4, 2, 64, 3, (20,), 40, int8)
    feed, binding = case.inputs(), (session := case.session(native=native)).io_binding()
    caches = {name: feed.pop(name) for name in CACHES}
    before = {name: cache.copy() for name, cache in caches.items()}
    buffers = {name: ort.OrtValue.ortvalue_from_numpy(cache) for name, cache in caches.items()}
    binding.bind_output("output")
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for name, buffer in buffers.items():
        binding.bind_ortvalue_input(name, buffer)
        binding.bind_ortvalue_output(name.replace("past", "present"), buffer)
    session.run_with_iobinding(binding)
    wanted = case.run(case.inputs())
    np.testing.assert_allclose(binding.get_outputs()[0].numpy(), wanted[0], rtol=0, atol=5e-6)
    for name, present in zip(caches, wanted[1:], strict=True):
        np.testing.assert_array_equal(buffers[name].numpy(), present)
        assert (caches[name][:, :, 20:23] != before[name][:, :, 20:23]).any()


@pytest.mark.parametrize("native", [True, False])
def test_what_float16_cannot_hold_is_its_largest(native: bool) -> None:
    case = Attention(2, 1, 16, 2, (0,), 2)
    feed = case.inputs()
    feed["value"][0, 0, :4] = [1e5, -1e9, 3e38, 65504]
    output, _, values = case.run(feed, native=native)
    np.testing.assert_array_equal(values[0, 0, 0, :4], np.array([65504, -65504, 65504, 65504], np.float16))
    np.testing.assert_allclose(output[0, 0, :4], [65504, -65504, 65504, 65504], rtol=1e-6)


def test_a_cache_without_room_is_refused() -> None:
    case = Attention(2, 1, 16, 2, (9,), 10)
    with pytest.raises(Exception, match="CachedAttention: the cache has room for 10 keys, not for 9 and 2 new ones"):
        case.run(case.inputs())
