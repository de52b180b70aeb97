"""Answers of trained models on an emulated Arm processor and on this machine, token for token.

    python -m tests.arm.answers qwen3_vl --count 200 [--processor cortex-a76]

Takes hours of one core for a few hundred questions, and goes on where it was stopped; LENSMITH_NATIVE holds on both
sides. Exit code 1 where an answer differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from lensmith.exporters.pipeline import Options, export, prepare

from tests.arm.emulator import PROCESSORS, run
from tests.arm.root import HOME, arm_root
from tests.paths import TINY

HELDOUT = TINY / "heldout"
ASK = Path(__file__).with_name("ask.py")


def main() -> None:
    """Ask on both sides and print how many answers are equal, and those that are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder of tests/tiny_vlm")
    parser.add_argument("--count", type=int, default=200, help="of the 800 held-out questions, spread over all tasks")
    parser.add_argument("--processor", choices=PROCESSORS, default="max")
    parser.add_argument("--precision", default="int4")
    given = parser.parse_args()
    native = os.environ.get("LENSMITH_NATIVE", "1")
    folder = HOME / "answers" / f"{given.model}-{given.precision}-{given.count}"
    bundle = folder / "bundle"
    if not bundle.is_dir():
        export(prepare(TINY / given.model, Options(precision=given.precision)), bundle, golden="never")
    tasks = write_tasks(folder / "tasks.jsonl", given.count)
    here, there = folder / f"here-{native}.jsonl", folder / f"{given.processor}-{native}.jsonl"
    subprocess.run([sys.executable, ASK, bundle, tasks, here], check=True)
    run(arm_root(), given.processor, [ASK, bundle, tasks, there], LENSMITH_NATIVE=native)
    sys.exit(compare(tasks, here, there))


def write_tasks(path: Path, count: int) -> Path:
    """Every n-th of the held-out questions, with whole paths of images."""
    lines = (HELDOUT / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    tasks = [json.loads(line) for line in lines[:: max(1, len(lines) // count)][:count]]
    texts = [json.dumps({**task, "images": [str(HELDOUT / name) for name in task["images"]]}) for task in tasks]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def compare(tasks: Path, here: Path, there: Path) -> int:
    """Print how many lines of token ids are equal and where others part; 1 where there are such."""
    texts = [path.read_text(encoding="utf-8").splitlines() for path in (tasks, here, there)]
    rows = list(zip(*texts, strict=True))
    different = [row for row in rows if row[1] != row[2]]
    for task, ours, theirs in different:
        print(f"{json.loads(task)['prompt']}\n  here  {ours}\n  there {theirs}")
    print(f"{len(rows) - len(different)} of {len(rows)} answers are the same tokens")
    return 1 if different else 0


if __name__ == "__main__":
    main()
