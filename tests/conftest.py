"""What several test files use: tiny checkpoints of random weights, a bundle, and the command line in-process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import lensmith.targets.telemetry  # noqa: F401  (tests import onnxruntime themselves)
import pytest
from hypothesis import Phase, settings

from tests.helpers.extras import Ran
from tests.helpers.slow import slow_tests

if TYPE_CHECKING:
    from tests.helpers.layered import Bench

pytest.register_assert_rewrite("tests.helpers.ladder")
settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate], database=None)  # no shrinking


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = tuple(slow_tests())
    for item in items:
        if item.nodeid.startswith(slow):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ml_dtypes", reason="needs lensmith[export]")
    from lensmith.exporters.synth.making import synth

    return synth("qwen3-vl-2b", tmp_path_factory.mktemp("checkpoint") / "tiny", tiny=True)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int4 bundle without golden traces."""
    from lensmith.exporters.pipeline import Options, export, prepare

    return export(prepare(tiny_checkpoint, Options()), tmp_path_factory.mktemp("int4") / "bundle", golden="never").path


@pytest.fixture(scope="session", autouse=True)
def _no_tunings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody's own tunings count in tests."""
    from lensmith.runtimes.tuning import tuned_files

    folder = tmp_path_factory.mktemp("cache") / "tuned"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned_files, "tuned_folder", lambda: folder)
        yield


@pytest.fixture
def tunings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tunings of one test."""
    from lensmith.runtimes.tuning import tuned_files

    folder = tmp_path / "cache" / "tuned"
    monkeypatch.setattr(tuned_files, "tuned_folder", lambda: folder)
    return folder


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run `lensmith` with some arguments."""
    from lensmith.cli.app import run

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    """Makes a small checkpoint of a family with samples, once."""
    from tests.helpers.layered import make_bench, small, write_samples

    @cache
    def make(name: str) -> Bench:
        folder = tmp_path_factory.mktemp("family")
        return make_bench(small(name, folder), folder, write_samples(folder / "samples"))

    return make


@pytest.fixture
def bench(request: pytest.FixtureRequest, benches: Callable[[str], Bench]) -> Bench:
    """That of the family that a test is parametrized with."""
    return benches(request.param)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Callable[[str], Path]:
    """Makes a bundle of random weights of each kind, once: an architecture in int4, or a format of Qwen3-VL."""
    from lensmith.exporters.pipeline import Options, export, prepare
    from lensmith.exporters.synth.making import synth

    chosen = {
        "arlow-vision": Options(precision="int8"),
        "gguf": Options(format="gguf", precision="f16"),
        "tensorrt": Options(format="tensorrt", target="rtx", precision="fp32"),
        "plugin": Options(format="tensorrt", target="rtx-plugin"),
    }
    formats = ("gguf", "tensorrt", "plugin")

    @cache
    def checkpoint(name: str) -> Path:
        return synth(name, tmp_path_factory.mktemp("checkpoint") / name, tiny=True)

    @cache
    def make(kind: str) -> Path:
        if kind == "qwen3-vl-2b":
            return tiny_bundle
        job = prepare(checkpoint("qwen3-vl-2b" if kind in formats else kind), chosen.get(kind, Options()))
        return export(job, tmp_path_factory.mktemp(kind) / "bundle", golden="never").path

    return make
