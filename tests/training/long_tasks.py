"""Tasks with answers of more than 80 tokens, square pictures for encoders that crop, and their held-out set.

Errors of a quantized recurrent state add up over an answer; short answers do not show it.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.training.drawing import HELDOUT_FONTS, WORDS, Item, Scene, draw_sized_shapes, random_size
from tests.training.scenes import (
    PLACES,
    TASKS,
    Example,
    Question,
    compare_example,
    copy_example,
    shapes_example,
    single_example,
    words_example,
    write_examples,
)

LONG_TASKS = ("describe", "recite")
ALL_TASKS = (*TASKS, *LONG_TASKS)
LONG_WORDS = (
    "Describe",
    "There",
    "small",
    "large",
    "at",
    "lines",
)  # of prompts and answers, besides those of the other tasks
SIDE = 112  # of square pictures, in pixels
LARGE = 20  # pixels; the sides of small shapes are at most 17, of large ones at least 23


def describe_example(rng: random.Random, side: int, level: float = 1.0, *, fewest: int = 2) -> Example:
    """A square picture of up to eight shapes and a sentence about each: 13 or 14 tokens."""
    scene = draw_sized_shapes(rng, side, level=level, fewest=fewest)
    text = " ".join(_sentence(item) for item in scene.items)
    return Example((scene,), (Question("describe", "Describe the picture.", text),))


def _sentence(item: Item) -> str:
    size = "large" if item.box[2] - item.box[0] > LARGE else "small"
    place = PLACES[item.row][item.col]
    return f"There is a {size} {item.colour} {item.name} at the {place} of the picture."


def recite_example(rng: random.Random, *, fewest: int = 20) -> Example:
    """A line of up to 90 words to say again, each once, with a few numbers among them."""
    words = rng.sample(WORDS, rng.randint(fewest, 90))
    line = " ".join(str(rng.randrange(10)) if rng.random() < 0.05 else word for word in words)
    return Example((), (Question("recite", f"Copy:\n{line}", line),))


def draw_rows(rng: random.Random, level: float, rows: dict[str, int], *, square: bool, hard: int = 0) -> list[Example]:
    """The examples of one training step: rows of each kind, of few picture sizes, which run through the tower together.

    Of square ones, one in four is drawn larger or smaller and scaled, as an encoder's resize would. `hard` asks up to
    so many more questions of the kinds that are learned last about each picture of shapes.
    """
    sides = [rng.choice((96, 112)) for _ in range(2)]
    sizes = [random_size(rng, level), random_size(rng, level), (sides[0], sides[0])]
    if square:
        sizes = [(SIDE, SIDE)] * 3 + [(rng.randint(100, 126),) * 2]
    examples = [
        *(words_example(rng, rng.choice(sizes), level) for _ in range(rows.get("words", 0))),
        *(shapes_example(rng, rng.choice(sizes), level, hard=hard) for _ in range(rows.get("shapes", 0))),
        *(
            compare_example(rng, rng.choice(sizes) if square else sizes[0], level, hard=hard)
            for _ in range(rows.get("compare", 0))
        ),
        *(copy_example(rng) for _ in range(rows.get("copy", 0))),
        *(
            describe_example(rng, rng.choice(sizes)[0] if square else sides[1], level)
            for _ in range(rows.get("describe", 0))
        ),
        *(recite_example(rng) for _ in range(rows.get("recite", 0))),
    ]
    examples = [example for example in examples if example.questions]
    return [scale_example(example) for example in examples] if square else examples


def scale_example(example: Example) -> Example:
    """The example with its pictures scaled to `SIDE`, where they are not."""
    return Example(tuple(_scale(scene) for scene in example.scenes), example.questions)


def _scale(scene: Scene) -> Scene:
    if scene.image.size == (SIDE, SIDE):
        return scene
    factor = SIDE / scene.image.width
    items = []
    for item in scene.items:
        left, top, right, bottom = (value * factor for value in item.box)
        letters = tuple((letter, x * factor) for letter, x in item.letters)
        items.append(Item(item.name, item.colour, item.row, item.col, (left, top, right, bottom), letters))
    image = scene.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return Scene(image, tuple(items), scene.rows, scene.cols)


def square_examples(task: str, count: int, seed: int = 1) -> list[Example]:
    """`count` held-out examples of any task with square pictures, and answers of more than 80 tokens to long ones."""
    rng = random.Random(f"heldout-square-{task}-{seed}")
    return [square_example(rng, task, HELDOUT_FONTS) for _ in range(count)]


def square_example(rng: random.Random, task: str, fonts: Sequence[str]) -> Example:
    """One of any task with a square picture, and an answer of more than 80 tokens to a long one."""
    if task == "recite":
        return recite_example(rng, fewest=82)
    if task == "describe":
        return describe_example(rng, _odd_side(rng)[0], fewest=7)
    return single_example(rng, task, fonts=fonts, draw_size=_odd_side)


def _odd_side(rng: random.Random) -> tuple[int, int]:
    """`SIDE`; one in four is some pixels off, so that the processor has to scale or to round it."""
    side = SIDE if rng.random() < 0.75 else rng.randint(104, 119)
    return side, side


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heldout", type=Path, required=True, metavar="DIR")
    folder = parser.parse_args().heldout
    write_examples(folder, ((task, square_examples(task, 100)) for task in ALL_TASKS))
