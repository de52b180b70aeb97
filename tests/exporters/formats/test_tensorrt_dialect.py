"""The tensorrt dialect: what it computes for each family equals PyTorch, as the ort dialect does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.engines.indexed import IndexedDecoder
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.evidence.verification import verify

from tests.exporters.families.test_qwen3_5 import random_text
from tests.helpers import arlow, ladder
from tests.helpers.dialect_pairs import dequantize_weights, dialect_pair, float32_activations, tiny_bases
from tests.helpers.extras import latest
from tests.helpers.ladder import CONVERSATIONS, IMAGES, Ladder, Pair, step_logits, worst

# The limits of the ort dialect: relative to the largest magnitude, in float32 with other orders of summation.
FEATURES = 2e-5
LOGITS = 5e-5
CHUNKED = 5e-5
STATES = 2e-5
DEQUANTIZED = 5e-5


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


class Family(Ladder):
    """Features, logits, chunks, decoding and second turns of one family."""

    BASE: ClassVar[str]
    FEATURES, LOGITS, CHUNKED = FEATURES, LOGITS, CHUNKED

    @pytest.fixture(scope="class")
    @classmethod
    def pair(cls, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
        return dialect_pair(bases[cls.BASE], tmp_path_factory.mktemp("bundle") / "b")

    def test_it_is_the_dialect(self, pair: Pair) -> None:
        """The others would say nothing of it if another dialect ran."""
        graphs = pair.model.bundle.content["graphs"]
        assert {graph["dialect"] for graph in graphs.values()} == {"tensorrt"}
        assert "logit_positions" in graphs["decoder"]["inputs"]
        assert isinstance(pair.model.decoder, IndexedDecoder)


class TestQwen3VL(Family):
    BASE, DEEPSTACK = "qwen3-vl-2b", True


class TestQwen35(Family):
    BASE = "nemotron-4b"


class TestLlava(Family):
    BASE = "vqwen3-4b"


@pytest.fixture(scope="module")
def hybrid(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Qwen3.5: a delta net with states, and multi-token prediction."""
    return dialect_pair(bases["nemotron-4b"], tmp_path_factory.mktemp("hybrid") / "b")


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 127, 128, 129, 300])
def test_lengths_around_the_chunks_of_the_delta_rule(hybrid: Pair, length: int) -> None:
    request = random_text(length)
    logits = hybrid.model.prefill(request, num_logits=length, reuse=False)
    assert relative_error(logits, hybrid.reference.start(request, 0)) < LOGITS
    assert worst(latest(hybrid.model).states.copies(), hybrid.reference.recurrent_states()) < STATES


def test_the_same_token_again_and_again(hybrid: Pair) -> None:
    """Keys of a chunk are alike then, and the system of equations of the delta rule is at its worst."""
    request = random_text(256)
    request.prompt.ids[:] = 7
    logits = hybrid.model.prefill(request, num_logits=256, reuse=False)
    assert relative_error(logits, hybrid.reference.start(request, 0)) < LOGITS


def test_states_without_a_copy_are_not_reused(hybrid: Pair) -> None:
    model, request = hybrid.model, random_text(40)
    expected = model.prefill(request, reuse=False).copy()
    model.prefill(random_text(63), reuse=False)
    assert latest(model).rewind(30) == 0
    assert not any(state.any() for state in latest(model).states.copies().values())
    assert np.array_equal(model.prefill(request), expected)


def test_multi_token_prediction(hybrid: Pair) -> None:
    """Logits and hidden states over a prompt with images, in chunks."""
    from lensmith.exporters.families.qwen3_5.draft_reference import DraftReference

    from tests.helpers.mtp_reference import assert_drafts

    assert_drafts(hybrid.model, DraftReference(hybrid.reference), hybrid.theirs(CONVERSATIONS["two turns"]), LOGITS)


def test_drafts_follow_the_decoder(hybrid: Pair) -> None:
    """Hidden states of all positions but logits of the last alone."""
    model, request = hybrid.model, hybrid.model.prepare(CONVERSATIONS["one image"])
    head = model.open_draft_head()
    logits = model.prefill(request, chunk=50, head=head)
    theirs = hybrid.theirs(CONVERSATIONS["one image"])
    assert relative_error(logits, hybrid.reference.logits(theirs, 1)) < LOGITS
    assert head.states.length == len(request.prompt) - 1


@pytest.mark.parametrize(("family", "precision"), [("qwen3-vl-2b", "int4"), ("qwen3-vl-2b", "int8"),
                                                    ("qwen3-vl-2b", "fp8"), ("nemotron-4b", "fp8"),
                                                    ("nemotron-4b", "int4"), ("vqwen3-4b", "int4")])  # fmt: skip
def test_packed_weights_are_what_they_stand_for(
    family: str, precision: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers through DequantizeLinear against PyTorch with the same rounded weights."""
    source = bases[family]
    if family == "nemotron-4b":
        source = ladder.variant(source, tmp_path / "source", {"text_config": {"mtp_num_hidden_layers": 0}})
    float32_activations(monkeypatch)
    pair = dialect_pair(
        source, tmp_path / "bundle", precision=precision, group_size=32 if precision == "int4" else None
    )
    dequantize_weights(pair)
    assert max(pair.worst_error(IMAGES[:2], CONVERSATIONS["one image"]).values()) < DEQUANTIZED


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "untied head": ("qwen3-vl-2b", {"tie_word_embeddings": False}),
    "one key-value head": ("qwen3-vl-2b", {"text_config": {"num_key_value_heads": 1}}),
    "no deepstack": ("qwen3-vl-2b", {"vision_config": {"deepstack_visual_indexes": []}}),
    "deepstack in all layers": ("qwen3-vl-2b", {"vision_config": {"deepstack_visual_indexes": [0, 1, 2, 3]}}),
    "blocks of 3 patches": ("qwen3-vl-2b", {"vision_config": {"spatial_merge_size": 3}}),
    "attention bias": ("qwen3-vl-2b", {"text_config": {"attention_bias": True}}),
    "hybrid, untied head": ("nemotron-4b", {"tie_word_embeddings": False}),
    "as many key heads as value heads": ("nemotron-4b", {"text_config": {"linear_num_key_heads": 4}}),
    "other head sizes": ("nemotron-4b", {"text_config": {"linear_key_head_dim": 64, "linear_value_head_dim": 32,
                         "linear_num_value_heads": 6, "num_key_value_heads": 1}}),
    "a linear layer last": ("nemotron-4b", {"text_config": {"layer_types":
                            ["full_attention"] + ["linear_attention"] * 3}}),
    "two taps": ("nemotron-4b", {"text_config": {"linear_conv_kernel_dim": 2}}),
    "no multi-token prediction": ("nemotron-4b", {"text_config": {"mtp_num_hidden_layers": 0}}),
}  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
def test_golden_traces(name: str, tmp_path: Path) -> None:
    """Images, videos and conversations of the export, as exactly as in the ort dialect."""
    ladder.need_torch()
    job = prepare(ladder.TRAINED.parent / name, Options("tensorrt", "fp32", target="rtx-40", context=2048))
    assert verify(export(job, tmp_path / "b", golden="always")).passed


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    family, changes = VARIANTS[name]
    pair = dialect_pair(ladder.variant(bases[family], tmp_path / "source", changes), tmp_path / "bundle")
    errors = pair.worst_error(IMAGES[:1], CONVERSATIONS["two turns"])
    assert errors.pop("logits") < LOGITS
    assert max(errors.values()) < FEATURES
    ours = np.stack(list(step_logits(pair.model, CONVERSATIONS["one image"], [5, 6, 7])))
    pair.reference.start(pair.theirs(CONVERSATIONS["one image"]))
    theirs = [pair.reference.step(token)[-1] for token in (5, 6)]
    assert relative_error(ours[1:], np.stack(theirs)) < LOGITS


@pytest.mark.parametrize("revision", ["A", "B"])
@pytest.mark.parametrize("change", ["", *arlow.CHANGES])
def test_arlow(change: str, revision: str, tmp_path: Path) -> None:
    """The golden data of every case, with each feature and without; absolute, as of the ort dialect."""
    source = arlow.changed(tmp_path / "source", **arlow.config_of(f"wide__{change}" if change else "wide"))
    encoder = arlow.compiled(source, tmp_path / "bundle", revision=revision, format="tensorrt", target="rtx-40")[1]
    for name in arlow.CASES if not change else (f"wide__{change}",):
        found = arlow.run(encoder, *arlow.patches_of(name, revision))
        assert arlow.difference(found, arlow.expected(name, revision)) < 2e-5


def test_arlow_on_any_grid(tmp_path: Path) -> None:
    """As the ort dialect: flat, narrow, of many queries, clips, pairs exactly on the radius."""
    kinds = {"tensorrt": "rtx-40", "onnx": "cpu"}
    ours, theirs = (arlow.compiled(arlow.CHECKPOINT, tmp_path / kind, format=kind, target=target)[1]
                    for kind, target in kinds.items())  # fmt: skip
    for grid in ((1, 2, 2), (1, 2, 60), (1, 64, 2), (2, 20, 24), (5, 8, 12), (9, 2, 2)):
        patches = arlow.random_patches(grid, 1176)
        assert arlow.difference(arlow.run(ours, patches, grid), arlow.run(theirs, patches, grid)) < 2e-5, grid
