"""Answers questions and writes the token ids, a line each; goes on where an earlier run stopped.

Runs without lensmith's tests: python ask.py BUNDLE TASKS.jsonl IDS.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lensmith.runtimes import load, user_message


def main(bundle: Path, tasks: Path, out: Path) -> None:
    """Greedy answers of up to 32 tokens; paths of images are those of the tasks' lines."""
    lines = tasks.read_text(encoding="utf-8").splitlines()
    done = len(out.read_text(encoding="utf-8").splitlines()) if out.exists() else 0
    model = load(bundle, threads=2)
    with out.open("a", encoding="utf-8") as file:
        for task in map(json.loads, lines[done:]):
            answer = model.generate([user_message(task["prompt"], images=task["images"])], max_new_tokens=32)
            answer.read()
            print(json.dumps(list(answer.ids)), file=file, flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
