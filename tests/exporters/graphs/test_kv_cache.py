"""Keys and values in 8 bits: their scales, the kernel that reads them, and whole bundles next to the float cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.calibration.calibrated_export import float_model, with_cache_scales
from lensmith.calibration.calibration_options import CalibrationOptions
from lensmith.calibration.layerwise.caches import cache_scales
from lensmith.calibration.layerwise.layer_pass import seen_by
from lensmith.calibration.samples.sample_preparation import open_samples
from lensmith.calibration.solvers.kv_scales import (
    LEVELS,
    channel_scales,
    kv_scales,
    magnitudes,
    rotary_magnitudes,
)
from lensmith.exporters.bundle_manifest import key_of
from lensmith.exporters.formats.functions import add_functions
from lensmith.exporters.formats.onnx.ort import OPSETS, OrtDialect
from lensmith.exporters.graphs.dialect import Cache
from lensmith.exporters.graphs.graph_files import IR_VERSIONS
from lensmith.exporters.graphs.kv_cache import KvScales, Scales
from lensmith.exporters.pipeline import (
    Options,
    export,
    prepare,
)
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.spec import ModelSpec
from lensmith.runtimes import user_message
from lensmith.runtimes.engines.contract import ImageFeatures, Step
from lensmith.runtimes.engines.native import LIBRARY, wanted_instructions
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.prompt.positions import text_positions
from lensmith.targets.errors import InputError
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from tests.helpers.extras import latest, load
from tests.helpers.ladder import need_torch, random_image, step_logits
from tests.helpers.native import need
from tests.paths import TINY

Array = NDArray[Any]
MODELS = ("qwen3_vl", "qwen3_5", "llava")
HEADS, KV_HEADS, WIDTH, CAPACITY = 6, 2, 16, 40
ROUNDED = Options(precision="fp32", kv_cache="int8")
QUESTIONS = ["What is shown?", "What word is written?", "How many shapes are there?", "Which colours do you see?"]


def values(seed: int, tokens: int = 50, size: float = 1.0) -> Array:
    """Keys or values [kv_heads, tokens, head_dim] with an outlier channel and a silent one."""
    drawn = np.random.default_rng(seed).normal(size=(KV_HEADS, tokens, WIDTH)).astype(np.float32) * np.float32(size)
    drawn[..., 3] *= 40
    drawn[..., 5] = 0
    return drawn


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e4), st.floats(1.0, 2.0))
def test_what_calibration_saw_is_within_half_a_step(seed: int, size: float, headroom: float) -> None:
    seen = values(seed, size=size)
    scales = channel_scales(magnitudes(seen), headroom=headroom)[:, None]
    levels = np.clip(np.rint(seen / scales), -128, 127)
    assert np.abs(levels).max() <= LEVELS
    # Half a step; the division and the product round in float32, each by 2^-24 of up to 127 steps.
    assert np.all(np.abs(levels * scales - seen) <= scales * (0.5 + 2 * 127 * 2**-24))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3), st.sampled_from([WIDTH, WIDTH // 2, 0]))
def test_no_position_leaves_the_range_of_keys(seed: int, angle: float, rotated: int) -> None:
    keys = values(seed)
    scales = channel_scales(rotary_magnitudes(keys, rotated), headroom=1.0)[:, None]
    half, turned = rotated // 2, keys.copy()
    first, second = keys[..., :half], keys[..., half:rotated]
    turned[..., :half] = first * np.cos(angle) - second * np.sin(angle)
    turned[..., half:rotated] = first * np.sin(angle) + second * np.cos(angle)
    assert np.abs(turned / scales).max() <= LEVELS * (1 + 1e-5)  # sines and squares in float32


def test_quantiles_and_silent_heads() -> None:
    seen = values(0, tokens=1000)
    seen[0, 0, 0] = 1e3
    assert magnitudes(seen)[0, 0] == 1e3
    assert magnitudes(seen, quantile=0.99)[0, 0] < 5
    assert (channel_scales(np.zeros((2, 4), np.float32)) > 0).all()
    with pytest.raises(ValueError, match="finite"):
        channel_scales(np.array([[np.nan, 1]], np.float32))
    with pytest.raises(ValueError, match="no sample"):
        kv_scales([], 4)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_scales_of_several_samples_hold_for_each(order: tuple[int, ...]) -> None:
    """Whatever the order: the largest of all samples counts, channel by channel, of keys and of values."""
    rotated, samples_, seen = (
        8,
        [],
        [[values(seed, tokens=9 + seed, size=1 + seed) for seed in (i, i + 10)] for i in range(3)],
    )
    for i, (keys, others) in enumerate(seen):
        keys[:, 0, 9 + i], others[:, 1, i] = 100 + i, -50 - i  # each has the largest of one channel
        samples_.append({0: (keys, others), 2: (others, keys)})
    found = kv_scales([samples_[i] for i in order], rotated)
    assert sorted(found) == [0, 2]
    joined = [np.abs(np.concatenate([pair[which] for pair in seen], axis=1)) for which in (0, 1)]
    for layer, (keys, others) in ((0, joined), (2, joined[::-1])):
        length = np.sqrt(keys[..., :4] ** 2 + keys[..., 4:8] ** 2)  # of pairs, which turn into each other
        turned = np.concatenate([length, length, keys[..., 8:]], axis=2)
        for scales, sizes in zip(found[layer], (turned, others), strict=True):
            largest = sizes.max(axis=1)
            silent = largest.max(axis=1, keepdims=True) / 64  # of a head
            np.testing.assert_allclose(scales, 1.25 * np.maximum(largest, silent) / 127, rtol=1e-6)


def test_options_of_scales_reach_keys_and_values() -> None:
    sample = {0: (values(1, tokens=400), values(2, tokens=400))}
    plain = kv_scales([sample], 0, headroom=1.0)[0]
    for made, given_ in zip(plain, sample[0], strict=True):
        np.testing.assert_allclose(made[:, 3], np.abs(given_[..., 3]).max(axis=1) / 127, rtol=1e-6)
    less = kv_scales([sample], 0, headroom=1.0, quantile=0.5)[0]
    assert all((some[:, 3] < 0.5 * whole[:, 3]).all() for some, whole in zip(less, plain, strict=True))


def attention_session(scales: Scales, *, native: bool) -> ort.InferenceSession:
    """One attention operator of the dialect over an int8 cache."""
    shape = [1, KV_HEADS, CAPACITY, WIDTH]
    q, k, v = (value(name, ir.DataType.FLOAT, [1, "seq", heads * WIDTH])
               for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)))  # fmt: skip
    past = [value(f"past_{name}", ir.DataType.INT8, shape) for name in ("key", "value")]
    lengths = value("lengths", ir.DataType.INT32, [1])
    inputs = [q, k, v, *past, lengths]
    builder = GraphBuilder(ir.Graph(inputs, [], nodes=[], opset_imports=dict(OPSETS), name="g"))
    stored = [builder.op.initializer(ir.tensor(s[None, :, None]), name=f"s{i}") for i, s in enumerate(scales)]
    cache = Cache(past[0], past[1], None, None, (stored[0], stored[1]), lengths)
    y, *present = OrtDialect().cached_attention(builder.op, q, k, v, cache, HEADS, KV_HEADS)
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    for name, out in zip(("key", "value"), present, strict=True):
        out.name, out.type, out.shape = name, ir.TensorType(ir.DataType.INT8), ir.Shape(shape)
    builder.graph.outputs.extend([y, *present])
    functions = add_functions(builder.graph)
    made = ir.to_proto(ir.Model(builder.graph, ir_version=IR_VERSIONS[21], functions=functions)).SerializeToString()
    options = ort.SessionOptions()
    if native:
        need("CachedAttentionInt8")
        wanted_instructions(True)
        options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])


def value(name: str, kind: ir.DataType, shape: list[Any]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))


def attend(q: Array, keys: Array, values: Array, past: int) -> Array:
    """Causal attention in float64 of q [seq, heads, head_dim] over keys and values [kv_heads, tokens, head_dim]."""
    out = np.zeros(q.shape)
    for head in range(HEADS):
        own = head * KV_HEADS // HEADS
        for row in range(len(q)):
            scores = keys[own, : past + row + 1] @ q[row, head].astype(np.float64) / np.sqrt(WIDTH)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights / weights.sum() @ values[own, : past + row + 1]
    return out


@pytest.mark.parametrize("native", [True, False], ids=["kernel", "function"])
@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 7), (9, 1), (30, 10)])
def test_attention_reads_what_it_rounded(past: int, new: int, *, native: bool) -> None:
    draw = np.random.default_rng(past + new)
    kept: list[Array] = [draw.integers(-128, 128, (1, KV_HEADS, CAPACITY, WIDTH)).astype(np.int8) for _ in range(2)]
    q, *fresh = (draw.normal(size=(1, new, h * WIDTH)).astype(np.float32) for h in (HEADS, KV_HEADS, KV_HEADS))
    scales = channel_scales(magnitudes(values(1))), channel_scales(magnitudes(values(2)))
    session = attention_session(scales, native=native)
    binding = session.io_binding()
    feed = {"q": q, "k": fresh[0], "v": fresh[1], "lengths": np.array([past], np.int32)}
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y")
    buffers = [ort.OrtValue.ortvalue_from_numpy(array.copy()) for array in kept]
    for name, buffer in zip(("key", "value"), buffers, strict=True):
        binding.bind_ortvalue_input(f"past_{name}", buffer)
        binding.bind_ortvalue_output(name, buffer)
    session.run_with_iobinding(binding)
    expected: list[Array] = []
    for array, x, scale in zip(kept, fresh, scales, strict=True):
        levels = np.rint(x.reshape(new, KV_HEADS, WIDTH).transpose(1, 0, 2) / scale[:, None])
        array[0, :, past : past + new] = np.clip(levels, -128, 127)
        expected.append(array[0].astype(np.float64) * scale[:, None])
    for buffer, array in zip(buffers, kept, strict=True):
        np.testing.assert_array_equal(buffer.numpy(), array)  # in place: the old tokens, and behind the new ones
    found = binding.get_outputs()[0].numpy().reshape(new, HEADS, WIDTH)
    # Float32 sums of a few dozen products.
    np.testing.assert_allclose(found, attend(q.reshape(new, HEADS, WIDTH), expected[0], expected[1], past), rtol=0,
                               atol=1e-5 * np.abs(expected[1]).max())  # fmt: skip


def conversations(seed: int) -> Iterator[list[dict[str, Any]]]:
    """Questions about random pictures, and without one."""
    for index, question in enumerate(QUESTIONS):
        pictures = [random_image(160 + 16 * seed, 128)] * (index % 2)
        yield [user_message(f"{question} {seed}", pictures)]


def samples(model: Model) -> Iterator[Mapping[int, tuple[Array, Array]]]:
    """The caches of a float32 run over some conversations."""
    for seed in (1, 2):
        for messages in conversations(seed):
            model.prefill(model.prepare(messages), reuse=False)
            yield latest(model).states.cached(latest(model).length)


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model, KvScales]:
    """A trained model with a cache in float32, and with one in int8 that other conversations calibrated."""
    folder, source = tmp_path_factory.mktemp(request.param), TINY / request.param
    plain = load(export(prepare(source, replace(ROUNDED, kv_cache="float")), folder / "float", golden="never").path,
                 threads=1, context=1024)  # fmt: skip
    spec = prepare(source, ROUNDED).spec
    assert isinstance(spec, ModelSpec)
    scales = kv_scales(samples(plain), spec.decoder.rotated)
    rounded = export(prepare(source, ROUNDED, kv_scales=scales), folder / "int8", golden="never")
    return plain, load(rounded.path, threads=1, context=1024), scales


def greedy(model: Model, messages: list[dict[str, Any]], count: int) -> list[int]:
    """The tokens of a greedy answer that no end token ends."""
    request = model.prepare(messages)
    ids = [int(model.prefill(request, reuse=False)[-1].argmax())]
    for step in range(count - 1):
        logits = latest(model).run(Step(np.array(ids[-1:]), text_positions(1, request.next_position + step)))
        ids.append(int(logits[-1].argmax()))
    return ids


def test_it_says_what_the_float_cache_says(pair: tuple[Model, Model, KvScales]) -> None:
    divergences, agreed = [], []
    for messages in conversations(0):
        ids = greedy(pair[0], messages, 60)
        for plain, rounded in zip(*(step_logits(model, messages, ids) for model in pair[:2]), strict=True):
            expected, found = (log_probabilities(logits) for logits in (plain, rounded))
            divergences.append(float((np.exp(expected) * (expected - found)).sum()))
            agreed.append(plain.argmax() == rounded.argmax())
    # Measured: 0.00005, 0.00001 and 0.00017 nats, and 240, 239 and 240 of 240 tokens. 4-bit weights cost 0.05 nats.
    assert np.mean(divergences) < 0.002
    assert np.mean(agreed) > 0.97


def log_probabilities(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    found: Array = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    return found


def test_a_second_turn_reuses_the_first(pair: tuple[Model, Model, KvScales]) -> None:
    model, first = pair[1], next(conversations(3))
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A disc."}]}
    turns = [*first, answer, user_message("And what else?")]
    model.prefill(model.prepare(first), reuse=False)
    before = latest(model).length
    reused = model.prefill(model.prepare(turns)).copy()
    fresh = model.prefill(model.prepare(turns), reuse=False)
    assert before > 8
    # Keys and values of the same tokens in other chunks differ by float32 rounding, and now and then by a step of int8.
    assert relative_error(reused, fresh) < 0.05


def test_it_takes_a_quarter_of_the_memory(pair: tuple[Model, Model, KvScales]) -> None:
    plain, rounded, _ = pair
    for wide, narrow in zip(*(latest(model).states.cached(4).items() for model in (plain, rounded)), strict=True):
        assert wide[0] == narrow[0]
        for floats, integers in zip(wide[1], narrow[1], strict=True):
            assert (floats.dtype, integers.dtype) == (np.float32, np.int8)
            assert (floats.shape, floats.nbytes) == (integers.shape, 4 * integers.nbytes)


def test_float16_says_what_float32_says(tmp_path: Path) -> None:
    kinds = ("float", "float16")
    models = [
        load(export(prepare(TINY / "qwen3_vl", replace(ROUNDED, kv_cache=kind)), tmp_path / kind, golden="never").path,
             threads=1, context=1024)
        for kind in kinds
    ]  # fmt: skip
    divergences = []
    for messages in conversations(0):
        ids = greedy(models[0], messages, 60)
        for plain, rounded in zip(*(step_logits(model, messages, ids) for model in models), strict=True):
            expected, found = (log_probabilities(logits) for logits in (plain, rounded))
            divergences.append(float((np.exp(expected) * (expected - found)).sum()))
    assert np.mean(divergences) < 1e-5  # measured: 6e-8
    wide, narrow = (next(iter(latest(model).states.cached(4).values()))[0] for model in models)
    assert (narrow.dtype, wide.nbytes) == (np.float16, 2 * narrow.nbytes)


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_gives_the_same_bits_however_it_is_cut(name: str, tmp_path: Path) -> None:
    """In int4, with lensmith's kernels: none of their sums knows how many tokens a step has."""
    need("CachedAttention")
    made = export(prepare(TINY / name, Options()), tmp_path / name, golden="never")
    assert made.manifest.options.kv_cache == "float16"
    model = load(made.path, threads=1, context=1024)
    request = model.prepare([user_message("Which colours do you see? " * 9, [random_image(160, 128)])])
    whole = model.prefill(request, reuse=False, chunk=10_000).copy()
    for chunk in (64, 7, 1):
        np.testing.assert_array_equal(model.prefill(request, reuse=False, chunk=chunk), whole)


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_needs_no_scales(name: str) -> None:
    plain, rounded = (make_plan(prepare(TINY / name, replace(ROUNDED, kv_cache=kind))) for kind in ("float", "int8"))
    assert rounded.cache_bytes_per_token * 4 == plain.cache_bytes_per_token > 0
    assert rounded.state_bytes == plain.state_bytes
    saved = plain.device_memory_bytes - rounded.device_memory_bytes
    assert saved == pytest.approx(0.75 * plain.cache_bytes_per_token * plain.default_context, rel=0.05)


def test_an_export_without_scales_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--kv-cache int8 needs .* add --calibrate"):
        export(prepare(TINY / "qwen3_vl", ROUNDED), tmp_path / "bundle")
    assert not any(tmp_path.iterdir())
    with pytest.raises(InputError, match="no part of GGUF files"):
        prepare(TINY / "qwen3_vl", replace(ROUNDED, format="gguf", precision="f16"))


def test_scales_that_do_not_fit_are_refused(pair: tuple[Model, Model, KvScales]) -> None:
    source, scales = TINY / pair[0].bundle.content["source"]["name"], dict(pair[2])
    layer, (keys, kept) = next(iter(scales.items()))
    for wrong in (keys[:, 1:], -keys, keys * np.nan):
        with pytest.raises(ValueError, match=f"layer {layer}"):
            prepare(source, ROUNDED, kv_scales={**scales, layer: (wrong, kept)})
    with pytest.raises(ValueError, match="attention layers are"):
        prepare(source, ROUNDED, kv_scales={**scales, 99: (keys, kept)})
    with pytest.raises(InputError, match="did you mean 'int8'"):
        prepare(source, replace(ROUNDED, kv_cache="int4"))


def test_other_scales_are_other_bytes(pair: tuple[Model, Model, KvScales]) -> None:
    """An interrupted export does not go on with a graph that has the scales of another calibration."""
    source = TINY / pair[0].bundle.content["source"]["name"]
    wider = {layer: (keys * 2, kept) for layer, (keys, kept) in pair[2].items()}
    keys = {key_of(prepare(source, ROUNDED, kv_scales=scales)) for scales in (pair[2], wider)}
    assert len(keys) == 2


def test_calibration_sees_the_caches_of_the_runtime(pair: tuple[Model, Model, KvScales], tmp_path: Path) -> None:
    """Layer by layer over samples, as an export does it: the same scales as from the caches of a float32 bundle."""
    plain = pair[0]
    job = prepare(TINY / plain.bundle.content["source"]["name"], ROUNDED)
    samples = open_samples(job, CalibrationOptions(limit=4, answer_tokens=0), tmp_path)
    model = float_model(job, 1)
    features = seen_by(model, samples.calibrated, samples.pictures)

    def caches() -> Iterator[Mapping[int, tuple[Array, Array]]]:
        for sample in samples.calibrated:
            images = ImageFeatures.join([features[key] for key in sample.pictures]) if sample.pictures else None
            latest(plain).rewind(0)
            latest(plain).run(Step(sample.ids, sample.positions, images))
            yield latest(plain).states.cached(latest(plain).length)

    expected = kv_scales(caches(), model.spec.decoder.rotated)
    found = cache_scales(model, samples.calibrated, samples.pictures)
    assert found.keys() == expected.keys()
    for layer, scales in expected.items():
        for mine, theirs in zip(found[layer], scales, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4)  # float32 sums in another order
    assert with_cache_scales(job, found).policy.kv_cache.complete


def test_evidence_holds(pair: tuple[Model, Model, KvScales], tmp_path: Path) -> None:
    need_torch()
    source = TINY / pair[0].bundle.content["source"]["name"]
    bundle = export(prepare(source, ROUNDED, kv_scales=pair[2]), tmp_path / "bundle", golden="always")
    report = verify(bundle)
    assert report.passed
    assert not report.exact
