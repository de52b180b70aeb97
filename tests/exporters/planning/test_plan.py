"""The memory that a plan speaks of: caches, states and scores by hand, in the type of the activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.runtimes.generation.intake import DEFAULT_CONTEXT

from tests.helpers import arlow
from tests.paths import TINY

# qwen3_5: 2 layers of attention with 2 heads of 64 for keys and for values, and 6 of a delta net with 4 value heads of
# 32 behind a convolution of 4 taps over 2 * 64 + 128 channels.
CACHE, CONVOLUTION, MEMORY = 2 * 2 * 2 * 64, 6 * 256 * 3, 6 * 4 * 32 * 32


@pytest.mark.parametrize(
    ("options", "cache", "convolution"),
    [(Options(), 2, 4), (Options(kv_cache="float"), 4, 4), (Options(precision="fp16"), 4, 4),
     (Options(kv_cache="int8"), 1, 4), (Options(target="cuda"), 2, 2),
     (Options(target="cuda", kv_cache="int8"), 1, 2), (Options(target="cuda-bf16"), 2, 2),
     (Options(format="tensorrt", target="jetson-thor"), 2, 2),
     (Options(format="tensorrt", target="jetson-thor", precision="fp32"), 4, 4)],
)  # fmt: skip
def test_states_have_the_type_of_activations(options: Options, cache: int, convolution: int) -> None:
    """But for the memory of the delta rule, which carries errors to the last token."""
    plan = make_plan(prepare(TINY / "qwen3_5", options))
    assert plan.cache_bytes_per_token == CACHE * cache
    assert plan.state_bytes == CONVOLUTION * convolution + MEMORY * 4
    assert plan.cache_bytes == CACHE * cache * plan.context


@pytest.mark.parametrize("context", [None, 64, 100_000])
def test_memory_is_that_of_the_context_by_default(context: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from lensmith.exporters.planning import planned_bundle as module

    job = prepare(TINY / "qwen3_vl", Options(context=context if context == 64 else None))
    if context == 100_000:
        monkeypatch.setattr(module, "DEFAULT_CONTEXT", 1000)  # below the 4096 of the model
    plan = make_plan(job)
    expected = {None: min(4096, DEFAULT_CONTEXT), 64: 64, 100_000: 1000}[context]
    assert (plan.default_context, plan.context) == (expected, 64 if context == 64 else 4096)
    weights = sum(row.disk_bytes for row in plan.storage)
    beside = plan.device_memory_bytes - plan.cache_bytes_per_token * expected
    assert weights <= beside < 1.5 * weights  # with the graphs, and pages that are not full


def test_rows_of_the_table_of_weights() -> None:
    """How each part is stored, in the words that people read."""

    def kinds(**options: Any) -> set[str]:
        return {row.precision for row in make_plan(prepare(TINY / "qwen3_vl", Options(**options))).storage}

    floats = "float32 (norms, biases, tables)"
    assert kinds(precision="fp16") == {floats, "float16"}
    assert {"int4, groups of 64", "int8, one scale for each row", floats} <= kinds(group_size=64)
    assert "int4, one scale for each row" in kinds(group_size=0)


def test_scores_of_an_encoder_alone(tmp_path: Path) -> None:
    """A bias for each pair of patches and one copy, where neighbours count more, beside 2^24 scores at a time."""
    scores = 4 << 24
    for changes, biases in (({}, 2), ({"use_deformable_attention": False}, 0)):
        folder = arlow.changed(tmp_path / str(biases), **changes)
        plan = make_plan(prepare(folder, Options(precision="fp32")))
        for pixels, tokens in plan.image_tokens.items():
            assert plan.attention_bytes[pixels] == biases * 4 * (4 * tokens) ** 2 + scores
        wide, high = plan.image_tokens["640 x 480"], plan.image_tokens["224 x 224"]
        assert (wide, high) == (17 * 23, 8 * 8)  # blocks of 28 x 28 pixels, to the nearest
    assert make_plan(prepare(TINY / "qwen3_vl", Options())).attention_bytes == {}
