"""Turns pictures into questions with one right answer each, and writes the fixed held-out set."""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.training.drawing import (
    COLOURS,
    HELDOUT_FONTS,
    SHAPES,
    TRAIN_FONTS,
    WORDS,
    Item,
    Scene,
    draw_shapes,
    draw_words,
    random_size,
)

TASKS = ("read", "words", "colour", "count", "where", "compare", "list", "copy")
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}


@dataclass(frozen=True)
class Question:
    """A task's name, the text of the user's turn after the pictures, and the exact answer.

    What follows the answer in the same conversation is `later`: text that is given and the answer to it. With `thinks`,
    the answer begins with thoughts.
    """

    task: str
    prompt: str
    answer: str
    later: tuple[tuple[str, str], ...] = ()
    thinks: bool = False


@dataclass(frozen=True)
class Example:
    """No, one or two scenes and the questions about them; training asks all of them, the held-out set the first.

    `system` is the template's text before the user's turn.
    """

    scenes: tuple[Scene, ...]
    questions: tuple[Question, ...] = field(default=())
    system: str = ""

    @property
    def images(self) -> list[Image.Image]:
        """The pictures in the order in which they stand before the prompt."""
        return [scene.image for scene in self.scenes]


def ask_read(_: random.Random, scene: Scene) -> Question | None:
    """The word of a picture with one word."""
    return Question("read", "What word is written?", scene.items[0].name) if len(scene.items) == 1 else None


def ask_words(_: random.Random, scene: Scene) -> Question | None:
    """The words of a picture with several, line by line."""
    words = " ".join(item.name for item in scene.items)
    return Question("words", "Read all the words.", words) if len(scene.items) > 1 else None


def ask_colour(rng: random.Random, scene: Scene) -> Question | None:
    """The colour of the only shape of a kind."""
    single = _single_kinds(scene)
    if not single:
        return None
    kind = rng.choice(single)
    return Question("colour", f"What colour is the {kind}?", _find(scene, kind).colour)


def ask_count(rng: random.Random, scene: Scene, *, by_colour: bool = False) -> Question:
    """How many shapes, shapes of a kind, or shapes of a colour; now and then of a kind that is absent."""
    way = 1.0 if by_colour else rng.random()
    if way < 0.35:
        return Question("count", "How many shapes are there?", NUMBERS[len(scene.items)])
    present = rng.choice(scene.items)
    if way < 0.75:
        kind = present.name if rng.random() < 0.85 else rng.choice(SHAPES)
        number = sum(item.name == kind for item in scene.items)
        return Question("count", f"How many {PLURALS[kind]} are there?", NUMBERS[number])
    colour = present.colour if rng.random() < 0.85 else rng.choice(list(COLOURS))
    number = sum(item.colour == colour for item in scene.items)
    return Question("count", f"How many {colour} shapes are there?", NUMBERS[number])


def ask_where(rng: random.Random, scene: Scene) -> Question | None:
    """In which ninth of the picture a shape lies, or on which side of another shape."""
    single = _single_kinds(scene)
    if scene.rows == scene.cols == 3 and single and rng.random() < 0.7:
        item = _find(scene, rng.choice(single))
        return Question("where", f"Where is the {item.name}?", PLACES[item.row][item.col])
    if len(single) < 2:
        return None
    one, other = (_find(scene, kind) for kind in rng.sample(single, 2))
    if one.col != other.col and (one.row == other.row or rng.random() < 0.5):
        side = "left" if one.col < other.col else "right"
        return Question("where", f"Is the {one.name} left or right of the {other.name}?", side)
    side = "above" if one.row < other.row else "below"
    return Question("where", f"Is the {one.name} above or below the {other.name}?", side)


def ask_list(_: random.Random, scene: Scene) -> Question | None:
    """Every shape with its colour, in reading order."""
    listed = ", ".join(f"{item.colour} {item.name}" for item in scene.items)
    return Question("list", "List the shapes.", listed) if len(scene.items) > 1 else None


def ask_compare(rng: random.Random, first: Scene, second: Scene, *, easy: bool = True) -> Question | None:
    """Which of two pictures has more shapes, which is `easy`, or a certain shape, or whether both have a kind."""
    way = rng.randrange(3) if easy else rng.randint(1, 2)
    if way == 0 and len(first.items) != len(second.items):
        answer = "first" if len(first.items) > len(second.items) else "second"
        return Question("compare", "Which picture has more shapes?", answer)
    if way == 1:
        return _ask_which(rng, first, second)
    kinds = [{item.name for item in scene.items} for scene in (first, second)]
    asked = kinds[0] & kinds[1] if rng.random() < 0.5 else kinds[0] ^ kinds[1]
    if not asked:
        return None
    kind = rng.choice(sorted(asked))
    answer = "yes" if kind in kinds[0] & kinds[1] else "no"
    return Question("compare", f"Do both pictures show a {kind}?", answer)


def ask_copy(rng: random.Random) -> Question:
    """Ten to twenty-five words, a few of them numbers, to say again."""
    parts = rng.sample(WORDS, rng.randint(10, 25))
    parts = [str(rng.randrange(100)) if rng.random() < 0.12 else part for part in parts]
    line = " ".join(parts)
    return Question("copy", f"Copy:\n{line}", line)


def _ask_which(rng: random.Random, first: Scene, second: Scene) -> Question | None:
    pairs = [{(item.colour, item.name) for item in scene.items} for scene in (first, second)]
    only = sorted(pairs[0] ^ pairs[1])
    if not only:
        return None
    colour, kind = pair = rng.choice(only)
    return Question("compare", f"Which picture has the {colour} {kind}?", "first" if pair in pairs[0] else "second")


def _single_kinds(scene: Scene) -> list[str]:
    return [name for name, count in Counter(item.name for item in scene.items).items() if count == 1]


def _find(scene: Scene, kind: str) -> Item:
    return next(item for item in scene.items if item.name == kind)


Asker = Callable[[random.Random, Scene], Question | None]
SHAPE_ASKERS: dict[str, Asker] = {"colour": ask_colour, "count": ask_count, "where": ask_where, "list": ask_list}
SIDES = {"colour": 1, "count": 3, "where": 2, "list": 1}  # questions asked of one picture of shapes in training


def shapes_example(rng: random.Random, size: tuple[int, int], level: float = 1.0, *, hard: int = 0) -> Example:
    """One picture of shapes with about six different questions, and up to `hard` more that count a colour."""
    scene = draw_shapes(rng, size, level=level, most=rng.choice((4, 8)) if hard else 8)
    asked = [SHAPE_ASKERS[task](rng, scene) for task, times in SIDES.items() for _ in range(times)]
    asked += [ask_count(rng, scene, by_colour=True) for _ in range(hard)]
    return Example((scene,), tuple(dict.fromkeys(question for question in asked if question)))


def words_example(
    rng: random.Random, size: tuple[int, int], level: float = 1.0, *, count: int = 0, fonts: Sequence[str] = TRAIN_FONTS
) -> Example:
    """One picture of `count` words (by default one to four) with the one question of its number of words."""
    count = min(count or rng.choice((1, 2, 3, 4)), size[1] // 20)
    scene = draw_words(rng, size, count=count, fonts=fonts, level=level)
    asked = ask_read(rng, scene) or ask_words(rng, scene)
    return Example((scene,), (asked,) if asked else ())


def compare_example(rng: random.Random, size: tuple[int, int], level: float = 1.0, *, hard: int = 0) -> Example:
    """Two pictures of shapes, of the same size, with up to four questions.

    With `hard`, up to so many more about single shapes, which pictures of few of them teach best.
    """
    most = rng.choice((2, 3, 6)) if hard else 6
    first, second = (draw_shapes(rng, size, level=level, most=most) for _ in range(2))
    asked = [ask_compare(rng, first, second) for _ in range(4)]
    asked += [ask_compare(rng, first, second, easy=False) for _ in range(hard)]
    return Example((first, second), tuple(dict.fromkeys(question for question in asked if question)))


def copy_example(rng: random.Random, lines: int = 3) -> Example:
    """No picture, and `lines` lines to copy."""
    return Example((), tuple(ask_copy(rng) for _ in range(lines)))


def odd_size(rng: random.Random) -> tuple[int, int]:
    """Mostly a multiple of 16; one in four is a few pixels off, so that the processor has to round it."""
    width, height = random_size(rng)
    if rng.random() < 0.25:
        return width + rng.randint(-7, 7), height + rng.randint(-7, 7)
    return width, height


def single_example(
    rng: random.Random,
    task: str,
    *,
    fonts: Sequence[str] = TRAIN_FONTS,
    draw_size: Callable[[random.Random], tuple[int, int]] = odd_size,
) -> Example:
    """An example with exactly one question, of the task asked for."""
    if task == "copy":
        return copy_example(rng, 1)
    while True:
        size = draw_size(rng)
        if task in ("read", "words"):
            example = words_example(rng, size, count=1 if task == "read" else rng.randint(2, 4), fonts=fonts)
        else:
            example = compare_example(rng, size) if task == "compare" else shapes_example(rng, size)
        asked = [question for question in example.questions if question.task == task]
        if asked:
            return Example(example.scenes, (rng.choice(asked),))


def heldout_examples(task: str, count: int, seed: int = 1) -> list[Example]:
    """`count` examples of a task with fonts and seeds that training never uses."""
    rng = random.Random(f"heldout-{task}-{seed}")
    return [single_example(rng, task, fonts=HELDOUT_FONTS) for _ in range(count)]


def write_examples(folder: Path, examples_by_task: Iterable[tuple[str, list[Example]]]) -> None:
    """Writes `tasks.jsonl` with the first question of each example, and the pictures as optimized PNG files."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines, number = [], 0
    for task, examples in examples_by_task:
        for example in examples:
            names = []
            for image in example.images:
                number += 1
                names.append(f"images/{number:04d}.png")
                image.quantize(64).save(folder / names[-1], optimize=True)
            asked = example.questions[0]
            lines.append({"task": task, "images": names, "prompt": asked.prompt, "answer": asked.answer})
    (folder / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heldout", type=Path, required=True, metavar="DIR")
    folder = parser.parse_args().heldout
    write_examples(folder, ((task, heldout_examples(task, 100)) for task in TASKS))
