"""An export fails for graphs or weights that are not the checkpoint's, however coarse the bundle's rounding is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from lensmith.calibration.solvers.kv_scales import kv_scales
from lensmith.exporters.checkpoint.lazy_tensors import ComputedTensor, LazyTensor
from lensmith.exporters.evidence import recording, written_weights
from lensmith.exporters.evidence.float_twin import float_job
from lensmith.exporters.evidence.golden_media import CLIP, sources
from lensmith.exporters.evidence.proof import LEAST, exactness
from lensmith.exporters.formats.gguf import gguf_writing
from lensmith.exporters.formats.gguf import tensors as gguf_tensors
from lensmith.exporters.formats.gguf.written_tensors import check_files
from lensmith.exporters.formats.onnx import ort
from lensmith.exporters.graphs import decoder, rope
from lensmith.exporters.graphs.blocks import SourceTensor
from lensmith.exporters.graphs.dialect import Cache
from lensmith.exporters.graphs.kv_cache import KvCache, KvScales
from lensmith.exporters.graphs.matrices import Matrix
from lensmith.exporters.job import Calibrated
from lensmith.exporters.pipeline import (
    Job,
    Options,
    export,
    prepare,
)
from lensmith.exporters.spec import ModelSpec
from lensmith.exporters.storage.scheme import Scheme
from lensmith.runtimes import Model, user_message
from lensmith.runtimes.bundle.opening import Bundle, open_bundle
from lensmith.runtimes.evidence.replay import (
    EXACT,
    LLAMA_CPP,
    Exactness,
    Row,
    judged,
)
from lensmith.runtimes.evidence.traces import Traces, read_traces
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.generation.loading import load
from lensmith.targets.errors import CheckFailed, InputError

from tests.helpers import ladder
from tests.helpers.extras import latest
from tests.paths import TINY

CONTEXTS = {"qwen3_vl": 200, "qwen3_5": 200, "llava": 400}  # which hold one or two of the conversations
GGUF: dict[str, Any] = {"format": "gguf", "precision": "f16"}
Break = Callable[[pytest.MonkeyPatch, Job], None]
Recorded = Callable[[str], Traces]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """PyTorch's traces of each model, made once."""

    @cache
    def make(name: str) -> Traces:
        ladder.need_torch()
        out = tmp_path_factory.mktemp("traces") / name
        return read_traces(export(prepare(TINY / name, Options(context=CONTEXTS[name], precision="fp32")), out))

    return make


def build(
    recorded: Recorded,
    out: Path,
    name: str,
    broken: Callable[[Job], None] = lambda _: None,
    scales: KvScales | None = None,
    **options: Any,
) -> Bundle:
    """Export with traces that were recorded before."""
    job = prepare(TINY / name, Options(context=CONTEXTS[name], **options), kv_scales=scales)
    traces = recorded(name)
    broken(job)

    def record(checkpoint: Any, spec: Any, writer: Any, manifest: Mapping[str, Any], **_: Any) -> Traces:
        return recording.write(traces, writer, {n: s for n, s in sources().items() if n != CLIP or "video" in manifest})

    return export(replace(job, family=replace(job.family, record=record)), out, golden="always")


def computed(tensor: LazyTensor, change: Callable[[Any], Any]) -> LazyTensor:
    """A tensor with other values."""
    made = change(tensor.numpy())
    return ComputedTensor(tensor.name, tensor.shape, "F32", (), lambda start, stop: made[start:stop])


def named(job: Job, ending: str) -> str:
    return next(name for name in job.checkpoint.tensors if name.endswith(ending))


def with_tensors(job: Job, changed: Mapping[str, LazyTensor]) -> None:
    object.__setattr__(job.checkpoint, "tensors", {**job.checkpoint.tensors, **changed})  # this job's own


def values(ending: str, change: Callable[[Any], Any]) -> Break:
    """Change what the exporter reads of one tensor; PyTorch read the right one."""

    def apply(_: pytest.MonkeyPatch, job: Job) -> None:
        name = named(job, ending)
        with_tensors(job, {name: computed(job.checkpoint.tensors[name], change)})

    return apply


def swapped(ending: str, other: str) -> Break:
    """Exchange two tensors."""

    def apply(_: pytest.MonkeyPatch, job: Job) -> None:
        tensors, names = job.checkpoint.tensors, (named(job, ending), named(job, other))
        pair = [tensors[name] for name in names]
        with_tensors(job, {name: tensor.renamed(name) for name, tensor in zip(names, reversed(pair), strict=True)})

    return apply


def activation(kind: str, other: str) -> Break:
    return lambda patch, _: patch.setitem(ort._ACTIVATIONS, kind, ort._ACTIVATIONS[other])


def _nearly(rows: Any) -> Any:
    """Ones, but for one value that is off by a hundredth."""
    return np.where(np.arange(len(rows)) == 1, np.float32(1.01), np.float32(1))


def theta(patch: pytest.MonkeyPatch, _: Job) -> None:
    real = rope.inverse_frequencies
    patch.setattr(decoder, "inverse_frequencies", lambda size, base, scaling: real(size, 1.01 * base, scaling))


FIRST, VISION = "decoder: logits at step 0", "vision_encoder: image_features"
DEEPSTACK = [f"deepstack_merger_list.{tap}.linear_fc1.weight" for tap in (0, 1)]
HEAD = "mtp.pre_fc_norm_embedding.weight", "mtp.pre_fc_norm_hidden.weight"
QUERIES = [f"layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
GRAPHS: dict[str, tuple[str, Break, str]] = {
    "table negated": ("qwen3_vl", values("embed_tokens.weight", np.negative), FIRST),
    "layers swapped": ("qwen3_vl", swapped(*QUERIES), FIRST),
    "DeepStack taps swapped": ("qwen3_vl", swapped(*DEEPSTACK), "deepstack_features[0]"),
    "a bias dropped": ("qwen3_vl", values("blocks.0.attn.qkv.bias", np.zeros_like), "vision_encoder"),
    "a gate permuted": ("qwen3_5", values("mlp.gate_proj.weight", lambda rows: rows[::-1]), FIRST),
    "delta gates": ("qwen3_5", values("linear_attn.dt_bias", lambda rows: rows + np.float32(0.1)), FIRST),
    "norms of the draft head swapped": ("qwen3_5", swapped(*HEAD), "mtp: logits at step 1 (text only)"),
    "one value of a norm": ("llava", values("model.norm.weight", lambda rows: rows * _nearly(rows)), FIRST),
    "a norm by little": ("qwen3_vl", values("model.norm.weight", lambda rows: rows * np.float32(1.00006)), FIRST),
    "a square matrix transposed": ("llava", values("layers.0.self_attn.q_proj.weight", np.transpose), FIRST),
    "GELU of CLIP": ("llava", activation("quick_gelu", "gelu"), VISION),
    "GELU of the Qwen encoder": ("qwen3_5", activation("gelu_tanh", "gelu"), VISION),
    "rotary base": ("qwen3_5", theta, FIRST),
}


@pytest.mark.parametrize("what", GRAPHS)
def test_a_wrong_graph_or_weight_fails_an_int4_export(
    recorded: Recorded, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, broken, where = GRAPHS[what]
    out = tmp_path / "bundle"
    recorded(name)
    with pytest.raises(CheckFailed, match="do not compute what PyTorch does") as failed:
        build(recorded, out, name, lambda job: broken(monkeypatch, job))
    assert where in str(failed.value)
    assert not [*tmp_path.iterdir()]  # nothing half made either


def _store(change: Callable[[list[Any]], list[Any]]) -> Break:
    """Change what is stored of each quantized matrix in small groups."""

    def apply(patch: pytest.MonkeyPatch, _: Job) -> None:
        real = Matrix.store
        patch.setattr(
            Matrix, "store", lambda self, made: change(real(self, made)) if self.groups > 1 else real(self, made)
        )

    return apply


def moved(parts: list[Any]) -> list[Any]:
    """One integer of the first row by one step."""
    parts[0].reshape(-1)[0] ^= 1
    return parts


def rows_swapped(parts: list[Any]) -> list[Any]:
    return [part[[1, 0, *range(2, len(part))]] for part in parts]


def points_moved(parts: list[Any]) -> list[Any]:
    return [*parts[:2], *(part ^ 1 for part in parts[2:])]


WEIGHTS: dict[str, tuple[Break, dict[str, Any]]] = {
    "one integer": (_store(moved), {"precision": "int4"}),
    "two rows": (_store(rows_swapped), {"precision": "int2", "group_size": 32}),
    "one scale": (_store(lambda parts: [parts[0], _scaled(parts[1]), *parts[2:]]), {"precision": "int8"}),
    "signs": (_store(lambda parts: [parts[0], -parts[1], *parts[2:]]), {"precision": "int3"}),
    "zero points": (_store(points_moved), {"precision": "int4", "symmetric": False}),
}


def _scaled(scales: Any) -> Any:
    scales = scales.copy()
    scales.reshape(-1)[-1] *= np.float16(1.05)
    return scales


@pytest.mark.parametrize("what", WEIGHTS)
def test_a_wrongly_stored_tensor_fails_the_export(
    recorded: Recorded, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, options = WEIGHTS[what]
    with pytest.raises(CheckFailed, match=r"weights are not the checkpoint's: row \d+ of model\.") as failed:
        build(recorded, tmp_path / "bundle", "qwen3_vl", lambda job: broken(monkeypatch, job), **options)
    assert "rounding" in str(failed.value)


def test_a_wrongly_wired_product_fails_the_export(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the quantized graph alone: its weights are right, and so is the float graph."""
    real = ort.OrtDialect.matmul

    def half(self: Any, op: Any, x: Any, weight: Matrix, bias: Any) -> Any:
        y = real(self, op, x, weight, bias)
        return y if weight.scheme.bits > 4 else op.Mul(y, op.Constant(value_float=0.8))

    recorded("qwen3_vl")
    monkeypatch.setattr(ort.OrtDialect, "matmul", half)
    with pytest.raises(CheckFailed, match="do not compute what their rounded weights stand for"):
        build(recorded, tmp_path / "bundle", "qwen3_vl", precision="int4")


@pytest.fixture(scope="module")
def scales(tmp_path_factory: pytest.TempPathFactory) -> KvScales:
    """Of the keys and values that one question makes."""
    job = prepare(TINY / "qwen3_vl", Options(precision="fp32", context=200))
    assert isinstance(job.spec, ModelSpec)
    model = load(export(job, tmp_path_factory.mktemp("scales") / "floats", golden="never").path, threads=1)
    assert isinstance(model, Model)
    model.prefill(model.prepare([user_message("Name three colours. Nenne drei Farben: rot, grün …")]), reuse=False)
    return kv_scales([latest(model).states.cached(latest(model).length)], job.spec.decoder.rotated)


def test_rounded_keys_and_values_are_told_from_wrong_ones(
    recorded: Recorded, scales: KvScales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(out: str, broken: Callable[[Job], None] = lambda _: None) -> Bundle:
        return build(recorded, tmp_path / out, "qwen3_vl", broken, scales, precision="fp32", kv_cache="int8")

    assert verify(rounded("good").path, native=False, threads=1).passed
    real, of = ort.OrtDialect.cached_attention, KvCache.of

    def off(self: Any, op: Any, q: Any, k: Any, v: Any, cache: Cache, *heads: Any) -> Any:
        scaled = k if cache.scales is None else op.Mul(k, op.Constant(value_float=1.02))
        return real(self, op, q, scaled, v, cache, *heads)

    with monkeypatch.context() as patch:
        patch.setattr(ort.OrtDialect, "cached_attention", off)
        with pytest.raises(CheckFailed, match="do not compute what their rounded weights stand for"):
            rounded("keys")
    wrong: list[Callable[[Any], Any]] = [
        lambda pair: pair[::-1],
        lambda pair: tuple(each[::-1].copy() for each in pair),
        lambda pair: (pair[0] * np.float32(1.001), pair[1]),
    ]
    for change in wrong:

        def changed(self: KvCache, *about: Any, change: Any = change) -> Any:
            pair = of(self, *about)
            return None if pair is None else change(pair)

        monkeypatch.setattr(KvCache, "of", changed)
        with pytest.raises(CheckFailed, match="KV cache is not scaled as calibration found: layer 0"):
            rounded("scales")


def gguf_rows_swapped(patch: pytest.MonkeyPatch, _: Job) -> None:
    """In the file alone, not in its twin of floats."""
    real = gguf_tensors._encode

    def encode(block: Any, stored: Any, name: str) -> bytes:
        swap = stored == gguf.GGMLQuantizationType.F16 and name == "blk.1.ffn_up.weight"
        return real(block[[1, 0, *range(2, len(block))]] if swap else block, stored, name)

    patch.setattr(gguf_tensors, "_encode", encode)


OTHERS: dict[str, tuple[Break, dict[str, Any], str]] = {
    "a float bundle": (swapped(*QUERIES), {"precision": "fp32"}, "do not compute what PyTorch does"),
    "a tensor of a GGUF file": (gguf_rows_swapped, GGUF, "blk.1.ffn_up.weight is off in some rows"),
    "names of a GGUF file": (swapped(*QUERIES), GGUF, "do not compute what PyTorch does"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_float_bundles_and_gguf_files_are_proven(
    recorded: Recorded, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, options, words = OTHERS[what]
    with pytest.raises(CheckFailed, match=words):
        build(recorded, tmp_path / "bundle", "llava", lambda job: broken(monkeypatch, job), **options)


def test_an_existing_bundle_stays(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bundle"
    before = build(recorded, out, "llava", precision="int4")
    broken = GRAPHS["GELU of CLIP"][1]
    job = prepare(TINY / "llava", Options(context=CONTEXTS["llava"]))
    broken(monkeypatch, job)
    with pytest.raises(CheckFailed):
        export(job, out, golden="always", force=True)
    assert open_bundle(out, check="sha256").content == before.content
    assert [*tmp_path.iterdir()] == [out]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 128])
def test_rounding_is_allowed_and_a_step_more_is_not(bits: int, symmetric: bool, group: int) -> None:
    rows = np.random.default_rng(bits).normal(0, 0.02, (16, 128)).astype(np.float32)
    matrix = Matrix(16, 128, Scheme(bits, group, symmetric))
    stored = matrix.pack(rows)
    source = SourceTensor("w", tuple(matrix.parameters(recurse=False)), matrix)
    found = matrix.unpack(stored)
    near = partial(written_weights._near, expected=rows, source=source, stored=stored)
    assert near(found).all()
    steps = written_weights._steps(rows, matrix.scheme)
    wrong = found.copy()
    wrong[3, 5] += 1.6 * steps[3, 5]
    assert near(wrong).tolist() == [row != 3 for row in range(16)]
    assert like(found, rows)
    for other in (found[::-1], -found, np.zeros_like(found), np.roll(found, 1, axis=1), np.full_like(found, np.nan)):
        assert not like(other, rows)


@pytest.mark.parametrize(
    ("scheme", "within", "over"),
    [({"bits": 16}, 0.9 * 2**-11, 1.2 * 2**-11), ({"bits": 32}, 0.0, 2**-20), ({"float8": True}, 1 / 16, 1 / 13)],
)
def test_floats_are_rounded_by_their_mantissa(scheme: dict[str, Any], within: float, over: float) -> None:
    known = SimpleNamespace(**{"bits": 8, "float8": False, "quantized": "float8" in scheme, **scheme})
    source: Any = SimpleNamespace(matrix=SimpleNamespace(scheme=known))
    rows = np.full((3, 4), 0.5, np.float32)
    for off, right in ((within, True), (over, False)):
        found = rows * np.array([[1], [1 + off], [1]], np.float32)
        assert written_weights._near(found, rows, source, [rows]).tolist() == [True, right, True]


def like(found: Any, expected: Any) -> bool:
    likeness = written_weights.Likeness()
    for half in (slice(0, 5), slice(5, None)):
        likeness.add(found[half], expected[half])
    return likeness.near


def test_calibrated_weights_are_those_of_calibration_and_of_the_same_tensor(tmp_path: Path) -> None:
    """With few samples a row of 2 bits may be turned around, which is no mistake."""
    job = prepare(TINY / "qwen3_vl", Options(precision="int2"))
    name = named(job, "layers.1.mlp.down_proj.weight")
    source = next(s for graph in job.graphs for s in graph.sources if s.name == name)
    assert source.matrix is not None
    rows = job.checkpoint.tensors[name].numpy().copy()
    rows[7] *= -1
    turned, mirrored = source.matrix.pack(rows), source.matrix.pack(np.ascontiguousarray(rows[:, ::-1]))

    def calibrated(made: list[Any]) -> Job:
        def parts(asked: SourceTensor, _: LazyTensor) -> list[Any] | None:
            return made if asked.name == name else None

        def floats(asked: SourceTensor, tensor: LazyTensor) -> list[Any] | None:
            return asked.pack(tensor.numpy()) if asked.name == name else None

        return replace(job, calibrated=Calibrated(parts=parts, floats=floats, key="some"))

    good, swapped_ = calibrated(turned), calibrated(mirrored)
    folder = export(good, tmp_path / "good", golden="never").path
    written_weights.check_written(good, float_job(good), folder)
    other = calibrated([turned[0] ^ (np.arange(len(turned[0])) == 9).astype(np.uint8)[:, None], *turned[1:]])
    with pytest.raises(CheckFailed, match=f"row 9 of {name}"):
        written_weights.check_written(other, float_job(other), folder)
    folder = export(swapped_, tmp_path / "mirrored", golden="never").path
    with pytest.raises(CheckFailed, match=f"{name} is off"):
        written_weights.check_written(swapped_, float_job(swapped_), folder)


def test_judgement_of_rows() -> None:
    def passes(figure: str, value: float, limits: Exactness | None) -> bool:
        return judged(Row("case", "output", figure, value), limits).passed

    assert passes("logits_error", 0.9e-4, EXACT)
    assert not passes("logits_error", 1.1e-4, EXACT)
    assert passes("logits_error", 1.1e-4, LLAMA_CPP)
    assert passes("step_logits_kl", 0.9e-6, EXACT)
    assert not passes("step_logits_kl", 1.1e-6, EXACT)
    assert not passes("logits_kl", float("nan"), EXACT)
    assert passes("greedy_agreement", 1.0, EXACT)
    assert not passes("greedy_agreement", 0.99, EXACT)
    assert not passes("top1_agreement", 0.0, LLAMA_CPP)
    assert passes("greedy_agreement", 0.1, None)
    for limits in (EXACT, None):
        assert not passes("token_ids_differ", 1.0, limits)
        assert passes("patches_differ", 0.0, limits)


def test_limits_follow_from_the_least_noise() -> None:
    assert exactness(0.0).error == LEAST
    assert exactness(1.0) == EXACT
    few = exactness(5e-6)
    assert few.error == pytest.approx(4e-5)
    assert few.kl == pytest.approx(0.16 * EXACT.kl)
    assert few.agreement == EXACT.agreement


def test_bundles_that_run_elsewhere_are_proven_too(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"format": "tensorrt", "target": "jetson-thor", "precision": "int4"}
    bundle = build(recorded, tmp_path / "bundle", "llava", **options)
    assert not (bundle.path / "golden").exists()
    assert bundle.content["evidence"]["golden"]["proven"] == recorded("llava").reference
    with pytest.raises(InputError, match="lensmith build, then compare"):
        verify(bundle)
    with pytest.raises(InputError, match=f"no engines yet.*lensmith build {bundle.path}"):
        load(bundle.path)
    swap = swapped("layers.0.self_attn.q_proj.weight", "layers.1.self_attn.q_proj.weight")
    with pytest.raises(CheckFailed, match="do not compute what PyTorch does"):
        build(recorded, tmp_path / "other", "llava", lambda job: swap(monkeypatch, job), **options)


@pytest.mark.parametrize("precision", ["int4", "int8", "fp8", "fp16"])
def test_weights_of_tensorrt_are_read_back(precision: str, tmp_path: Path) -> None:
    job = prepare(TINY / "llava", Options(format="tensorrt", target="jetson-thor", precision=precision))
    bundle, floats = export(job, tmp_path / "bundle", golden="never"), float_job(job)
    written_weights.check_written(job, floats, bundle.path)
    other = replace(floats, checkpoint=copy.copy(floats.checkpoint))
    values("layers.1.mlp.up_proj.weight", lambda rows: rows[:, ::-1])(pytest.MonkeyPatch(), other)
    for every in (1, written_weights.SAMPLE):
        with pytest.raises(CheckFailed, match="up_proj"):
            written_weights.check_written(replace(job, checkpoint=other.checkpoint), floats, bundle.path, every=every)


@pytest.mark.parametrize("rows", [1, 2, 9, 1000])
def test_samples_of_rows_reach_from_the_first_to_the_last(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_weights, "BLOCK_ELEMENTS", 80)  # 10 rows, of samples 1

    def sampled(name: str, every: int) -> list[int]:
        return [row for block in written_weights._blocks(name, (rows, 4, 2), every) for row in range(*block)]

    assert sampled("a", 1) == [*range(rows)]
    found = sampled("a", 8)
    assert found == sampled("a", 8) == sorted({*found})
    assert found[0] == 0
    assert found[-1] == rows - 1
    inner = [row for row in found if 0 < row < rows - 1]
    assert all(any(row // 8 == part for row in found) for part in range(-(-rows // 8)))  # one of each eight
    assert len(inner) <= -(-rows // 8)
    assert rows < 100 or (len({row % 8 for row in inner}) == 8 and found != sampled("b", 8))


def test_tensors_of_gguf_files_are_compared(tmp_path: Path) -> None:
    job = prepare(TINY / "llava", Options(format="gguf", precision="f16"))
    plain, stored = tmp_path / "plain", tmp_path / "stored"
    for folder, each in ((plain, float_job(job)), (stored, job)):
        folder.mkdir()
        gguf_writing.write_plain(each, folder)
    check_files(plain, stored)
    name = "blk.1.ffn_up.weight"
    data: Any = next(t for t in gguf.GGUFReader(stored / "model.gguf", "r+").tensors if t.name == name).data
    data[[0, 1]] = data[[1, 0]]
    with pytest.raises(CheckFailed, match=name):
        check_files(plain, stored)
