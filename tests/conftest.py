"""What several test files use: a tiny checkpoint of random weights, its bundle, and the command line in-process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.extras import Ran

pytest.register_assert_rewrite("tests.ladder")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ml_dtypes", reason="needs lensmith[export]")
    from lensmith.exporters.synth import synth

    return synth("qwen3-vl-2b", tmp_path_factory.mktemp("checkpoint") / "tiny", tiny=True)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int4 bundle without golden traces."""
    from lensmith.exporters.export import Options, export, prepare

    return export(prepare(tiny_checkpoint, Options()), tmp_path_factory.mktemp("int4") / "bundle", golden="never").path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run `lensmith` with some arguments."""
    from lensmith.exporters.cli.app import run

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return command
