"""Not a word to the network: no command opens a socket or writes outside its output, ONNX Runtime reports nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from lensmith.targets.telemetry import SWITCH, silence
from PIL import Image

from tests.helpers.extras import MAIN
from tests.helpers.watched import Watched, observers, watched

SYSTEM = (Path("/dev"), Path("/proc"))
PRINT = f"import os; print(os.environ.get({SWITCH!r}, 'unset'))"
FAKE = """
import types
fake = sys.modules["onnxruntime"] = types.ModuleType("onnxruntime")
fake.disable_telemetry_events = lambda: print("called")
import lensmith.targets.telemetry
"""


def outside(seen: Watched, allowed: Iterable[Path]) -> list[Path]:
    """What was written elsewhere than in some folders."""
    places = [place.resolve() for place in (*allowed, *SYSTEM)]
    return [file for file in seen.files if not any(file.resolve().is_relative_to(place) for place in places)]


def assert_silent(seen: Watched, folder: Path, code: int = 0) -> None:
    assert seen.code == code, seen.err
    assert not seen.sockets
    assert not outside(seen, [folder / "temp", folder / "out"])
    assert not [*(folder / "home").iterdir(), *(folder / "cwd").iterdir()]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "red.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(path)
    return path


COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", "BUNDLE", "Hi", "--image", "PICTURE", "--max-new-tokens", "3"),
    "chat": ("chat", "BUNDLE"),
    "inspect": ("inspect", "BUNDLE", "--tensors"),
    "targets": ("targets",),
    "plan": ("plan", "CHECKPOINT"),
    "synth": ("synth", "qwen3-vl-2b", "--tiny", "-o", "OUT/checkpoint"),
    "export": ("export", "CHECKPOINT", "-o", "OUT/bundle", "--golden", "never"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_silent_command(tiny_checkpoint: Path, tiny_bundle: Path, picture: Path, tmp_path: Path, name: str) -> None:
    places = {"BUNDLE": str(tiny_bundle), "CHECKPOINT": str(tiny_checkpoint), "PICTURE": str(picture)}
    (tmp_path / "out").mkdir()
    arguments = [places.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in COMMANDS[name]]
    assert_silent(watched(observers()[0], tmp_path, *arguments), tmp_path)


def test_silent_with_pytorch(tiny_checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    """Golden traces and a comparison load the checkpoint with transformers; verify replays them."""
    pytest.importorskip("transformers")
    bundle = tmp_path / "out" / "bundle"
    export = ("export", tiny_checkpoint, "-o", bundle, "--golden", "always")
    compare = ("compare", bundle, "--against", tiny_checkpoint, "--image", picture, "--repeats", "1",
               "--dtype", "fp32", "--html", tmp_path / "out" / "report.html")  # fmt: skip
    for command in (export, ("verify", bundle), compare):
        seen = watched(observers()[0], tmp_path, *command)
        assert_silent(seen, tmp_path)


def test_silent_as_a_library(tiny_bundle: Path, tmp_path: Path) -> None:
    code = "from lensmith.runtimes import load; load(sys.argv[1]).ask('Hi'); print('loaded')"
    seen = watched(observers()[0], tmp_path, tiny_bundle, code=code)
    assert_silent(seen, tmp_path)
    assert "loaded" in seen.out


@pytest.mark.parametrize("observer", observers())
def test_observers_see(tmp_path: Path, observer: str) -> None:
    code = "import socket; socket.socket(); open('a', 'w'); open('b', 'a+b'); import os; os.mkdir('c')"
    seen = watched(observer, tmp_path, code=code)
    assert len(seen.sockets) == 1
    assert {file.name for file in seen.files} >= {"a", "b", "c"}
    assert {file.name for file in outside(seen, [tmp_path / "temp"])} >= {"a", "b", "c"}


def test_commands_need_no_network(tiny_bundle: Path) -> None:
    """In a network namespace that holds nothing, not even a loopback device that is up."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system gives no network namespaces; the other tests watch the sockets")
    command = [unshare, "-rn", sys.executable, "-c", "import sys;" + MAIN, "run", str(tiny_bundle), "Hi"]
    ran = subprocess.run([*command, "--max-new-tokens", "2"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("module", ["lensmith.runtimes", "lensmith.exporters", "lensmith.calibration", "lensmith.cli"])
@pytest.mark.parametrize(
    ("given", "left"),
    [(None, "1"), ("", "1"), ("1", "1"), ("true", "true"), ("0", "0"), ("false", "false"), ("off", "off")],
)
def test_reports_are_off_unless_wanted(module: str, given: str | None, left: str) -> None:
    # ONNX Runtime is blocked, for its import would report
    code = f"import sys; sys.modules['onnxruntime'] = None\ntry: import {module}\nexcept ImportError: pass\n{PRINT}"
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    environment |= {} if given is None else {SWITCH: given}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == left


@pytest.mark.parametrize(("given", "left"), [(None, "1"), ("0", "0")])
def test_the_hub_is_told_nothing_either(given: str | None, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    if given is not None:
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", given)
    silence()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == left


def test_early_import_of_onnxruntime_is_noticed(tmp_path: Path) -> None:
    warned = watched("audit", tmp_path, code=FAKE + PRINT)
    assert warned.out.split() == ["called", "1"]
    assert "imported before lensmith" in warned.err
    for chosen in ("1", "0"):
        quiet = watched("audit", tmp_path, code=FAKE + PRINT, **{SWITCH: chosen})
        assert (quiet.out.split(), quiet.err) == ([chosen], "")
