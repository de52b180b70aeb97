"""Graphs cut into stages compute what they compute whole, on the statistics and the factors that calibration takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.calibration.layerwise import layer_pass as calibrate
from lensmith.calibration.layerwise.candidates import stored, unchanged
from lensmith.calibration.layerwise.judge import _Race
from lensmith.calibration.layerwise.layer_pass import Calibration, PassPlan, gather
from lensmith.calibration.layerwise.prepared_samples import (
    ANSWER,
    BEHIND,
    IMAGE,
    TEXT,
    draft_values,
    keys_of,
)
from lensmith.calibration.layerwise.shares import Shares
from lensmith.calibration.layerwise.stage_quantizer import Matrices, Recipe, quantize_group
from lensmith.calibration.layerwise.stages import Stages, cut
from lensmith.calibration.layerwise.store import Store
from lensmith.calibration.layerwise.streams import SampleStream, Values
from lensmith.exporters.graphs.graph_files import Graph
from lensmith.exporters.storage.scheme import UNQUANTIZED
from lensmith.runtimes.evidence.replay import relative_error

from tests.helpers.layered import FAMILIES, Bench, walk, whole_float

# Relative to the largest magnitude. The whole graph multiplies with weights that were packed for it and fuses across
# stages, so that sums have another order; measured are 8e-6. A state or an image that is missing is off by 0.1.
WHOLE = 3e-5


all_families = pytest.mark.parametrize("bench", FAMILIES, indirect=True)
with_draft_head = pytest.mark.parametrize("bench", ["tarn", "nemotron"], indirect=True)


def graphs(bench: Bench) -> list[Graph]:
    return [graph for graph in (bench.model.vision, bench.model.decoder, bench.model.mtp) if graph is not None]


def names(graph: Graph) -> set[str]:
    return {source.name for source in graph.sources}


def pass_through(bench: Bench, stages: Stages, start: list[Values]) -> list[Values]:
    stream = SampleStream(start)
    for runner in bench.model.runners(stages, {"it": (stream, bench.model.rows)}):
        stream.advance(runner)
    return [*stream.samples]


@all_families
def test_stages_give_what_the_bundle_gives(bench: Bench, tmp_path: Path) -> None:
    whole, samples = whole_float(bench, tmp_path / "bundle"), bench.samples.calibrated
    for key, features in whole.features(bench).items():
        if key in bench.features:
            assert relative_error(bench.features[key].features, features.features) < WHOLE
            assert (features.deepstack is None) == (bench.features[key].deepstack is None)
            ours = bench.features[key].deepstack
            if features.deepstack is not None and ours is not None:
                assert relative_error(ours, features.deepstack) < WHOLE
    head = bench.model.checkpoint.tensor(bench.model.head.name).numpy()
    hidden = walk(bench, samples)
    for states, logits in zip(hidden, whole.logits(bench, samples), strict=True):
        assert len(states) == len(logits)
        assert relative_error(states @ head.T, logits) < WHOLE


@with_draft_head
def test_the_draft_head_gives_what_the_bundle_gives(bench: Bench, tmp_path: Path) -> None:
    model, mtp = bench.model, bench.model.mtp
    assert mtp is not None
    start = bench.questions()
    behind = pass_through(bench, model.decoder_stages, start)
    drafts = [
        draft_values(sample, values, hidden[model.last], mtp)
        for sample, values, hidden in zip(bench.samples.calibrated, start, behind, strict=True)
    ]
    stages, whole = cut(mtp), whole_float(bench, tmp_path / "bundle")
    assert stages.head is not None
    head = model.checkpoint.tensor(stages.head.source.name).numpy()
    for values, inputs in zip(pass_through(bench, stages, drafts), drafts, strict=True):
        made = whole("mtp", inputs)
        assert relative_error(values[stages.head.input] @ head.T, made["logits"]) < WHOLE
        assert relative_error(values["draft_hidden_states"], made["draft_hidden_states"]) < WHOLE


@all_families
def test_every_matrix_is_in_one_product_or_look_up(bench: Bench) -> None:
    for graph in graphs(bench):
        stages = cut(graph)
        products = Counter(p.source.name for stage in stages.stages for p in stage.products)
        lookups = Counter(found.source.name for stage in stages.stages for found in stage.lookups)
        products += Counter([] if stages.head is None else [stages.head.source.name])
        matrices = {s.name for s in (*graph.sources, *graph.borrowed) if s.matrix is not None}
        assert set(products) | set(lookups) == matrices
        assert set((products + lookups).values()) <= {1, 2}
        twice = {name for name, times in (products + lookups).items() if times == 2}
        assert twice == ({bench.model.head.name} if graph.name != "vision_encoder" and bench.tied else set())
        assert all(p.input in stage.inputs for stage in stages.stages for p in stage.products)


@all_families
def test_values_live_as_long_as_they_are_needed(bench: Bench) -> None:
    """Whatever is left behind a stage is read later or is a result, and what is read later is there."""
    stages, stream = bench.model.decoder_stages, SampleStream(bench.questions())
    reads = [set(stage.inputs) | {found.ids for found in stage.lookups} for stage in stages.stages]
    results = {bench.model.last} | ({"hidden_states"} if bench.model.mtp else set())
    given = set(stream.samples[0])
    made = [set(stage.outputs) | {found.output for found in stage.lookups} for stage in stages.stages]
    for index, runner in enumerate(bench.model.runners(stages, {"it": (stream, bench.model.rows)})):
        assert runner.stage is stages.stages[index]
        stream.advance(runner)
        later = set().union(*reads[index + 1 :])
        known = given.union(*made[: index + 1])
        for values in stream.samples:
            assert set(values) == (later & known) | (results & set(values))
    assert all(results == set(values) for values in stream.samples)


def test_statistics_are_means_over_weighted_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether samples are multiplied one by one or together; a token without weight does not count at all."""
    draw = np.random.default_rng(0)
    plain, other = ([{"x": draw.normal(size=(1, n, 6)).astype(np.float32)} for n in (5, 9)] for _ in range(2))
    weights = [draw.uniform(0, 1, 5).astype(np.float32), np.array([0.0, 3.0, *[0.5] * 7], np.float32)]
    x, seen = (np.concatenate([s["x"][0] for s in side]).astype(np.float64) for side in (plain, other))
    w = np.concatenate(weights).astype(np.float64)
    for together in (1, calibrate.TOGETHER):
        monkeypatch.setattr(calibrate, "TOGETHER", together)
        made = gather([SampleStream(plain), SampleStream(other)], "x", 6, weights)
        np.testing.assert_allclose(made.second, (seen.T * w) @ seen / w.sum(), rtol=1e-5, atol=1e-6)
        assert made.cross is not None
        np.testing.assert_allclose(made.cross, (x.T * w) @ seen / w.sum(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(made.magnitude, w @ np.abs(x) / w.sum(), rtol=1e-6)
    assert gather([SampleStream(plain)], "x", 6, weights).cross is None


def test_one_weight_stands_for_all_tokens_of_a_sample() -> None:
    """As of pictures, whose stages differ in how many tokens they make of one."""
    x = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    streams = [SampleStream([{"x": x[:4]}, {"x": x[4:]}])]
    made = gather(streams, "x", 3, Shares().weights([np.full(1, IMAGE, np.int8)] * 2))
    np.testing.assert_allclose(made.second, x.T @ x / 40, rtol=1e-5)


def test_parts_count_by_their_shares_and_not_their_tokens() -> None:
    kinds = [np.array([TEXT, IMAGE, IMAGE, IMAGE, BEHIND, ANSWER], np.int8), np.array([TEXT, TEXT, ANSWER], np.int8)]
    weights = np.concatenate(Shares(text=0.2, image=0.5, answer=0.3).weights(kinds))
    tokens = np.concatenate(kinds)
    for part, share in (((TEXT, BEHIND), 0.2), ((IMAGE,), 0.5), ((ANSWER,), 0.3)):
        chosen = np.isin(tokens, part)
        np.testing.assert_allclose(weights[chosen], share / chosen.sum(), rtol=1e-6)
    alone = Shares().weights([np.full(4, TEXT, np.int8)])[0]  # parts without tokens leave their shares to the others
    assert (alone > 0).all()
    assert np.ptp(alone) == 0


@pytest.mark.parametrize(
    ("bench", "vision"), [("qwen3_vl untied", False), ("tarn", False), ("llava of qwen2", True)], indirect=["bench"]
)
def test_later_layers_see_what_the_quantized_ones_in_front_give(
    bench: Bench, vision: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second moments of each group are those of the finished model's inputs, the cross moments of both models'."""
    seen: dict[str, Any] = {}

    def record(matrices: Matrices, *rest: Any) -> Any:
        seen.update(dict.fromkeys(matrices.weights, matrices.means))
        return quantize_group(matrices, *rest)

    monkeypatch.setattr(calibrate, "quantize_group", record)
    model, samples, store, other = bench.model, bench.samples, Store(tmp_path / "it"), Store(tmp_path / "searched")
    recipe = Recipe("rtn", quantized_inputs=True)
    assert model.vision is not None
    schemes = {n: s if vision or n not in names(model.vision) else UNQUANTIZED for n, s in bench.schemes.items()}
    outcomes = Calibration(model, PassPlan(schemes, recipe), store, other, bench.prefix).run(
        samples.calibrated, samples.pictures, lambda *_: None
    )
    tables = {model.head.name, *(found.source.name for s in model.decoder_stages.stages for found in s.lookups)}
    low = {name for name, scheme in schemes.items() if scheme.bits < 8}  # 8 bits are left to rounding to nearest
    assert {outcome.name for outcome in outcomes} == low - tables
    assert {name for name in schemes if store.get(name) is not None} == low
    race = _Race(model, {"float": unchanged(model), "made": stored(model, schemes, store)}, lambda *_: None)
    features = race.see(keys_of(samples.calibrated), samples.pictures)
    streams = {name: SampleStream(model.questions(samples.calibrated, found)) for name, found in features.items()}
    named = {name: (stream, race.candidates[name].tables) for name, stream in streams.items()}
    checked, weights = set(), Shares().weights([sample.kinds for sample in samples.calibrated])
    for runner in model.runners(model.decoder_stages, named):
        for product in runner.stage.products:
            if product.source.name in seen:
                expected = gather([*streams.values()], product.input, product.matrix.columns, weights)
                found = seen[product.source.name]
                np.testing.assert_array_equal(found.second, expected.second)
                np.testing.assert_array_equal(found.cross, expected.cross)
                checked.add(product.source.name)
        for name, stream in streams.items():
            race.candidates[name].advance(stream, runner)
    assert checked & low == (low - tables) & names(model.decoder)
