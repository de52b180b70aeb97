"""Draws samples to calibrate the tiny models on: `python tests/tiny_vlm/calibration_samples.py --out DIR [--long]`.

Fonts and seeds are those of neither held-out set. `--long` has square pictures and the tasks with long answers.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.tiny_vlm.drawing import TRAIN_FONTS
from tests.tiny_vlm.long_tasks import ALL_TASKS, square_example
from tests.tiny_vlm.scenes import TASKS, Example, single_example, write_examples


def examples(count: int, *, long: bool) -> Iterator[tuple[str, list[Example]]]:
    """`count` examples of each task."""
    for task in ALL_TASKS if long else TASKS:
        rng = random.Random(f"calibration-{task}")
        make = square_example if long else single_example
        yield task, [make(rng, task, fonts=TRAIN_FONTS) for _ in range(count)]


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=16, help="examples of each task")
    parser.add_argument("--long", action="store_true")
    args = parser.parse_args()
    write_examples(args.out, examples(args.count, long=args.long))


if __name__ == "__main__":
    main()
