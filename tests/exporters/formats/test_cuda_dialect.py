"""The cuda dialect: what it computes for each family equals PyTorch, on ONNX Runtime's CPU kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from lensmith.calibration.calibrated_export import calibrate
from lensmith.calibration.calibration_options import CalibrationOptions
from lensmith.exporters.families.qwen3_5.draft_reference import DraftReference
from lensmith.exporters.formats.onnx.ort_attention import MS
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.engines.indexed import IndexedDecoder
from lensmith.runtimes.engines.onnx.onnx_executor import OnnxExecutor
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.evidence.verification import verify
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import GenerationOptions

from tests.exporters.formats.test_tensorrt_dialect import VARIANTS
from tests.helpers import arlow, ladder
from tests.helpers.dialect_pairs import FAMILIES, tiny_bases
from tests.helpers.extras import inside
from tests.helpers.ladder import CONVERSATIONS, IMAGES, TRAINED, Ladder, Pair, dequantize_weights
from tests.helpers.mtp_reference import assert_drafts

# The limits of the ort dialect: relative to the largest magnitude, in float32 with other orders of summation.
FEATURES, LOGITS, CHUNKED, STATES = 2e-5, 5e-5, 5e-5, 2e-5
# In float16 each rounding is 2**-11 of a value, and some hundred of them on the way from pixels to logits add up as a
# random walk would: measured are 2e-3 for features and 9e-3 for logits of random weights, where nothing corrects them.
HALF = 2e-2


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="class")
def float32() -> Iterator[None]:
    """Export for a target that computes in float32: the same graphs, with room for rounding taken away."""
    with pytest.MonkeyPatch.context() as patch:
        ladder.change_target(patch, activations="float32", lacks=())
        yield


def dequantize(pair: Pair) -> None:
    """Put the weights of the bundle into PyTorch's model."""
    pair.job = replace(pair.job, graphs=tuple(graph for graph in pair.job.graphs if graph.name != "mtp"))
    dequantize_weights(pair)


def cuda_pair(source: Path, out: Path, **options: Any) -> Pair:
    """A checkpoint compiled in the dialect, next to PyTorch."""
    return ladder.compile_pair(source, out, **{"target": "cuda", **options})


@pytest.mark.usefixtures("float32")
class Family(Ladder):
    """Features, logits, chunks, decoding and second turns of one family."""

    BASE: ClassVar[str]
    FEATURES, LOGITS, CHUNKED = FEATURES, LOGITS, CHUNKED

    @pytest.fixture(scope="class")
    @classmethod
    def pair(cls, float32: None, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
        return cuda_pair(bases[cls.BASE], tmp_path_factory.mktemp("bundle") / "b")

    def test_it_is_the_dialect(self, pair: Pair) -> None:
        """The others would say nothing of it if another dialect ran."""
        graphs = pair.model.bundle.content["graphs"]
        assert {graph["dialect"] for graph in graphs.values()} == {"cuda"}
        assert {"logit_positions", "seqlens_k", "total_sequence_length"} <= graphs["decoder"]["inputs"].keys()
        assert isinstance(pair.model.decoder, IndexedDecoder)
        assert isinstance(pair.model.decoder.executor, OnnxExecutor)


class TestQwen3VL(Family):
    BASE, DEEPSTACK = "qwen3-vl-2b", True


class TestQwen35(Family):
    BASE = "nemotron-4b"


class TestLlava(Family):
    BASE = "vqwen3-4b"


# Operators with CUDA kernels for float16 and bfloat16, by docs/OperatorKernels.md of ONNX Runtime.
ONNX_KERNELS = """Add Cast Concat Constant Cos CumSum Div Equal Expand Floor Gather LayerNormalization Max Min Mul
    ReduceSum Reshape RotaryEmbedding Sigmoid SimplifiedLayerNormalization Sin Slice Split Sub Transpose Unsqueeze
    Where"""
MS_KERNELS = """CausalConvWithState FastGelu FusedMatMul GatherBlockQuantized Gelu GroupQueryAttention LinearAttention
    LinearAttentionGate MatMulNBits MultiHeadAttention QuickGelu SkipLayerNormalization
    SkipSimplifiedLayerNormalization"""
KERNELS = frozenset(ONNX_KERNELS.split()) | {f"{MS}.{name}" for name in MS_KERNELS.split()}
# Would be computed on the host, or decide a size there: a step with one of them cannot be recorded.
ON_HOST = frozenset({"Shape", "Size", "Range", "NonZero", "Loop", "If", "Scan"})


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_operator_has_a_kernel_and_steps_decide_nothing(
    bases: dict[str, Path], name: str, precision: str
) -> None:
    job = prepare(bases[name], Options(precision=precision, target="cuda"))
    for graph in job.graphs:
        used = {f"{node.domain}.{node.op_type}".lstrip(".") for node in graph.model.graph}
        allowed = KERNELS if graph.name != "vision_encoder" else KERNELS | ON_HOST  # only steps are recorded
        assert used <= allowed, graph.name
        assert not graph.model.functions


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_float16(bases: dict[str, Path], tmp_path: Path, name: str, precision: str) -> None:
    """Activations as the GPU has them, against PyTorch in float32 with the weights of the bundle."""
    pair = cuda_pair(bases[name], tmp_path / "b", precision=precision)
    dequantize(pair)
    errors = pair.worst_error(IMAGES[:2], CONVERSATIONS["two turns"])
    assert 1e-5 < max(errors.values()) < HALF


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_the_trained_model_keeps_its_answers(tmp_path: Path, precision: str) -> None:
    """Activations in float16 do not change what a trained model says."""
    ladder.need_torch()
    pair = cuda_pair(TRAINED, tmp_path / "b", precision=precision)
    dequantize(pair)
    for messages in (CONVERSATIONS["one image"], CONVERSATIONS["two turns"]):
        theirs = pair.reference.greedy(pair.theirs(messages), 24)
        ours = pair.model.generate(messages, GenerationOptions(max_new_tokens=24))
        ours.read()
        assert ours.ids == theirs.ids


def test_multi_token_prediction(float32: None, bases: dict[str, Path], tmp_path: Path) -> None:
    pair = cuda_pair(bases["nemotron-4b"], tmp_path / "b")
    assert_drafts(pair.model, DraftReference(pair.reference), pair.theirs(CONVERSATIONS["two turns"]), LOGITS)


def test_int8_cache(bases: dict[str, Path], tmp_path: Path) -> None:
    """Keys and values in 8 bits with the scales of four samples: 0.01 was measured here."""
    plain = cuda_pair(bases["qwen3-vl-2b"], tmp_path / "plain", precision="fp16").model
    options = Options(precision="fp16", target="cuda", kv_cache="int8")
    few = CalibrationOptions("mse", limit=4, answer_tokens=0)
    job = calibrate(prepare(bases["qwen3-vl-2b"], options), few, tmp_path / "scratch", lambda *_: None)
    model = Model(export(job, tmp_path / "b", golden="never"), device="cpu")
    assert inside(model.decoder).open_states().kept.read("past_key_values.0.key").dtype == np.int8
    request = plain.prepare(CONVERSATIONS["two turns"])
    assert relative_error(model.prefill(request), plain.prefill(request)) < 5e-2


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "llava"])
def test_golden_traces(name: str, tmp_path: Path) -> None:
    """Images, videos and conversations of the export, and again what it recorded."""
    ladder.need_torch()
    job = prepare(TRAINED.parent / name, Options(precision="fp16", target="cuda"))
    bundle = export(job, tmp_path / "b", golden="always")
    assert bundle.content["evidence"]["golden"]["recorded"]
    assert verify(bundle, device="cpu").passed


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(float32: None, name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    family, changes = VARIANTS[name]
    pair = cuda_pair(ladder.variant(bases[family], tmp_path / "source", changes), tmp_path / "bundle")
    errors = pair.worst_error(IMAGES[:1], CONVERSATIONS["two turns"])
    assert errors.pop("logits") < LOGITS
    assert max(errors.values()) < FEATURES


@pytest.mark.parametrize("revision", ["A", "B"])
@pytest.mark.parametrize("change", ["", *arlow.CHANGES])
def test_arlow(float32: None, change: str, revision: str, tmp_path: Path) -> None:
    """The golden data of every case, with each feature and without; absolute, as of the ort dialect."""
    source = arlow.changed(tmp_path / "source", **arlow.config_of(f"wide__{change}" if change else "wide"))
    encoder = arlow.compiled(source, tmp_path / "bundle", revision=revision, target="cuda")[1]
    for name in arlow.CASES if not change else (f"wide__{change}",):
        found = arlow.run(encoder, *arlow.patches_of(name, revision))
        assert arlow.difference(found, arlow.expected(name, revision)) < 2e-5
