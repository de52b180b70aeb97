"""Checkpoints with few layers are whole ones, of the full widths."""

from __future__ import annotations

from pathlib import Path

import pytest
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.synth.making import ARCHITECTURES, small_files

from tests.benchmarks import planned, shallow


@pytest.mark.parametrize("name", planned.SYSTEMS)
def test_a_cut_configuration_is_a_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shallow, "write_checkpoint", lambda *_: None)  # its configurations are enough for a plan
    folder = shallow.shallow(name, tmp_path / name, 4)
    architecture = ARCHITECTURES[name]
    job = prepare(folder, Options(), outline=True)
    whole = small_files(architecture, tiny=False)[architecture.config]
    assert job.spec.vision is None or job.spec.vision.used_depth in (3, 4)  # LLaVA's last layer has no use
    if job.spec.decoder is not None:
        assert job.spec.decoder.layers == 4
        assert job.spec.decoder.hidden == whole["text_config"]["hidden_size"]
        assert job.spec.decoder.delta_net is None or len(job.spec.decoder.linear_layers) == 3


def test_what_has_fewer_layers_stays() -> None:
    text = {"layer_types": ["a", "b"], "num_hidden_layers": 9, "hidden": 5}
    found = shallow.cut({"depth": 2, "text_config": text}, 3)
    assert found == {"depth": 2, "text_config": {**text, "num_hidden_layers": 3}}


def test_a_row_says_how_far_off_a_plan_is() -> None:
    figures = [("memory", 1.0, 1.2), ("prefill", 1.29, 1.0), ("vision", 1.31, 1.0), ("tokens/s", 1.0, 1.29),
               ("bundle, GB", 1.0, 1.0)]  # fmt: skip
    rows = [planned.Row("a", "int4", "", *figure) for figure in figures]
    assert [row.kept for row in rows] == [False, True, False, True, True]
    assert planned.summary(rows) == [
        "bundles: 1 of 1 within 3 %",
        "memory: 0 of 1 within 10 %",
        "times: 2 of 3 within 30 %",
    ]
