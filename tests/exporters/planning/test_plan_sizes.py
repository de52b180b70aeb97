"""Plans say how large bundles will be, golden traces among them: within 3 % of what is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.planning import golden_sizes
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.engines.llamacpp.header import read_gguf

from tests.paths import TINY

BUILDS = {
    "qwen3_vl int4": ("qwen3_vl", Options()),
    "qwen3_vl int2": ("qwen3_vl", Options(precision="int2", group_size=32)),
    "qwen3_vl that holds two of five conversations": ("qwen3_vl", Options(context=300)),
    "llava that holds none": ("llava", Options(context=60)),
    "qwen3_5 fp16": ("qwen3_5", Options(precision="fp16")),
    "qwen3_5 gguf": ("qwen3_5", Options(format="gguf", precision="q8_0")),
    "qwen3_5 for a Jetson": ("qwen3_5", Options(format="tensorrt", target="jetson-thor")),
    "llava int3": ("llava", Options(precision="int3")),
    "llava cuda": ("llava", Options(target="cuda")),
    "llava gguf": ("llava", Options(format="gguf", precision="f16")),
    "arlow": ("arlow-vision", Options(precision="int8")),
    "qwen2.5-vl int4": ("qwen2.5-vl-3b", Options(group_size=32)),
    "smolvlm int8": ("smolvlm2-500m", Options(precision="int8")),
}


@pytest.mark.parametrize("build", BUILDS)
def test_plans_are_as_large_as_what_is_built(build: str, tmp_path: Path) -> None:
    name, options = BUILDS[build]
    path = TINY / name if (TINY / name).exists() else synth(name, tmp_path / "checkpoint", tiny=True)
    job = prepare(path, options)
    plan, bundle = make_plan(job), export(job, tmp_path / "bundle", golden="auto")
    files = {file.relative_to(bundle.path): file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()}
    traces = sum(size for file, size in files.items() if file.parts[0] == "golden")
    assert plan.bundle_bytes == pytest.approx(sum(files.values()), rel=0.03)
    assert plan.component_bytes == dict(_components(bundle))
    assert plan.golden_bytes == pytest.approx(traces, rel=0.12)  # JSON, of which a tenth of the smallest is


def _components(bundle: Bundle) -> Iterator[tuple[str, int]]:
    """Bytes of the files of each graph; of a GGUF file those of its tensors."""
    for entry in bundle.manifest.graphs.values():
        path = bundle.path / entry.file
        if path.suffix == ".gguf":
            yield path.stem, sum(tensor.nbytes for tensor in read_gguf(path).tensors.values())
        else:
            yield path.stem, path.stat().st_size + path.with_suffix(".data").stat().st_size


def test_without_pytorch_traces_are_those_of_the_bundle_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of models that are too large for it."""
    job = prepare(TINY / "qwen3_vl", Options())
    monkeypatch.setattr(golden_sizes, "AUTO_BYTES", 4 * job.parameters)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    full = make_plan(job).golden_bytes
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    own = make_plan(job).golden_bytes
    assert 0 < own < full / 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(golden_sizes, "AUTO_BYTES", 4 * job.parameters - 1)
    assert make_plan(job).golden_bytes == own
