"""The widened tiny models, which fill the blocks of K-quants: what the trained ones compute."""

from __future__ import annotations

from pathlib import Path

import pytest
from lensmith.calibration.samples.sample_preparation import prompts_of
from lensmith.exporters.comparing.cases import Case
from lensmith.exporters.pipeline import Options, prepare
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.prompt.requests import EncodedImage, make_request, user_message

from tests.paths import TINY

PICTURE = str(TINY / "heldout_long" / "images" / "0001.png")
SUMMATION = 2e-5


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "llava"])
def test_wide_models_compute_what_the_trained_ones_do(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs lensmith[torch]")
    from lensmith.exporters.evidence.reference import Reference

    from tests.training.widen import widen

    logits, features = [], []
    for path in (TINY / name, widen(TINY / name, tmp_path / "wide")):
        builder, model = prompts_of(prepare(path, Options(precision="fp32"))), Reference(path, threads=1)
        case = Case("", (PICTURE,), "Describe the picture.")
        picture = builder.pictures[builder.build(case).pictures[0]]
        seen = model.vision(picture.patches, picture.grid)
        messages = [user_message(case.prompt, case.images)]
        request = make_request(builder.prompts, builder.positions, messages, [EncodedImage(b"", picture.grid, seen)])
        features.append(seen.features)
        logits.append(model.logits(request))
    width = features[0].shape[1]
    assert relative_error(features[1][:, :width], features[0]) < SUMMATION
    assert relative_error(features[1][:, width:], features[0]) < SUMMATION
    assert relative_error(logits[1], logits[0]) < SUMMATION
