"""Runs one contender in a process of its own and gives its result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ...runtimes.process.lifeline import lifeline
from ...runtimes.storage.files import read_json, write_json
from ...targets.errors import InputError, LensmithError
from ..progress import Progress
from .contender import Assignment
from .tensor_outcomes import Result

OTHER_PROGRAM = Path(__file__).with_name("other_program.py")


def run_job(job: Assignment, folder: Path, progress: Progress) -> Result:
    """Run one contender in a new process and give its result."""
    folder.mkdir()
    write_json(folder / "job.json", asdict(job))
    command, environment = _command(job, folder / "job.json")
    with open(folder / "stderr", "w+b") as errors, lifeline() as line:
        process = subprocess.Popen(
            command, stdin=line, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            for stage, done, total in _progress_lines(process):
                progress(f"{job.name}: {stage}", done, total)
        finally:
            process.kill()  # it has ended unless this one was interrupted
            code = process.wait()
    result = read_json(folder / "result.json") if (folder / "result.json").is_file() else {}
    if code or "error" in result:
        raise job_failure(job.name, code, result, (folder / "stderr").read_text(encoding="utf-8", errors="replace"))
    return result


def _command(job: Assignment, path: Path) -> tuple[list[str], dict[str, str]]:
    """What runs a job, and in which environment: another program has a Python of its own."""
    if job.interpreter is None:
        return [sys.executable, "-P", "-m", "lensmith.exporters.comparing.contender", str(path)], job_environment()
    others = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return [job.interpreter, str(OTHER_PROGRAM), str(path)], others


def job_environment() -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def _progress_lines(process: subprocess.Popen[str]) -> Iterator[tuple[str, int, int]]:
    assert process.stdout is not None
    for line in process.stdout:
        try:
            stage, done, total = json.loads(line)
        except (ValueError, TypeError):
            continue  # a library printed to the process's own stdout
        yield stage, done, total
    process.wait()


def job_failure(name: str, code: int, result: Result, errors: str) -> LensmithError:
    if "error" in result:
        kind = InputError if code == InputError.exit_code else LensmithError
        return kind(f"{name}: {result['error']}")
    if code == -9:
        return LensmithError(f"{name} was killed by the system, most likely for want of memory; "
                             "close other programs, or compare fewer dtypes")  # fmt: skip
    last = errors.strip().splitlines()[-1:] or ["it printed nothing"]
    return LensmithError(f"{name} ended with exit code {code}: {last[0][:500]}")
