"""Draws samples to calibrate the tiny models on.

    python tests/training/calibration_samples.py --out DIR [--long]                              all tasks with answers
    python tests/training/calibration_samples.py --out DIR --count 5 --pictures                  pictures without words
    python tests/training/calibration_samples.py --out DIR --count 90 --task colour --questions  questions alone

Fonts and seeds are those of neither held-out set. `--long` has square pictures and the tasks with long answers.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.training.drawing import TRAIN_FONTS
from tests.training.long_tasks import ALL_TASKS, square_example
from tests.training.scenes import TASKS, Example, single_example, write_examples


def examples(tasks: list[str], count: int, *, long: bool) -> Iterator[tuple[str, list[Example]]]:
    """`count` examples of each task."""
    for task in tasks:
        rng = random.Random(f"calibration-{task}")
        make = square_example if long else single_example
        yield task, [make(rng, task, fonts=TRAIN_FONTS) for _ in range(count)]


def without_answers(file: Path) -> None:
    """Leave the questions of a tasks file."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    asked = [{key: value for key, value in row.items() if key != "answer"} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=16, help="examples of each task")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--task", choices=ALL_TASKS, help="this task alone")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--questions", action="store_true", help="without the answers")
    words.add_argument("--pictures", action="store_true", help="without questions and answers")
    args = parser.parse_args()
    every = ALL_TASKS if args.long else TASKS
    write_examples(args.out, examples([args.task] if args.task else list(every), args.count, long=args.long))
    if args.questions:
        without_answers(args.out / "tasks.jsonl")
    if args.pictures:
        (args.out / "tasks.jsonl").unlink()


if __name__ == "__main__":
    main()
