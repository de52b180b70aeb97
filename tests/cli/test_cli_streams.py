"""The command line in the real world: closed, full and unread streams, other encodings, Ctrl-C at any moment."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.targets.errors import InputError

from tests.helpers.extras import Ran

Cli = Callable[..., Ran]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="redirections of a POSIX shell")
CLI = (sys.executable, "-m", "lensmith.cli")
BRIEF = ("--max-new-tokens", "2", "--greedy")


def shell(
    *arguments: object, redirect: str = "", text: bytes | None = None, settings: Mapping[str, str] | None = None
) -> Ran:
    """Run a command of lensmith behind redirections of a shell, with `text` on standard input."""
    command = f"{shlex.join([*CLI, *map(str, arguments)])} {redirect}"
    given = subprocess.DEVNULL if text is None else subprocess.PIPE
    process = subprocess.Popen(
        ["sh", "-c", command],
        stdin=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(settings or {})},
    )
    out, err = process.communicate(text)
    return Ran(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def assert_refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert all(word in ran.err for word in words), ran.err


def test_bytes_that_are_not_utf8(tiny_bundle: Path, tmp_path: Path) -> None:
    wrong = os.fsdecode(b"caf\xe9")
    for arguments in (("run", tiny_bundle, wrong), ("plan", wrong), ("run", tiny_bundle, "Hi", "--image", wrong)):
        assert_refused(shell(*arguments), "caf", "is not UTF-8 text")
    for command in (("run", tiny_bundle, "-"), ("chat", tiny_bundle)):
        assert_refused(shell(*command, text=b"caf\xe9\n"), "byte 0xe9 at 3", "iconv")
    assert_refused(shell("run", tiny_bundle, "-", text=b"\xff\xfeH\0i\0"), "byte 0xff at 0")


def test_closed_streams(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for redirect in (">&-", "2>&-", "<&- >&- 2>&-"):
        ran = shell("run", tiny_bundle, "Hi", *BRIEF, redirect=redirect)
        assert (ran.code, ran.err) == (0, ""), redirect
    out = tmp_path / "bundle"
    assert shell("export", tiny_checkpoint, "-o", out, "--golden", "never", redirect="<&- >&- 2>&-").code == 0
    open_bundle(out, check="sha256")  # nothing was written into files that took the place of the streams
    for command in (("run", tiny_bundle, "-"), ("chat", tiny_bundle)):
        assert_refused(shell(*command, redirect="<&-"), "standard input is closed")
    assert shell("run", "nowhere", "Hi", redirect="2>&-").code == 2


def test_output_that_nobody_reads(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        for arguments, code in {
            ("run", tiny_bundle, "Hi", *BRIEF): 141,
            ("plan", tiny_checkpoint): 141,
            ("targets", "--json"): 141,
            ("--help",): 141,
            ("export", tiny_checkpoint, "-o", tmp_path / "bundle", "--golden", "never"): 0,
            ("synth", "qwen3-vl-2b", "--tiny", "-o", tmp_path / "checkpoint"): 0,
        }.items():
            command = [*CLI, *map(str, arguments)]
            ran = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
            assert (ran.returncode, ran.stderr) == (code, ""), arguments
        assert subprocess.run([*CLI, "run", "nowhere", "Hi"], stdout=closed, stderr=closed, check=False).returncode == 2
    open_bundle(tmp_path / "bundle", check="sha256")
    assert (tmp_path / "checkpoint" / "config.json").is_file()


def test_endless_input_ends_with_its_reader(tiny_bundle: Path) -> None:
    command = f"yes Hi | {shlex.join([*CLI, 'chat', str(tiny_bundle), *BRIEF])} | head -n 2"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert len(ran.stdout.splitlines()) == 2
    assert ran.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_full_output(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for arguments in (("run", tiny_bundle, "Hi", *BRIEF), ("plan", tiny_checkpoint), ("--help",)):
        assert_refused(shell(*arguments, redirect="> /dev/full"), "standard output: No space left")
    assert shell("run", tiny_bundle, "Hi", *BRIEF, redirect="2> /dev/full").code == 0
    exported = shell("export", tiny_checkpoint, "-o", tmp_path / "b", "--golden", "never", redirect="> /dev/full")
    assert_refused(exported, "standard output: No space left")
    open_bundle(tmp_path / "b", check="sha256")  # the work was finished


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/urandom"])
@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs an endless device")
def test_endless_standard_input(tiny_bundle: Path, source: str) -> None:
    wanted = "more than" if source == "/dev/zero" else "standard input"
    for command in (("run", tiny_bundle, "-"), ("chat", tiny_bundle)):
        assert_refused(shell(*command, redirect=f"< {source}"), wanted)


def test_other_encodings(tiny_bundle: Path, tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    question = ("run", tiny_bundle, "Grüße", *BRIEF, "--json")
    plain = json.loads(shell(*question).out)
    for settings in (ascii_only, {"PYTHONIOENCODING": "ascii"}, {"TERM": "dumb"}, {"COLUMNS": "wide"}):
        assert json.loads(shell(*question, settings=settings).out)["ids"] == plain["ids"]
    assert_refused(shell("run", "nöwhere", "Hi", settings=ascii_only), "cannot be written in ascii")
    told = shell("run", "nöwhere", "Hi", "--json", settings={"PYTHONIOENCODING": "ascii"})
    assert json.loads(told.out)["error"].startswith("nöwhere")  # escaped, not lost
    assert_refused(shell("plan", tmp_path / "ö", settings=ascii_only))
    assert shell("targets", settings={"HOME": ""}).code == 0
    no_home = subprocess.run(["env", "-i", *CLI, "run", tiny_bundle, "Hi", *BRIEF], capture_output=True, check=False)
    assert (no_home.returncode, no_home.stderr) == (0, b"")


def test_a_working_folder_that_is_gone(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"cd {tmp_path / 'gone'} && rmdir ../gone && {shlex.join([*CLI, 'run', str(tiny_bundle), 'Hi', *BRIEF])}"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    command = command.replace(str(tiny_bundle), "bundle")
    (tmp_path / "gone").mkdir()
    assert_refused(Ran(*_outcome(command)), "is not a bundle")


def _outcome(command: str) -> tuple[int, str, str]:
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout, ran.stderr


FAILURES: dict[str, tuple[str, ...]] = {
    "export": ("export", "nowhere", "-o", "OUT"),
    "plan": ("plan", "nowhere"),
    "build": ("build", "nowhere"),
    "run": ("run", "nowhere", "Hi"),
    "verify": ("verify", "nowhere"),
    "inspect": ("inspect", "nowhere"),
    "usage": ("run", "--unheard-of"),
    "targets": ("targets", "extra"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_json_too(cli: Cli, tmp_path: Path, name: str) -> None:
    arguments = [word.replace("OUT", str(tmp_path / "out")) for word in FAILURES[name]]
    ran = cli(*arguments, "--json")
    assert ran.code == 2
    told = json.loads(ran.out)
    assert told["exit_code"] == 2
    assert ran.err == f"error: {told['error']}\n"
    assert cli(*arguments).out == ""


def test_json_of_a_failed_comparison(cli: Cli, tmp_path: Path) -> None:
    arguments = ("compare", "nowhere", "--against", "nowhere", "--json")
    assert json.loads(cli(*arguments, "-").out)["exit_code"] == 2
    assert cli(*arguments, tmp_path / "figures.json").out == ""


def test_json_has_no_word_for_nan(capsys: pytest.CaptureFixture[str]) -> None:
    from lensmith.cli.screen import print_json

    print_json({"a": [float("nan"), 1.5], "b": (float("-inf"), "é")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": [None, "é"]}


# Sends the process the signal of Ctrl-C when some module is imported or some function called.
AT_IMPORT = """
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
plain = builtins.__import__
def stopped(name, *rest, **more):
    if name == {name!r} or name.endswith("." + {name!r}):
        builtins.__import__ = plain
        os.kill(os.getpid(), signal.SIGINT)
    return plain(name, *rest, **more)
builtins.__import__ = stopped
from lensmith.cli import main
main(sys.argv[1:])
"""


OF_RUN, OF_EXPORT = ("app", "click", "numpy", "onnxruntime", "tokenizers", "PIL"), ("onnx_ir", "onnx", "ml_dtypes")


@pytest.mark.parametrize("name", [*OF_RUN, *OF_EXPORT])
def test_ctrl_c_while_importing(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    exporting = ("export", tiny_checkpoint, "-o", tmp_path / "out", "--golden", "never")
    arguments = exporting if name in OF_EXPORT else ("run", tiny_bundle, "Hi")
    command = [sys.executable, "-c", AT_IMPORT.format(name=name), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("\n")) == (130, 1), ran.stderr
    assert ran.stderr.startswith("error: stopped")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("delay_s", [0.1, 0.3, 0.6, 1.0, 1.5])
def test_ctrl_c_at_any_moment(tiny_checkpoint: Path, tmp_path: Path, delay_s: float) -> None:
    """Behind the start of Python itself, which has no handler for it yet."""
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); print('up', flush=True); "
            "from lensmith.cli import main; main(sys.argv[1:])")  # fmt: skip
    command = [sys.executable, "-c", code, "synth", "qwen3-vl-2b", "-o", str(tmp_path / "out")]  # 4 GB: not soon done
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert (process.returncode, err.count("\n")) == (130, 1), err
    assert list(tmp_path.iterdir()) == []


def test_what_libraries_make_of_ctrl_c(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from lensmith.targets import profile

    def fail() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise InputError("the file is damaged") from error

    monkeypatch.setattr(profile, "target_names", fail)
    ran = cli("targets")
    assert (ran.code, ran.err[:14]) == (130, "error: stopped")


def test_an_existing_result_is_replaced_only_when_told(cli: Cli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    export = ("export", tiny_checkpoint, "--golden", "never", "-o")
    synth = ("synth", "qwen3-vl-2b", "--tiny", "-o")
    for command, again in ((export, "a bundle already"), (synth, "a checkpoint of lensmith synth already")):
        out = tmp_path / command[0]
        assert cli(*command, out).code == 0
        assert_refused(cli(*command, out), again, "--force")
        assert cli(*command, out, "--force").code == 0
        assert_refused(cli(*command, ""), "empty")
    for folder in (tiny_checkpoint, tiny_checkpoint.parent, tiny_checkpoint / "config.json", "/dev/null", "/"):
        assert_refused(cli(*export, folder, "--force"), "is not a bundle")
    assert (tiny_checkpoint / "config.json").is_file()


def test_export_into_the_current_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    command = shlex.join([*CLI, "export", str(tiny_checkpoint), "-o", ".", "--golden", "never"])
    ran = subprocess.run(["sh", "-c", f"cd {tmp_path / 'here'} && {command} > /dev/null && ls"], capture_output=True,
                         text=True, check=False)  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "lensmith.json" in ran.stdout.split()
    open_bundle(tmp_path / "here", check="sha256")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
