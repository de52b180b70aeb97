"""Features of images, cut and joined by hand, and what sessions of ONNX Runtime are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from lensmith.runtimes.engines.contract import ImageFeatures
from lensmith.runtimes.engines.onnx import sessions as engine


def features(first: int, count: int, taps: int) -> ImageFeatures:
    """Rows [count, 2] that say their number, and the same of each tap in hundreds."""
    rows = np.repeat(np.arange(first, first + count, dtype=np.float32)[:, None], 2, axis=1)
    return ImageFeatures(rows, np.stack([rows + 100 * (tap + 1) for tap in range(taps)]) if taps else None)


@pytest.mark.parametrize("taps", [0, 1, 3])
def test_joined_features_are_those_of_one_image_after_another(taps: int) -> None:
    parts = [features(0, 2, taps), features(2, 1, taps), features(3, 4, taps)]
    joined, whole = ImageFeatures.join(parts), features(0, 7, taps)
    for made, tokens in ((joined, slice(0, 7)), (whole[2:3], slice(2, 3)), (joined[1:6], slice(1, 6))):
        assert len(made) == tokens.stop - tokens.start
        np.testing.assert_array_equal(made.features, whole.features[tokens])
        if whole.deepstack is None:
            assert made.deepstack is None
        else:
            assert made.deepstack is not None
            np.testing.assert_array_equal(made.deepstack, whole.deepstack[:, tokens])
    assert ImageFeatures.join(parts[:1]) is parts[0]


@pytest.mark.parametrize(("threads", "expected"), [(None, 0), (3, 3)])  # 0: one for each core
@pytest.mark.parametrize("profile", [False, True])
def test_what_a_session_is_told(
    threads: int | None, expected: int, profile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options, providers: told.append(options))
    engine.session(Path("x.onnx"), threads, profile=profile, native=False)
    (options,) = told
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (expected, 1)
    assert options.enable_profiling is profile
    assert not options.enable_mem_pattern
    # Products of dequantized weights keep their activations, and idle threads of one graph do not hold up another.
    assert options.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
