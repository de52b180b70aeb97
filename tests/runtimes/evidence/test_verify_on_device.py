"""On the device: a bundle gives what it gave when it was built, to the bit where the same kernels compute it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.bundle.opening import MANIFEST, open_bundle
from lensmith.runtimes.engines.arithmetic import arithmetic, processor
from lensmith.runtimes.engines.native import wanted_kernels
from lensmith.runtimes.evidence import verification as module
from lensmith.runtimes.evidence.built import (
    FLOOR,
    OVERALL,
    RECORD,
    ROW,
    SAMPLES,
    AgainstBuilt,
    Built,
    Run,
    Spread,
    digest,
    read_built,
    sample,
    spread,
)
from lensmith.runtimes.evidence.outputs import Output
from lensmith.runtimes.evidence.replay import Row
from lensmith.runtimes.evidence.verification import VerifyReport, verify
from lensmith.runtimes.storage.files import dump_json
from lensmith.targets.errors import InputError

from tests.helpers import ladder
from tests.helpers.sealing import seal, seal_as_built
from tests.paths import TINY

Change = Callable[[Any], None]
TRAINED = TINY


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ladder.need_torch()
    short = Options(context=200)  # holds two of the conversations
    return export(prepare(TRAINED / "qwen3_5", short), tmp_path_factory.mktemp("int4") / "bundle").path


@pytest.fixture
def copy(int4: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int4, tmp_path / "copy"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that the record knows nothing of."""
    monkeypatch.setattr(module, "arithmetic", lambda *_, **how: None)


def edit(bundle: Path, graph: str, ending: str, change: Change, sealed: Callable[[Path], None] = seal_as_built) -> None:
    """Change the stored values of the first tensor whose name ends so."""
    named = ir.load(bundle / f"{graph}.onnx").graph.initializers
    tensor = next(value.const_value for name, value in named.items() if name.endswith(ending))
    assert isinstance(tensor, ir.ExternalTensor)
    shape = tuple(tensor.shape.numpy())
    values = np.memmap(bundle / f"{graph}.data", tensor.dtype.numpy(), "r+", tensor.offset or 0, shape)
    change(values.reshape(-1))
    values.flush()
    sealed(bundle)


def scale(factor: float, count: int | None = None) -> Change:
    def change(values: Any) -> None:
        values[:count] *= values.dtype.type(factor)

    return change


def add(amount: float, count: int | None = None) -> Change:
    def change(values: Any) -> None:
        values[:count] += amount

    return change


def move(count: int) -> Change:
    """Move 4-bit integers by one step, two in each byte."""

    def change(values: Any) -> None:
        values[: max(1, count // 2)] ^= 0x11 if count > 1 else 0x01

    return change


@pytest.mark.parametrize(("native", "threads"), [(None, None), (False, None), (None, 1), (False, 3)])
def test_a_fresh_bundle_passes(int4: Path, native: bool | None, threads: int | None) -> None:
    report = verify(int4, threads=threads, native=native)
    assert report.passed, report.summary()
    assert not report.exact


def test_a_fresh_bundle_passes_elsewhere(int4: Path, elsewhere: None) -> None:
    for native in (None, False):
        report = verify(int4, native=native)
        assert report.passed, report.summary()
        overall = [row for row in report.rows if row.case == "all cases"]
        assert {row.output.split(":")[0] for row in overall} == {"vision_encoder", "decoder", "mtp"}


@pytest.mark.parametrize(
    ("graph", "ending", "change", "native"),
    [
        ("decoder", "mlp.down_proj.weight.values", move(1), None),
        ("decoder", "mlp.down_proj.weight.values", move(8192), False),
        ("decoder", "mlp.down_proj.weight.scales", scale(1.001, 1), False),
        ("decoder", "layernorm.weight", scale(1.01, 1), None),  # less may turn no rounding of its channel
        ("mtp", "mlp.down_proj.weight.scales", scale(1.001, 1), None),
        ("mtp", "fc.weight.values", move(1), False),
        ("vision_encoder", "qkv.weight.scales", scale(1.001, 1), None),
        ("vision_encoder", "merger.linear_fc2.bias", add(1e-4, 1), None),
    ],
)
def test_the_same_kernels_notice_every_change(
    copy: Path, graph: str, ending: str, change: Change, native: bool | None
) -> None:
    edit(copy, graph, ending, change)
    report = verify(copy, native=native)
    assert not report.passed
    assert report.first_divergence is not None
    assert report.first_divergence.output.startswith(graph)
    assert "not the bits" in report.summary()


@pytest.mark.parametrize(
    ("graph", "ending", "change"),
    [
        ("decoder", "mlp.down_proj.weight.values", move(8192)),
        ("decoder", "embed_tokens.weight.values", move(8192)),
        ("decoder", "mlp.down_proj.weight.scales", scale(1.2)),
        ("mtp", "fc.weight.scales", scale(1.5)),
        ("vision_encoder", "qkv.weight.scales", scale(1.2)),
        ("vision_encoder", "merger.linear_fc2.bias", add(0.6)),
    ],
)
def test_other_kernels_notice_what_is_more_than_rounding(
    copy: Path, elsewhere: None, graph: str, ending: str, change: Change
) -> None:
    edit(copy, graph, ending, change)
    report = verify(copy)
    assert not report.passed
    assert any(not row.passed and row.output.startswith(graph) for row in report.rows)


@pytest.mark.parametrize(
    ("graph", "ending", "change"),
    [
        ("decoder", "mlp.down_proj.weight.values", move(1)),
        ("decoder", "layernorm.weight", scale(1.0001, 1)),
        ("vision_encoder", "qkv.weight.scales", scale(1.001, 1)),
    ],
)
def test_files_of_another_build_are_noticed_whatever_computes_them(
    copy: Path, elsewhere: None, graph: str, ending: str, change: Change
) -> None:
    edit(copy, graph, ending, change, seal)
    report = verify(copy, native=False)
    assert [row.output for row in report.rows if not row.passed] == [f"{graph}.data"]
    assert f"{graph}.data (settings): it is not what the bundle was built with" in report.summary()


def test_a_changed_graph_is_noticed_whatever_computes_it(copy: Path, elsewhere: None) -> None:
    model = ir.load(copy / "decoder.onnx")
    norm = next(node for node in model.graph if "epsilon" in node.attributes)
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1.1e-6)
    ir.save(model, copy / "decoder.onnx")
    seal(copy)
    assert not verify(copy).passed


SETTINGS: dict[str, tuple[str, str, str]] = {  # what the traces alone do not show
    "template": ("chat_template.jinja", "<tool_response>", "<tool_answer>"),
    "end tokens": (MANIFEST, '"eos_token_ids": [', '"eos_token_ids": [7, '),
    "context": (MANIFEST, '"context": 200', '"context": 201'),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_changed_settings_are_noticed(copy: Path, name: str) -> None:
    file, old, new = SETTINGS[name]
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    seal(copy)
    report = verify(copy)
    assert not report.passed
    assert report.first_divergence is not None
    assert report.first_divergence.figure == "settings_differ"
    assert "not what the bundle was built with" in report.summary()


def test_what_the_same_kernels_are(int4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(int4)
    here = arithmetic(bundle)
    assert here is not None
    assert here in read_built(bundle).digests
    assert arithmetic(bundle, threads=3) != here
    assert len(read_built(bundle).digests) == (2 if wanted_kernels() else 1)
    monkeypatch.setattr("onnxruntime.__version__", "0.0")
    assert arithmetic(bundle) != here
    assert arithmetic(bundle, device="cuda") == arithmetic(bundle)  # this one has no graphs for it


ENGINE = {"flavour": "tensorrt", "version": "0", "capabilities": [], "profiles": [{}]}


def test_gpus_promise_no_bits(int4: Path) -> None:
    bundle = open_bundle(int4)
    entries: list[dict[str, Any]] = [{"dialect": "cuda"}, {"engine": ENGINE}, {"plugin": {"profiles": [{}]}}]
    for entry in entries:
        graph = {**bundle.content["graphs"]["decoder"], **entry}
        made = type(bundle)(bundle.path, {**bundle.content, "graphs": {"decoder": graph}})
        assert arithmetic(made) is None
        assert (arithmetic(made, device="cpu") is None) == ("dialect" not in entry)


def test_processors_differ_by_model_and_by_instructions(tmp_path: Path) -> None:
    def of(text: str) -> str | None:
        file = tmp_path / f"cpuinfo{len(list(tmp_path.iterdir()))}"
        file.write_text(text)
        return processor(file)

    text = "vendor_id : A\nmodel name : B\nflags : avx2 fma\n\nvendor_id : A\n"
    assert of(text) == of(text)
    assert len({of(text), of(text.replace(": B", ": C")), of(text.replace("fma", "fma avx512f"))}) == 3
    assert of("nothing\n") is None
    assert processor(tmp_path / "missing") is None


def test_limits_follow_from_the_spread_of_the_build() -> None:
    assert Spread(0.01, 0.005).limits() == (ROW * 0.01, OVERALL * 0.005)
    assert Spread().limits() == (FLOOR, FLOOR)


def output(values: Any, index: int = 0) -> Output:
    return Output("case", "logits", index, np.asarray(values, np.float32))


def test_the_spread_is_the_largest_of_a_row_and_of_all() -> None:
    base = Run([output([0, 2], 0), output([0, 2], 1)])
    one, other = Run([output([0, 2], 0), output([0.3, 2.3], 1)]), Run([output([0.2, 2.2], 0), output([0.2, 2.2], 1)])
    found = spread(base, [one, other])
    assert found.keys() == {"decoder"}
    assert found["decoder"].row == pytest.approx(0.3)  # of the root mean square 1
    assert found["decoder"].overall == pytest.approx(0.3 / 2**0.5)  # more than the other's 0.2
    assert spread(base, [other])["decoder"].overall == pytest.approx(0.2)


def judge(found: Any, limits: Spread, *, expected: Any = (0, 2)) -> list[Row]:
    built = Built({}, {"case: decoder: logits at step 0": np.asarray(expected, np.float32)}, {"decoder": limits})
    against = AgainstBuilt(built, None)
    return [*against.rows(output(found)), *against.overall()]


def test_each_limit_can_fail_by_itself() -> None:
    assert [row.passed for row in judge([0.1, 2.1], Spread(0.03, 0.04))] == [True, True]
    assert [row.passed for row in judge([0.1, 2.1], Spread(0.02, 0.04))] == [False, True]
    assert [row.passed for row in judge([0.1, 2.1], Spread(0.03, 0.02))] == [True, False]
    far = judge([10, 14.4], Spread(0.04, 0.06), expected=(10, 14))  # 0.28 on average, and values are 2 from their mean
    assert [row.value for row in far] == pytest.approx([0.2 / 2**0.5] * 2)
    assert judge([5, 5.5], Spread(), expected=(5, 5))[0].value == pytest.approx(0.5 / 2**0.5)  # which has no spread
    for wrong in ([0, np.nan], [0, np.inf], [0, 2, 4]):
        assert [row.passed for row in judge(wrong, Spread(100.0, 100.0))] == [False, False]
    assert not any(row.passed for row in judge([0, 2], Spread(100.0, 100.0), expected=[]))  # it was not recorded


def test_hashes_are_of_all_bits_and_the_shape() -> None:
    values = np.arange(3000, dtype=np.float32).reshape(3, 1000)
    assert digest(values) == digest(values.copy())
    for change in (values.T, values.reshape(-1), np.nextafter(values, np.float32(1e9))):
        assert digest(change) != digest(values)
    last = values.copy()
    last[2, 999] = np.nextafter(last[2, 999], np.float32(0))
    assert digest(last) != digest(values)
    assert {int(value) % 8 for value in sample(values.reshape(-1, 8))} == set(range(8))  # of all columns
    assert len(sample(values)) <= 256
    assert sample(values)[-1] > 2900


def test_bundles_without_a_record_are_refused(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    for name in (RECORD, SAMPLES):
        (copy / name).unlink()
        del manifest["files"][name]
        (copy / MANIFEST).write_text(dump_json(manifest))
        with pytest.raises(InputError, match="older lensmith"):
            verify(copy)


def test_a_damaged_record_is_refused(copy: Path) -> None:
    (copy / RECORD).write_text('{"digests": [], "spread": {}}')
    seal(copy)
    with pytest.raises(InputError, match=r"record of .* cannot be read"):
        verify(copy)


def test_a_verdict_needs_every_row() -> None:
    good, bad = Row("c", "o", "f", 0.0, 1.0), Row("c", "o", "g", 2.0, 1.0, passed=False)
    assert VerifyReport("b", "r", False, (good, good)).passed
    for rows in ((bad, good), (good, bad)):
        report = VerifyReport("b", "r", False, rows)
        assert not report.passed
        assert report.first_divergence is bad
        assert "g is 2, limit 1" in report.summary()
