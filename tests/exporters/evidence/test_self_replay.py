"""How a build finds what other kernels may differ by: the ways it runs a bundle in, and the noise in one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import onnx_ir as ir
import pytest
from lensmith.exporters.evidence import golden, proof, recording, self_replay
from lensmith.exporters.evidence.golden_media import FILES, sources
from lensmith.exporters.evidence.nudging import (
    FLOAT_NOISE,
    HALF_NOISE,
    NOISE,
    noise_of,
    nudged,
    nudged_norms,
)
from lensmith.exporters.evidence.own_traces import _asked, _cut
from lensmith.exporters.evidence.recording import CONVERSATIONS
from lensmith.exporters.evidence.self_replay import Way, replayed, with_meant
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.engines.arithmetic import arithmetic
from lensmith.runtimes.engines.native import wanted_kernels
from lensmith.runtimes.evidence.built import (
    OVERALL,
    ROW,
    Built,
    Run,
    Spread,
)
from lensmith.runtimes.evidence.outputs import Output
from lensmith.runtimes.evidence.replay import EXACT, LLAMA_CPP, Row
from lensmith.runtimes.evidence.traces import Traces
from lensmith.runtimes.generation.model import Model
from lensmith.targets.errors import CheckFailed

from tests.helpers import contents
from tests.paths import TINY


def meant(*rows: Any) -> Run:
    return Run([Output("case", "logits", step, np.asarray(row, np.float32)) for step, row in enumerate(rows)])


def built(*rows: Any, spread: Spread) -> Built:
    return Built({}, meant(*rows).samples, {"decoder": spread})


def test_what_rounding_does_not_explain_is_refused() -> None:
    """Values 0 and 2 have the spread 1, so that an offset is its own share."""
    plain, off = [0, 2], [0.2, 2.2]
    enough = with_meant(built(plain, plain, spread=Spread(0.3 / ROW, 0.3 / OVERALL)), meant(off, plain), "x")
    assert enough.spread["decoder"].row == pytest.approx(0.2)
    assert enough.spread["decoder"].overall == pytest.approx(0.2 / 2**0.5)
    with pytest.raises(CheckFailed, match=r"case: decoder: logits at step 0 is off by 0.2 .* limit of 0.19;"):
        with_meant(built(plain, plain, spread=Spread(0.19 / ROW, 1.0)), meant(off, plain), "x")
    with pytest.raises(CheckFailed, match=r"all outputs of the decoder is off by 0.141 .* limit of 0.13;"):
        with_meant(built(plain, plain, spread=Spread(1.0, 0.13 / OVERALL)), meant(off, plain), "x")
    with pytest.raises(CheckFailed, match="off by inf"):
        with_meant(built(plain, spread=Spread(1.0, 1.0)), meant([np.nan, 0]), "x")
    wide = with_meant(built(plain, spread=Spread(0.5, 0.4)), meant(off), "x")
    assert wide.spread["decoder"] == Spread(0.5, 0.4)


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_limits_are_of_each_graph_and_its_noise(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs(_: Any, __: Any, way: Way) -> Iterator[Output]:
        yield Output("case", "logits", 0, np.array([0, 2 + 1e-4 * bool(way.noise)], np.float32))
        yield Output("case", "image_features", 0, np.array([0, 2], np.float32))

    graphs: dict[str, Any] = {"decoder": {}, "vision_encoder": {}}
    twin: Any = SimpleNamespace(manifest=contents.manifest(graphs, options={"format": form}))
    traces: Any = None
    monkeypatch.setattr(proof, "replayed", outputs)
    limits = proof._limits(twin, traces, Run(outputs(0, 0, Way())))
    if form == "gguf":
        assert limits == {"decoder": LLAMA_CPP, "vision_encoder": LLAMA_CPP}
    else:
        assert limits == {"decoder": EXACT, "vision_encoder": proof.exactness(0.0)}
        assert proof.exactness(0.0).error < EXACT.error
    rows = iter([Row("case", "logits", "logits_error", 5e-5), Row("case", "features", "image_features_error", 2e-5)])
    monkeypatch.setattr(proof, "AgainstPyTorch", lambda _: SimpleNamespace(rows=lambda _: [next(rows)]))
    expected = (
        nullcontext() if form == "gguf" else pytest.raises(CheckFailed, match=r"features .case. is the first output")
    )
    with expected:  # of the graph that changes least
        proof._prove_graphs(twin, traces, "x")


def test_large_models_are_those_above_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "import_torch", lambda: None)
    most = golden.AUTO_BYTES // 4
    assert golden._reason_against(most, "auto") is None
    assert "PyTorch needs 2.0 GB" in str(golden._reason_against(most + 1, "auto"))
    assert golden._reason_against(most + 1, "always") is None
    assert "never" in str(golden._reason_against(1, "never"))


def test_means_of_rounding_are_of_all_steps() -> None:
    rows = [Row("c", "o", "logits_kl", 0.1), Row("c", "o", "step_logits_kl", 0.4), Row("c", "o", "logits_error", 9.0),
            Row("c", "o", "greedy_agreement", 0.5), Row("d", "o", "greedy_agreement", 1.0)]  # fmt: skip
    assert golden._means(rows) == {"mean_kl": 0.25, "same_token": 0.75}


def test_ways_are_lensmiths_kernels_without_them_and_with_noise(bundle: Bundle) -> None:
    first, *others = self_replay._ways(0.25)
    assert first == Way()
    assert others[-1] == Way(noise=0.25)
    assert (Way(native=False) in others) == bool(wanted_kernels())
    assert Way(native=False).options(bundle)["native"] is False


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("floats") / "bundle"
    made = export(prepare(TINY / "llava", Options(precision="fp32")), out, golden="never")
    (out / "golden").mkdir()
    (out / FILES[0]).write_bytes(sources()[FILES[0]])
    return Bundle(
        made.path, {**made.content, "files": {**made.content["files"], FILES[0]: {"size": 0, "sha256": "0" * 64}}}
    )


@pytest.fixture(scope="module")
def traces(bundle: Bundle) -> Traces:
    """Of one picture, of a conversation about it, and of one without pictures."""
    model = Model(bundle)
    pictures = {FILES[0]: None}
    cases = _asked(model, pictures, {name: CONVERSATIONS[name] for name in ("one image", "text only")})
    return Traces("x", (_cut(model, FILES[0], None),), cases)


def run(bundle: Bundle, traces: Traces, noise: float) -> dict[str, Any]:
    """Samples of the features and of each conversation's first logits."""
    samples = Run(replayed(bundle, traces, Way(noise=noise))).samples
    return {
        name.partition(":")[0]: values for name, values in samples.items() if "step" not in name or "step 0" in name
    }


@pytest.mark.parametrize("where", ["pixels", "norms"])
def test_noise_is_in_pixels_and_in_norms(
    bundle: Bundle, traces: Traces, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(bundle, traces, 0.0)
    if where == "pixels":
        monkeypatch.setattr(self_replay, "nudged_norms", lambda *_: nullcontext())
    else:
        monkeypatch.setattr(self_replay, "nudged_vision", lambda vision, _: vision)
    noisy = run(bundle, traces, 2.0**-10)
    changed = {name for name, values in plain.items() if not np.array_equal(values, noisy[name])}
    assert changed == ({FILES[0], "one image"} if where == "pixels" else {"one image", "text only"})
    for name in changed:
        off = np.sqrt(np.square(noisy[name] - plain[name]).mean()) / plain[name].std()
        assert 1e-6 < off < 0.05


def test_bits_are_recorded_of_runs_without_noise(
    bundle: Bundle, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_replay, "AgainstPyTorch", lambda _: SimpleNamespace(rows=lambda _: []))
    _, record = self_replay.self_replay(bundle, traces)
    line = arithmetic(bundle)
    assert line is not None
    assert record.digests[line] == Run(replayed(bundle, traces, Way())).digests
    assert all(spread.row > 0 for spread in record.spread.values())
    assert record.settings


def test_noise_goes_up_and_down_and_keeps_the_type() -> None:
    values = np.array([[1, -2, 3], [4, 5, 6]], np.float32)
    made = nudged(values, 0.5)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, values * np.array([1.5, 0.5, 1.5], np.float32))


def manifest(bits: int, dialect: str | None = None) -> Any:
    graph = {"dialect": dialect} if dialect else {}
    return SimpleNamespace(manifest=contents.manifest({"decoder": graph}, precision={"x": {"bits": bits}}))


def test_noise_is_as_large_as_activations_need() -> None:
    assert noise_of(manifest(32)) == noise_of(manifest(16)) == FLOAT_NOISE == 2.0**-20
    assert noise_of(manifest(4)) == NOISE == 2.0**-16
    assert noise_of(manifest(16, "cuda")) == noise_of(manifest(4, "cuda")) == HALF_NOISE == 2.0**-10


def vectors(path: Path) -> Iterator[Any]:
    """Norms of a decoder's file, read without this module."""
    if path.suffix == ".gguf":
        yield from (np.array(t.data) for t in gguf.GGUFReader(path).tensors if t.name.endswith("norm.weight"))
        return
    for name, value in ir.load(path).graph.initializers.items():
        if name.endswith("norm.weight") and value.const_value is not None:
            yield value.const_value.numpy().copy()


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_norms_are_as_before_behind_the_noise(form: str, bundle: Bundle, tmp_path: Path) -> None:
    made = bundle
    if form == "gguf":
        job = prepare(TINY / "llava", Options(format="gguf", precision="f16"))
        made = export(job, tmp_path / "bundle", golden="never")
    path = made.graph("decoder")
    files = [path, *([path.with_suffix(".data")] if form == "onnx" else [])]
    before, plain = [_hash(file) for file in files], [*vectors(path)]
    with nudged_norms(made, 0.25):
        inside = [*vectors(path)]
        changed = [file for file, old in zip(files, before, strict=True) if _hash(file) != old]
    assert changed == files[-1:]
    for old, new in zip(plain, inside, strict=True):
        np.testing.assert_array_equal(new, nudged(old, 0.25))
    assert len(plain) > 8
    assert [_hash(file) for file in files] == before
    with pytest.raises(ZeroDivisionError), nudged_norms(made, 0.25):
        raise ZeroDivisionError
    assert [_hash(file) for file in files] == before


def _hash(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def test_values_that_are_not_finite_fail_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "self_replay", lambda *_: ([Row("c", "o", "logits_error", float("inf"))], None))
    writer: Any = SimpleNamespace(preview=lambda _: None, out="bundle")
    with pytest.raises(CheckFailed, match=r"graphs of bundle give values that are not finite \(logits_error\)"):
        golden._replayed(Traces("x", (), ()), None, writer, {})


def test_recorded_answers_go_on_behind_their_end() -> None:
    class Prompt:
        ids = np.arange(5)

        def __len__(self) -> int:
            return len(self.ids)

    def greedy(_: Any, steps: int, *, ignore_eos: bool = False) -> Any:
        count = steps if ignore_eos else 1
        return SimpleNamespace(ids=[1] * count, logits=np.zeros((count, 20), np.float32))

    recorder: Any = SimpleNamespace(
        reference=SimpleNamespace(greedy=greedy), head=None, context=5 + recording.STEPS, sources={},
        theirs=SimpleNamespace(check_ids=lambda *_: None), request=lambda _: SimpleNamespace(prompt=Prompt()),
    )  # fmt: skip
    (case,) = recording._Recorder.case(recorder, "case", [{"role": "user"}])
    assert len(case.answer) == len(case.tops.ids) == recording.STEPS
    recorder.context -= 1
    assert not [*recording._Recorder.case(recorder, "case", [{"role": "user"}])]
