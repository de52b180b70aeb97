"""Bundles for CUDA on a GPU: what they compute for each family equals PyTorch in float32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from lensmith.runtimes.engines.cuda.cuda_executor import CudaExecutor, cuda_works
from lensmith.runtimes.engines.indexed import IndexedDecoder
from lensmith.runtimes.evidence import verification as verify
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import GenerationOptions

from tests.helpers import ladder
from tests.helpers.dialect_pairs import tiny_bases
from tests.helpers.extras import load
from tests.helpers.ladder import CONVERSATIONS, TRAINED, Ladder, Pair, compile_pair, step_logits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not cuda_works(), reason="needs an NVIDIA GPU and lensmith[gpu]")]

# Rounding of activations, relative to the largest magnitude: see test_cuda_dialect.py. bfloat16 keeps 3 bits less.
LIMITS = {"cuda": 2e-2, "cuda-bf16": 1.6e-1}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_bases(tmp_path_factory.mktemp("bases"))


class OnGpu(Ladder):
    """The ladder of a family. Rounding may change tokens of random weights: logits along PyTorch's own count."""

    BASE: ClassVar[str]
    TARGET: ClassVar[str] = "cuda"
    AGREED: ClassVar[float] = 0.9

    @pytest.fixture(scope="class")
    @classmethod
    def pair(cls, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
        out = tmp_path_factory.mktemp("bundle") / "b"
        return compile_pair(bases[cls.BASE], out, precision="fp16", target=cls.TARGET)

    def test_it_runs_on_the_gpu(self, pair: Pair) -> None:
        decoder = pair.model.decoder
        assert isinstance(decoder, IndexedDecoder)
        assert isinstance(decoder.executor, CudaExecutor)
        assert decoder.executor.recorded  # as a CUDA graph

    def test_greedy_tokens(self, pair: Pair) -> None:
        """256 steps, each from a replay of the same recorded kernels."""
        messages = CONVERSATIONS["one image"]
        theirs = pair.reference.greedy(pair.theirs(messages), 256, ignore_eos=True)
        ours = np.stack(list(step_logits(pair.model, messages, theirs.ids)))
        assert max(relative_error(mine, other) for mine, other in zip(ours, theirs.logits, strict=True)) < self.LOGITS


class TestQwen3VL(OnGpu):
    BASE, DEEPSTACK = "qwen3-vl-2b", True
    FEATURES = LOGITS = CHUNKED = LIMITS["cuda"]


class TestQwen35(OnGpu):
    BASE = "nemotron-4b"
    FEATURES = LOGITS = CHUNKED = LIMITS["cuda"]


class TestLlava(OnGpu):
    BASE = "vqwen3-4b"
    FEATURES = LOGITS = CHUNKED = LIMITS["cuda"]


class TestQwen3VLInBfloat16(OnGpu):
    BASE, DEEPSTACK, TARGET, AGREED = "qwen3-vl-2b", True, "cuda-bf16", 0.5
    FEATURES = LOGITS = CHUNKED = LIMITS["cuda-bf16"]


@pytest.mark.parametrize("options", [{}, {"group_size": 32}, {"symmetric": False}, {"precision": "int8"}], ids=str)
def test_rounded_weights(bases: dict[str, Path], tmp_path: Path, options: dict[str, Any]) -> None:
    """Products with 4 and 8 bits against PyTorch with the rounded weights."""
    pair = compile_pair(bases["qwen3-vl-2b"], tmp_path / "b", **{"precision": "int4", "target": "cuda", **options})
    if pair.job.options.symmetric:
        ladder.dequantize_weights(pair)
        assert max(pair.worst_error(ladder.IMAGES[:2], CONVERSATIONS["two turns"]).values()) < LIMITS["cuda"]
        return
    on_cpu = Model(pair.model.bundle, device="cpu")
    request = on_cpu.prepare(CONVERSATIONS["two turns"])
    expected = on_cpu.prefill(request, reuse=False)
    assert relative_error(pair.model.prefill(request, reuse=False), expected) < LIMITS["cuda"]


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_the_trained_model_gives_its_answers(tmp_path: Path, precision: str) -> None:
    """Tokens of the float16 bundle are those of its CPU kernels, and recorded traces of PyTorch are replayed."""
    ladder.need_torch()
    bundle = compile_pair(TRAINED, tmp_path / "b", precision=precision, target="cuda").model.bundle
    messages, options = CONVERSATIONS["one image"], GenerationOptions(max_new_tokens=64)
    answers = [load(bundle.path, device=device).generate(messages, options).read() for device in (None, "cpu")]
    assert answers[0] == answers[1] != ""


def test_verify_passes_on_the_gpu(tmp_path: Path) -> None:
    ladder.need_torch()
    from lensmith.exporters.pipeline import Options, export, prepare

    made = export(prepare(TRAINED, Options(precision="int4", target="cuda")), tmp_path / "b", golden="always")
    assert verify.verify(made.path).passed
