"""Factors that move from the inputs of matrices into what makes these inputs leave a model as it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lensmith.calibration.layerwise.layer_pass import _existing
from lensmith.calibration.layerwise.smoothed_pairs import Smoothing, smoothings
from lensmith.calibration.layerwise.stage_quantizer import _divide_producers
from lensmith.calibration.layerwise.store import CalibratedTensor, Store
from lensmith.exporters.spec import DecoderSpec
from lensmith.runtimes.evidence.replay import relative_error

from tests.helpers.layered import FAMILIES, Bench, Floats, whole_float

# Factors from 1/4 to 4 round each weight and each norm once more, 6e-8 each, and all layers add up; measured are 1e-5.
FOLDED = 1e-4

all_families = pytest.mark.parametrize("bench", FAMILIES, indirect=True)


def existing(bench: Bench) -> list[Smoothing]:
    there = bench.model.checkpoint.tensors
    found = smoothings(bench.model.spec.decoder, bench.prefix)
    return [_existing(each, bench.model) for each in found if all(name in there for name in each.consumers)]


def draw_factors(smoothing: Smoothing, columns: int, draw: np.random.Generator) -> Floats:
    """Factors from 1/4 to 4, the same where a row of the producer makes several inputs."""
    factors = np.exp2(draw.uniform(-2, 2, columns)).astype(np.float32)
    return factors if smoothing.tied is None else factors[smoothing.tied]


def fold(bench: Bench, store: Store) -> None:
    draw = np.random.default_rng(0)
    for smoothing in existing(bench):
        columns = bench.model.checkpoint.tensor(smoothing.consumers[0]).shape[1]
        factors = draw_factors(smoothing, columns, draw)
        for name in smoothing.consumers:
            store.put(name, CalibratedTensor(columns=factors))
        _divide_producers(smoothing, factors, store)


@all_families
def test_folded_factors_leave_logits_as_they_are(bench: Bench, tmp_path: Path) -> None:
    store, samples = Store(tmp_path / "store"), bench.samples.calibrated
    fold(bench, store)
    plain = whole_float(bench, tmp_path / "plain").logits(bench, samples)
    folded = whole_float(bench, tmp_path / "folded", store).logits(bench, samples)
    for ours, theirs in zip(folded, plain, strict=True):
        assert 0 < relative_error(ours, theirs) < FOLDED  # and the weights were changed


@pytest.mark.parametrize(
    ("bench", "ending"),
    [
        ("llava of qwen2", "self_attn.v_proj.bias"),
        ("llava of qwen2", "mlp.up_proj.weight"),
        ("nemotron", "linear_attn.in_proj_a.weight"),
        ("tarn", "1.input_layernorm.weight"),
        ("qwen3_vl", "self_attn.o_proj.weight"),
    ],
    indirect=["bench"],
)
def test_a_tensor_that_is_left_out_of_folding_shows(bench: Bench, ending: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    fold(bench, store)
    for name in bench.model.checkpoint.tensors:
        if name.startswith(bench.prefix) and name.endswith(ending):
            assert store.get(name) is not None
            store.put(name, CalibratedTensor())
    samples = bench.samples.calibrated[:1]
    plain = whole_float(bench, tmp_path / "plain").logits(bench, samples)
    assert relative_error(whole_float(bench, tmp_path / "wrong", store).logits(bench, samples)[0], plain[0]) > 0.01


@all_families
def test_all_inputs_that_can_be_smoothed_are(bench: Bench) -> None:
    consumers = Counter(name for smoothing in existing(bench) for name in smoothing.consumers)
    layers = {p.source.name for stage in bench.model.decoder_stages.stages for p in stage.products}
    gated = {name for name in layers if name.endswith("linear_attn.out_proj.weight")}
    assert set(consumers) == layers - gated
    assert set(consumers.values()) == {1}
    assert bool(gated) == bool(bench.model.spec.decoder.linear_layers)


def test_ties_and_halves_of_heads() -> None:
    """Two heads of queries for each of keys and values; q_proj has a query and a gate for each head in turn."""
    spec = DecoderSpec(1, 8, 4, 2, 2, 8, 8, "silu", 1e4, None, 1e-6, True, 8, output_gate=True)
    attention, out, *_ = smoothings(spec, "m")
    assert out.tied is not None
    np.testing.assert_array_equal(out.tied, [0, 1, 0, 1, 2, 3, 2, 3])
    assert out.producers == ("m.layers.0.self_attn.v_proj.weight", "m.layers.0.self_attn.v_proj.bias")
    query, gate = attention.halves["m.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(query, [0, 1, 4, 5, 8, 9, 12, 13])
    np.testing.assert_array_equal(gate, [2, 3, 6, 7, 10, 11, 14, 15])
