"""Whether drafts leave answers as they are, how many are right, and what they save, with questions to a trained model.

python tests/benchmarks/exact_drafts.py BUNDLE [--questions 500] [--threads 1]

BUNDLE is made of tests/tiny_vlm/qwen3_5 or llava. Each question is answered twice, with and without drafts, in two
models of their own; an answer with other tokens ends the script with exit code 1.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensmith.runtimes import Model, user_message
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.generation.answer import Answer
from PIL import Image
from rich.console import Console
from rich.table import Table

HELDOUT = Path(__file__).parents[1] / "tiny_vlm" / "heldout_long"
LONGEST = 160  # tokens of an answer


@dataclass
class Found:
    """Sums over the questions of a task."""

    questions: int = 0
    other: int = 0  # answers that drafts changed
    tokens: int = 0
    drafted: int = 0
    right: int = 0
    plain_ms: float = 0.0
    drafted_ms: float = 0.0

    def add(self, plain: Answer, drafted: Answer) -> None:
        self.questions += 1
        self.other += drafted.ids != plain.ids
        self.tokens += plain.timings.new_tokens
        self.drafted += drafted.timings.drafted_tokens
        self.right += drafted.timings.accepted_tokens
        self.plain_ms += plain.timings.decode_ms
        self.drafted_ms += drafted.timings.decode_ms

    def row(self) -> list[str]:
        share = f"{self.right / self.drafted:.1%}" if self.drafted else "-"
        speed = f"{self.plain_ms / self.drafted_ms:.2f}x" if self.drafted_ms else "-"
        counts = (self.questions, self.other, self.tokens, self.drafted, self.right)
        return [*map(str, counts), share, speed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    drafting, plain = (Model(open_bundle(args.bundle), threads=args.threads, context=1024) for _ in range(2))
    found: dict[str, Found] = defaultdict(Found)
    for task, question in questions(args.questions):
        one, other = (answered(model, question, draft) for model, draft in ((drafting, True), (plain, False)))
        for name in (task, "all"):
            found[name].add(other, one)
    table = Table("task", "questions", "other answers", "tokens", "drafted", "right", "share", "speed")
    for name in sorted(found, key=lambda name: name == "all"):
        table.add_row(name, *found[name].row())
    Console().print(table)
    raise SystemExit(found["all"].other > 0)


def questions(count: int) -> Iterator[tuple[str, Any]]:
    """Some of the held-out questions, evenly over all tasks."""
    rows = [json.loads(line) for line in (HELDOUT / "tasks.jsonl").read_text().splitlines()]
    for index in range(count):
        row = rows[index * len(rows) // count]
        yield row["task"], user_message(row["prompt"], [Image.open(HELDOUT / image) for image in row["images"]])


def answered(model: Model, question: Any, draft: bool) -> Answer:
    """A whole answer."""
    answer = model.generate([question], max_new_tokens=LONGEST, draft=draft)
    answer.read()
    return answer


if __name__ == "__main__":
    main()
