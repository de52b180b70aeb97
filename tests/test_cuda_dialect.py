"""The cuda dialect: what it computes for each family equals PyTorch, on ONNX Runtime's CPU kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from lensmith.runtimes.indexed import IndexedDecoder
from lensmith.runtimes.onnx_executor import OnnxExecutor

from tests import ladder
from tests.ladder import Ladder, Pair
from tests.llava import write_checkpoint

# The limits of the ort dialect: relative to the largest magnitude, in float32 with other orders of summation.
FEATURES, LOGITS, CHUNKED, STATES = 2e-5, 5e-5, 5e-5, 2e-5
# In float16 each rounding is 2**-11 of a value, and some hundred of them on the way from pixels to logits add up as a
# random walk would: measured are 4e-3 for features and 8e-3 for logits of random weights, where nothing corrects them.
HALF = 2e-2
FAMILIES = ("qwen3-vl-2b", "nemotron-4b", "vqwen3-4b")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    ladder.need_torch()
    folder = tmp_path_factory.mktemp("bases")
    made = {name: ladder.tiny(folder / name, name) for name in FAMILIES}
    return {**made, "vqwen3-4b": write_checkpoint(made["vqwen3-4b"], folder / "llava", layout="transformers 5")}


@pytest.fixture(scope="module")
def float32() -> Iterator[None]:
    """Export for a target that computes in float32: the same graphs, with room for rounding taken away."""
    with pytest.MonkeyPatch.context() as patch:
        ladder.change_target(patch, activations="float32", lacks=())
        yield


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
        graphs = pair.model.manifest["graphs"]
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
