"""Runs cases one after the other, as the command line would, and tells what became of each: JSON lines in and out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from lensmith.cli.app import run

from tests.fuzz.mutations import damage, mutate_bytes, restore

MEMORY_BYTES = 8 << 30  # of addresses
QUESTION = ("What is shown?", "--max-new-tokens", "2")


def main() -> None:
    """Serve until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # native libraries print there
        os.dup2(quiet, stream)
    work = Path(sys.argv[1])
    for line in sys.stdin:
        answers.write(json.dumps(_case(json.loads(line), work)) + "\n")
        answers.flush()


def _case(case: dict[str, Any], work: Path) -> dict[str, Any]:
    original, kind, seed = Path(case["original"]), case["kind"], case["seed"]
    folder = work / original.parent.name / original.name
    if not folder.exists():
        shutil.copytree(original, folder)
    started = time.process_time()
    if kind == "image":
        image = work / "image"
        draw = random.Random(f"image {seed}")
        data = Path(case["media"]).read_bytes()
        image.write_bytes(mutate_bytes(data, draw, first=draw.choice((64, 512, None))))
        code, told = _run("run", folder, *QUESTION, "--image", image)
    else:
        path = damage(kind, folder, seed)
        code, told = _run(*_command(kind, folder, original, work, case["media"]))
        restore(path, folder, original)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"code": code, "seconds": time.process_time() - started, "memory_kb": memory, "told": told[-300:]}


def _command(kind: str, folder: Path, original: Path, work: Path, image: str) -> tuple[object, ...]:
    """What reads the damaged file: as far as the first tokens, or the features of an encoder."""
    if kind == "config":
        return "plan", folder
    if kind == "golden":
        return "verify", folder
    manifest = json.loads((original / "lensmith.json").read_bytes())
    if "prompt" not in manifest:
        (work / "features.npz").unlink(missing_ok=True)
        return "run", folder, "--image", image, "-o", work / "features.npz"
    device = ("--device", "cpu") if manifest["graphs"]["decoder"].get("dialect") == "cuda" else ()
    return "run", folder, *QUESTION, *device, *(() if kind == "header" else ("--image", image))


def _run(*arguments: object) -> tuple[int, str]:
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        code = run([str(argument) for argument in arguments])
    return code, told.getvalue().strip()


if __name__ == "__main__":
    main()
