"""A matrix of builds: what it holds, that nothing is built twice, failures, interruptions, and its report."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from lensmith.exporters.matrix import matrix_run
from lensmith.exporters.matrix.cell_build import Built, CellJob, build_cell, content_key
from lensmith.exporters.matrix.matrix_file import Cell, read_matrix
from lensmith.exporters.matrix.matrix_run import local_builds, run_matrix
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.synth.making import synth
from lensmith.targets.errors import InputError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny checkpoints."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("qwen3-vl-2b", "vqwen3-4b"):
        synth(name, folder / name, tiny=True)
    return folder


def write(folder: Path, models: Path, text: str = "") -> Path:
    path = folder / "matrix.toml"
    listed = json.dumps([os.path.relpath(models / name, folder) for name in ("qwen3-vl-2b", "vqwen3-4b")])
    path.write_text(f'models = {listed}\ntargets = ["cpu", "cpu-any"]\nprecisions = ["int4"]\ngolden = "never"\n{text}')
    return path


def here(cells: Sequence[CellJob]) -> Iterator[Built]:
    return map(build_cell, cells)


def states(built: Sequence[Built]) -> list[str]:
    return [each.state for each in built]


def test_cells_are_all_that_is_not_skipped(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(
        'models = ["a", "b/c"]\ntargets = ["cpu", "mine.toml"]\nprecisions = ["int4", "int8"]\n'
        '[[skip]]\nmodel = "c"\nprecision = "int8"\n[[skip]]\ntarget = "mine.toml"\nmodel = "a"\n'
        '[compare]\ntasks = "t.jsonl"\nrepeats = 1\n'
    )
    found = read_matrix(path)
    folder = tmp_path.resolve()
    assert found.cells == (
        Cell(str(folder / "a"), "cpu", "onnx", "int4"),
        Cell(str(folder / "a"), "cpu", "onnx", "int8"),
        Cell(str(folder / "b/c"), "cpu", "onnx", "int4"),
        Cell(str(folder / "b/c"), str(folder / "mine.toml"), "onnx", "int4"),
    )
    assert [cell.name for cell in found.cells][-1] == "c-mine-onnx-int4"
    assert (found.out, found.compare.tasks) == (str(folder / "matrix"), str(folder / "t.jsonl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = []", "is no matrix of builds: .*`\\$.models`"),
        ("", "missing required field `models`"),
        ("models = 3", "is no matrix"),
        ("x", "is no matrix"),
        ('models = ["a"]\nmodel = 1', "unknown field `model`; expected models"),
        ('models = ["a"]\n[[skip]]\nmodel = "a"', "has 0 builds; expected 1 to"),
        ('models = ["a"]\n[compare]\nrepeats = 0', "repeats"),
    ],
)
def test_unusable_files_are_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_matrix(tmp_path / "m.toml")


def test_nothing_is_built_twice_and_failures_are_built_again(models: Path, tmp_path: Path) -> None:
    """An interruption leaves whole bundles, which the next run keeps; a cell that fails does not stop the others."""
    path = write(
        tmp_path, models, 'formats = ["onnx", "nonsense"]\n[[skip]]\nformat = "nonsense"\ntarget = "cpu-any"\n'
    )
    found = read_matrix(path)

    def interrupted(cells: Sequence[CellJob]) -> Iterator[Built]:
        yield from map(build_cell, cells[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_matrix(found, interrupted)
    first = run_matrix(found, here)
    assert states(first) == ["kept", "failed", "built", "built", "failed", "built"]
    assert "unknown format 'nonsense'" in first[1].failure
    again = run_matrix(found, here)
    assert states(again) == ["kept", "failed", "kept", "kept", "failed", "kept"]
    assert [each.sha256 for each in again] == [each.sha256 for each in first]
    record = tmp_path / "matrix" / "cells" / f"{first[0].name}.json"
    assert msgspec.json.decode(record.read_bytes(), type=Built) == again[0]
    places = {each.bundle for each in first if each.bundle}
    assert len(places) == 4
    assert {Path(place).name for place in places} == {each.name for each in Path(found.out).iterdir()} - {"cells"}


def test_the_key_is_of_all_that_a_bundle_depends_on(models: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(models / "qwen3-vl-2b", model)
    job = prepare(model, Options())
    key = content_key(job, "never")
    assert content_key(prepare(models / "qwen3-vl-2b", Options()), "never") == key  # wherever it lies
    others = [content_key(prepare(model, Options(**change)), "never") for change in
              ({"precision": "int8"}, {"target": "cpu-any"}, {"group_size": 32})]  # fmt: skip
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**config, "temperature": 0.25}))
    others += [content_key(job, "auto"), content_key(prepare(model, Options()), "never")]
    assert len({key, *others}) == 6


def test_processes_of_this_machine_give_the_same_bundles(models: Path, tmp_path: Path) -> None:
    """One ends by itself: its cell has failed."""
    found = msgspec.structs.replace(read_matrix(write(tmp_path, models)), targets=("cpu",))
    apart = run_matrix(found, local_builds(2))
    assert states(apart) == ["built", "built"]
    within = run_matrix(msgspec.structs.replace(found, out=str(tmp_path / "within")), here)
    assert [each.sha256 for each in within] == [each.sha256 for each in apart]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.executable", shutil.which("false"))
        (one,) = run_matrix(msgspec.structs.replace(found, models=found.models[:1]), local_builds(1))
    assert one.state == "failed"
    assert one.failure == "its process ended with exit code 1: it printed nothing"


def test_the_command_builds_reports_and_fails(cli: Any, models: Path, tmp_path: Path) -> None:
    path = write(tmp_path, models, "[compare]\nagainst = false\nrepeats = 1\nthreads = 1\n")
    lines = path.read_text().replace('"cpu", "cpu-any"', '"cpu", "warp"')
    path.write_text(lines)
    ran = cli("matrix", path, "--json", "--report", tmp_path / "r.json", "--markdown", tmp_path / "r.md")
    assert ran.code == 1
    assert "2 of 4 builds failed, qwen3-vl-2b-warp-onnx-int4: " in ran.err
    assert "run the command again to build what is missing" in ran.err
    assert [each["state"] for each in json.loads(ran.out)["cells"]] == ["built", "failed", "built", "failed"]
    figures = json.loads((tmp_path / "r.json").read_text())
    assert [entrant["model"] for entrant in figures["entrants"]] == ["qwen3-vl-2b", "vqwen3-4b"]
    assert figures["references"].keys() == {"qwen3-vl-2b", "vqwen3-4b"}
    assert all(entrant["measured"] for entrant in figures["entrants"])
    assert "qwen3-vl-2b-cpu-onnx-int4" in (tmp_path / "r.md").read_text()


def test_models_of_the_same_name_are_two(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text('models = ["a/final", "b/final"]')

    def failing(cells: Sequence[CellJob]) -> Iterator[Built]:
        return (Built(job.cell.name, job.cell, "failed", failure=job.cell.model) for job in reversed(cells))

    built = run_matrix(read_matrix(tmp_path / "m.toml"), failing)
    assert [each.name for each in built] == ["final-cpu-onnx-int4", "final-cpu-onnx-int4 (2)"]
    assert [Path(each.failure).parent.name for each in built] == ["a", "b"]
    assert len(list((tmp_path / "matrix" / "cells").iterdir())) == 2


def test_models_without_bundles_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing leaves a report of the others."""
    (tmp_path / "m.toml").write_text('models = ["there", "absent"]')
    found, opened, measured = read_matrix(tmp_path / "m.toml"), list[str](), list[str]()
    states = ((found.cells[0], "bundle"), (found.cells[1], ""))
    built = [Built(cell.name, cell, "built" if place else "failed", bundle=place) for cell, place in states]
    monkeypatch.setattr(matrix_run, "open_checkpoint", opened.append)
    monkeypatch.setattr(matrix_run, "grouped", lambda paths, *_, **__: paths)
    monkeypatch.setattr(matrix_run, "compare_groups", lambda paths, *_: measured.extend(paths))
    matrix_run.measure_matrix(found, built, "")
    assert ([Path(name).name for name in opened], measured) == (["there"], ["bundle"])


def test_what_cannot_be_measured_fails(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.toml").write_text('models = ["a"]\n[compare]\nagainst = false')
    (cell,) = read_matrix(tmp_path / "m.toml").cells
    lost = SimpleNamespace(name="a-int4", failure="it was killed")
    monkeypatch.setattr(matrix_run, "run_matrix", lambda *_: [Built(cell.name, cell, "built", bundle="bundle")])
    monkeypatch.setattr(matrix_run, "measure_matrix", lambda *_: SimpleNamespace(failed=[lost], bundles=()))
    ran = cli("matrix", tmp_path / "m.toml", "--fail-if", "size_mb>1")
    assert (ran.code, "1 could not be measured: a-int4: it was killed" in ran.err) == (1, True)


def test_a_cluster_without_ray_names_the_extra(cli: Any, models: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("Ray is installed")
    ran = cli("matrix", write(tmp_path, models), "--ray", "local")
    assert ran.code == 2
    assert "lensmith[ray]" in ran.err


@pytest.mark.skipif(not os.environ.get("LENSMITH_RAY_TESTS"), reason="takes minutes; set LENSMITH_RAY_TESTS=1")
def test_workers_of_ray_give_the_same_bundles_and_may_die(models: Path, tmp_path: Path) -> None:
    """The first worker that begins is killed; its cell is built by another one."""
    pytest.importorskip("ray")
    from lensmith.exporters.matrix import ray_builds

    found = read_matrix(write(tmp_path, models))
    apart = run_matrix(msgspec.structs.replace(found, out=str(tmp_path / "within")), here)
    mark = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_builds, "_build_as_json", dying(mark))
        built = run_matrix(found, ray_builds.ray_builds("local", 2))
    assert mark.exists()
    assert states(built) == ["built"] * 4
    assert [each.sha256 for each in built] == [each.sha256 for each in apart]
    assert states(run_matrix(found, ray_builds.ray_builds("local", 2))) == ["kept"] * 4


def dying(mark: Path) -> Any:
    """Builds a cell, but for the first call of all, which kills its process."""

    def build(cell: bytes) -> bytes:
        import signal

        from lensmith.exporters.matrix.cell_build import CellJob, build_cell

        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return msgspec.json.encode(build_cell(msgspec.json.decode(cell, type=CellJob)))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    return build
