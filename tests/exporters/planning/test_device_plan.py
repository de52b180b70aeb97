"""Times and memory on a device, by hand; and what is proposed for a budget."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.exporters.job import Job
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.planning.device_memory import memory_need
from lensmith.exporters.planning.device_plan import plan_device, plan_targets
from lensmith.exporters.planning.image_rungs import image_rungs
from lensmith.exporters.planning.matrix_kinds import matrices_of
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.planning.prediction import QUESTION_TOKENS, predict, tokens_per_s
from lensmith.exporters.planning.proposals import Budget, misses, nearest, propose
from lensmith.exporters.planning.variants import variant_of, variants
from lensmith.exporters.storage import weights
from lensmith.targets.profile import load_target, target_names

from tests.helpers.outlines import NAMES, outline

PI = load_target("raspberry-pi-5")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Qwen3-VL-2B at full size, without weights."""
    folder, _ = outline("qwen3-vl-2b", tmp_path_factory.mktemp("qwen") / "configs")
    return prepare(folder, Options(target="raspberry-pi-5"), outline=True)


# Of Qwen3-VL-2B: 24 layers of 1024 with an MLP of 4096, patches of 1536 values, and four mergers of 4096 to 2048; 28
# layers of 2048 with 16 heads of 128, 8 for keys and values, an MLP of 6144, and a head of 151,936 tokens.
BLOCK = 4 * 1024**2 + 2 * 1024 * 4096
PATCHES = 24 * BLOCK + 1536 * 1024
MERGERS = 4 * (4096**2 + 4096 * 2048)
LAYER = 2 * 2048**2 + 2 * 2048 * 1024 + 3 * 2048 * 6144
HEAD = 151_936 * 2048


def test_times_are_operations_by_rates(qwen: Job) -> None:
    device, tokens = PI.device, 588
    products = 2 * (4 * tokens * PATCHES + tokens * MERGERS) / device.rate("int8")
    attention = 4 * 24 * 1024 * (4 * tokens) ** 2 / device.rate("attention")
    timed = predict(variant_of(qwen, PI), tokens)
    assert timed.vision_s == pytest.approx((products + attention) / 0.9, rel=1e-6)
    prompt = tokens + QUESTION_TOKENS
    products = 2 * (28 * prompt * LAYER + HEAD) / device.rate("int4")
    attention = 2 * 28 * 2048 * prompt**2 / device.rate("attention")
    assert timed.prefill_s == pytest.approx(products + attention, rel=1e-6)
    assert timed.first_token_s == timed.vision_s + timed.prefill_s


def test_decoding_reads_weights_and_cache(qwen: Job) -> None:
    matrices = (28 * LAYER + HEAD) * (4 + 16 / 128) / 8
    for context in (0, 1000):
        read = matrices + context * 28 * 2 * 8 * 128 * 2
        assert tokens_per_s(variant_of(qwen, PI), context) == pytest.approx(PI.device.read_bytes_per_s / read, rel=1e-3)


def test_weights_of_a_variant_are_those_of_its_graphs(qwen: Job) -> None:
    """But for the place between tensors, that of the whole file is known exactly."""
    exact = sum(weights.layout(graph, qwen.checkpoint)[1] for graph in qwen.graphs)
    assert variant_of(qwen, PI).weight_bytes == pytest.approx(exact, rel=1e-3)


CUT = {  # layers of decoder and encoder
    "qwen3-vl-2b": (4, {"depth": 6, "deepstack_visual_indexes": [1, 3, 5]}), "tarn-2b": (4, {"depth": 6}),
    "vqwen3-4b": (3, {"num_hidden_layers": 6}),
}  # fmt: skip
PEAKS = [  # in bytes, of a question about an image of so many tokens
    ("qwen3-vl-2b", "int4", 196, 0.665e9), ("qwen3-vl-2b", "int4", 588, 0.840e9), ("qwen3-vl-2b", "int8", 196, 1.006e9),
    ("qwen3-vl-2b", "int8", 588, 1.179e9), ("qwen3-vl-2b", "fp32", 196, 4.265e9), ("qwen3-vl-2b", "fp32", 588, 4.226e9),
    ("tarn-2b", "int4", 196, 0.785e9), ("tarn-2b", "int4", 588, 0.971e9), ("tarn-2b", "int8", 588, 1.486e9),
    ("tarn-2b", "fp32", 588, 5.958e9), ("vqwen3-4b", "int4", 576, 0.747e9), ("vqwen3-4b", "int8", 576, 1.285e9),
    ("vqwen3-4b", "fp32", 576, 4.984e9),
]  # fmt: skip


@pytest.mark.parametrize(("name", "precision", "image_tokens", "measured"), PEAKS)
def test_memory_is_what_was_measured(
    name: str, precision: str, image_tokens: int, measured: float, tmp_path: Path
) -> None:
    """Peaks of resident memory of models with full widths and few layers, on Linux with AVX2 and two threads."""
    folder, _ = outline(name, tmp_path / "configs")
    config, (layers, vision) = json.loads((folder / "config.json").read_text()), CUT[name]
    text = config["text_config"]
    text |= {"num_hidden_layers": layers, **({"layer_types": text["layer_types"][:4]} if "layer_types" in text else {})}
    config["vision_config"] |= vision
    (folder / "config.json").write_text(json.dumps(config))
    job = prepare(folder, Options(precision=precision), outline=True)
    need = memory_need(variant_of(job, job.target), tokens=image_tokens + 33, image_tokens=image_tokens, context=2048)
    assert need.peak == pytest.approx(measured, rel=0.1)


def test_memory_grows_with_what_is_asked(qwen: Job) -> None:
    variant = variant_of(qwen, PI)
    one = memory_need(variant, tokens=1000, image_tokens=196, context=1000)
    longer = memory_need(variant, tokens=2000, image_tokens=196, context=2000)
    larger = memory_need(variant, tokens=1000, image_tokens=588, context=1000)
    assert longer.cache == 2 * one.cache == 2000 * 28 * 2 * 8 * 128 * 2
    assert larger.image > 2.9 * one.image
    assert (larger.weights, larger.program) == (one.weights, one.program)


BUDGETS = st.builds(
    Budget, memory_bytes=st.floats(5e8, 3e10), context=st.none() | st.integers(512, 40_000),
    max_pixels=st.none() | st.integers(50_000, 2_000_000), first_token_s=st.none() | st.floats(0.1, 60),
    decode_tokens_per_s=st.none() | st.floats(1, 60),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(budget=BUDGETS, name=st.sampled_from(target_names()))
def test_what_is_proposed_keeps_to_the_budget(budget: Budget, name: str, qwen: Job) -> None:
    """All of it; and where nothing is proposed, the nearest build misses something."""
    choices = list(variants(matrices_of(qwen), qwen.spec, load_target(name)))
    rungs = image_rungs(qwen.sections)
    found = propose(choices, rungs, budget)
    assert not [sentence for made in found for sentence in misses(made, budget)]
    for made in found:
        assert budget.context in (None, made.context)
        assert budget.max_pixels in (None, made.max_pixels)
    if not found and (close := nearest(choices, rungs, budget)):
        assert close[1] or close[0].context < close[0].image_tokens + 300


def test_the_best_comes_first(qwen: Job) -> None:
    """Four bits and more, then larger images, then more bits; fewer bits only where memory leaves no others."""
    plan = plan_device(qwen, PI, {}, Budget(first_token_s=5.0))
    first, second = plan.proposals[:2]
    assert (first.precision, second.precision) == ("int8", "int4")
    assert first.max_pixels == second.max_pixels == 416 * 416
    assert not any(made.calibrate for made in plan.proposals)
    small = plan_device(qwen, PI, {}, Budget(memory_bytes=1_550_000_000, context=1024))
    assert {made.precision for made in small.proposals} <= {"int3", "int2", "q3_k_m", "q2_k"}
    assert small.proposals
    assert all(made.calibrate for made in small.proposals)


def test_what_does_not_fit_is_said(qwen: Job) -> None:
    plan = plan_device(qwen, PI, {}, Budget(memory_bytes=500_000_000, first_token_s=0.01))
    assert not plan.fits
    assert [sentence.split()[0] + " " + sentence.split()[1] for sentence in plan.misses] == ["it takes", "its first"]
    assert not plan.proposals
    assert plan.nearest_misses


@pytest.mark.parametrize("name", NAMES)
def test_every_family_on_every_target(name: str, tmp_path: Path) -> None:
    folder, _ = outline(name, tmp_path / "configs")
    found = plan_targets(prepare(folder, Options(), outline=True), Budget())
    assert list(found) == target_names()
    assert all(made if isinstance(made, list) else made.memory_bytes > made.bundle_bytes > 0 for made in found.values())
    assert not isinstance(found["server-avx512"], list)


def test_the_memory_table_of_tarn(tmp_path: Path) -> None:
    """Its model card, for a GPU: loading in float16 4.55 GB and in 4 bits 1.85; with an image of any size 14.6 and 6.2,
    of at most 512 x 28 x 28 pixels 9.83 and 3.95. Weights in float16 are the same, and nothing takes more here."""
    folder, _ = outline("tarn-2b", tmp_path / "configs")
    card = {"fp16": (4.55e9, 14.6e9, 9.83e9), "int4": (1.85e9, 6.2e9, 3.95e9)}
    for precision, (loading, unbounded, bounded) in card.items():
        options = [Options(target="cuda", precision=precision, context=24_576, max_pixels=pixels)
                   for pixels in (None, 512 * 28 * 28)]  # fmt: skip
        plans = [make_plan(prepare(folder, each, outline=True)).device for each in options]
        (any_size, small), weights_bytes = [plan.memory.peak for plan in plans], plans[0].memory.weights
        assert weights_bytes <= 1.01 * loading
        assert precision == "int4" or weights_bytes == pytest.approx(loading, rel=0.01)
        assert weights_bytes < small < any_size
        assert small < bounded
        assert any_size < unbounded


def test_the_context_of_nemotron(tmp_path: Path) -> None:
    """262,144 tokens: 8 layers of attention with 4 heads of 256 for keys and for values, in 16 bits 8.6 GB."""
    folder, _ = outline("nemotron-4b", tmp_path / "configs")
    plan = make_plan(prepare(folder, Options(target="cuda", precision="fp16"), outline=True))
    assert (plan.context, plan.cache_bytes_per_token) == (262_144, 8 * 2 * 4 * 256 * 2)
    assert plan.cache_bytes == 8_589_934_592
    assert plan.checkpoint_bytes == pytest.approx(9.3e9, rel=0.01)  # "about 9.3 GB", as its card says


def test_the_capacity_of_qwen3_vl_is_whole(qwen: Job) -> None:
    """Layers, heads and parameters of the published model, each tensor used: nothing is pruned."""
    decoder, vision = qwen.spec.decoder, qwen.spec.vision
    assert decoder is not None
    assert vision is not None
    assert (decoder.layers, decoder.heads, decoder.kv_heads, decoder.head_dim) == (28, 16, 8, 128)
    assert (vision.used_depth, vision.heads, vision.deepstack_layers) == (24, 16, (5, 11, 17))
    assert qwen.parameters == 2_127_532_032
    assert sum(kind.values for kind in matrices_of(qwen).kinds) > 0.998 * qwen.parameters


def test_pages_of_a_file_count(qwen: Job) -> None:
    """A table that two graphs share counts once."""
    tied = matrices_of(qwen)
    assert [kind.count for kind in tied.kinds if kind.part == "table"] == [1]
    assert replace(tied, other_bytes=0).products[-1].part == "table"
