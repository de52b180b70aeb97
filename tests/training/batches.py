"""Packs examples into training batches: pictures by size, questions side by side, and what lies under each token.

A row is one example: its pictures once, then all its questions. Each question sees the pictures and itself, never
another question, and its positions start right after the pictures; so every question is trained as if it were alone.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tests.training.drawing import COLOURS, SHAPES, WORDS, Scene, random_size
from tests.training.scenes import TASKS, Example, compare_example, copy_example, shapes_example, words_example

CELL = 16  # pixels under one image token
IGNORED = -100
SHAPE_CLASSES = {(name, colour): i for i, (name, colour) in enumerate((n, c) for n in SHAPES for c in COLOURS)}
CLASSES = {"": 0, **{word: 1 + i for i, word in enumerate(WORDS)}}
CLASS_COUNT = 1 + len(WORDS) + len(SHAPE_CLASSES)
MARKS = 27  # a to z, and the centre of a shape
PLACES, MOST = 9, 8  # ninths of a picture, shapes in a picture
ROWS = {"words": 9, "shapes": 10, "compare": 3, "copy": 1}  # of each worker


@dataclass(frozen=True)
class Batch:
    """Tensors of one step; B rows, S tokens, I image tokens in the order of the rows."""

    pictures: list[Tensor]  # one [n, 3, height, width] for each picture size
    order: Tensor  # [I]: where in the pictures' concatenated tokens each image token of the rows comes from
    ids: Tensor  # [B, S]
    image_mask: Tensor  # [B, S] bool
    positions: Tensor  # [3, B, S]
    visible: Tensor  # [B, 1, S, S] bool
    labels: Tensor  # [B, S], the next token or IGNORED
    question: Tensor  # [B, S], the number of the question in the batch
    tasks: Tensor  # [questions], index into TASKS
    classes: Tensor  # [I], what covers the token
    marks: Tensor  # [I, MARKS], the letters and centres in the token
    places: Tensor  # [I], the ninth of the picture
    orders: Tensor  # [I, 3], at a shape's centre: how many came before it, in all, of its kind, of its colour


def draw_examples(rng: random.Random, level: float, rows: dict[str, int]) -> list[Example]:
    """The examples of one batch, of three picture sizes, so that pictures of a size run through the tower together."""
    sizes = [random_size(rng, level) for _ in range(3)]
    return [
        *(words_example(rng, rng.choice(sizes), level) for _ in range(rows["words"])),
        *(shapes_example(rng, rng.choice(sizes), level) for _ in range(rows["shapes"])),
        *(compare_example(rng, sizes[0], level) for _ in range(rows["compare"])),
        *(copy_example(rng) for _ in range(rows["copy"])),
    ]


class Packer:
    """Turns examples into a `Batch` with the tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start = self._ids("<|im_start|>user\n")
        self.turn = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.end = self._ids("<|im_end|>")
        self.image, self.image_start, self.image_end = (
            self._ids(f"<|{name}|>")[0] for name in ("image_pad", "vision_start", "vision_end")
        )

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def pack(self, examples: list[Example]) -> Batch:
        """Packs rows, right-padded to the longest."""
        rows = [self._row(example) for example in examples]
        scenes = [scene for example in examples for scene in example.scenes]
        pictures, order = group_pictures(scenes)
        classes, marks = zip(*(truth(scene) for scene in scenes), strict=True)
        places, orders = zip(*(count_before(scene) for scene in scenes), strict=True)
        ids, segments = _pad([row.ids for row in rows], 0), _pad([row.segment for row in rows], -1)
        return Batch(
            pictures=pictures,
            order=order,
            ids=ids,
            image_mask=ids == self.image,
            positions=torch.stack([_pad([row.positions[axis] for row in rows], 0) for axis in range(3)]),
            visible=_visible(segments),
            labels=_pad([row.labels for row in rows], IGNORED),
            question=_number_questions(segments, [len(example.questions) for example in examples]),
            tasks=torch.tensor([TASKS.index(asked.task) for example in examples for asked in example.questions]),
            classes=join(classes),
            marks=join(marks).view(-1, MARKS),
            places=join(places),
            orders=join(orders).view(-1, 3),
        )

    def _row(self, example: Example) -> "_Row":
        row = _Row()
        row.text(self.start, 0)
        for scene in example.scenes:
            row.text([self.image_start], 0)
            row.picture(self.image, scene.image.height // CELL, scene.image.width // CELL)
            row.text([self.image_end], 0)
        after = row.position
        for number, asked in enumerate(example.questions, start=1):
            row.position = after
            answer = self._ids(asked.answer) + self.end
            prompt = self._ids(asked.prompt) + self.turn
            row.text(prompt[:-1], number)
            row.text([prompt[-1], *answer[:-1]], number, answer)
        return row


class _Row:
    """The growing lists of one row."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.segment: list[int] = []
        self._positions: list[tuple[int, int, int]] = []
        self.position = 0

    @property
    def positions(self) -> list[tuple[int, ...]]:
        """The positions by axis: time, height, width."""
        return list(zip(*self._positions, strict=True))

    def text(self, ids: list[int], segment: int, labels: list[int] | None = None) -> None:
        self.ids += ids
        self.labels += labels or [IGNORED] * len(ids)
        self.segment += [segment] * len(ids)
        self._positions += [(self.position + i,) * 3 for i in range(len(ids))]
        self.position += len(ids)

    def picture(self, image_id: int, rows: int, cols: int) -> None:
        self.ids += [image_id] * (rows * cols)
        self.labels += [IGNORED] * (rows * cols)
        self.segment += [0] * (rows * cols)
        here = self.position
        self._positions += [(here, here + row, here + col) for row in range(rows) for col in range(cols)]
        self.position += max(rows, cols)


def _pad(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    padded = torch.full((len(rows), max(map(len, rows))), filler)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return padded


def _visible(segments: Tensor) -> Tensor:
    """A token sees, of those before it, the shared start (segment 0) and its own question: [B, 1, S, S]."""
    same = (segments[:, :, None] == segments[:, None, :]) | (segments == 0)[:, None, :]
    return same.tril().unsqueeze(1)


def _number_questions(segments: Tensor, counts: list[int]) -> Tensor:
    """Numbers the questions through the whole batch; tokens of no question get any number of their row."""
    first = torch.tensor([0, *counts[:-1]]).cumsum(0)
    return first[:, None] + (segments - 1).clamp(min=0)


def join(parts: Iterable[np.ndarray]) -> Tensor:
    """All values as one flat tensor."""
    return torch.from_numpy(np.concatenate([part.ravel() for part in parts]))


def group_pictures(scenes: list[Scene]) -> tuple[list[Tensor], Tensor]:
    """Pixels from -1 to 1 by picture size, and where the image tokens of each scene lie in their concatenation."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, scene in enumerate(scenes):
        by_size.setdefault(scene.image.size, []).append(number)
    pictures, places, offset = [], {}, 0
    for (width, height), numbers in by_size.items():
        pixels = np.stack([np.asarray(scenes[number].image) for number in numbers])
        pictures.append(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
        tokens = (width // CELL) * (height // CELL)
        for number in numbers:
            places[number] = torch.arange(offset, offset + tokens)
            offset += tokens
    order = torch.cat([places[number] for number in range(len(scenes))])
    return pictures, order


def truth(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """What covers each cell of 16 pixels (a class) and which letters and shape centres lie in it (marks)."""
    rows, cols = scene.image.height // CELL, scene.image.width // CELL
    classes, marks = np.zeros((rows, cols), np.int64), np.zeros((rows, cols, MARKS), np.float32)
    for item in scene.items:
        x0, y0, x1, y1 = (value / CELL for value in item.box)
        row, col = min(int((y0 + y1) / 2), rows - 1), min(int((x0 + x1) / 2), cols - 1)
        label = CLASSES.get(item.name) or 1 + len(WORDS) + SHAPE_CLASSES[item.name, item.colour]
        centre_rows = slice(row, row + 1) if item.letters else slice(max(0, round(y0)), max(round(y1), round(y0) + 1))
        classes[centre_rows, max(0, round(x0)) : max(round(x1), round(x0) + 1)] = label
        classes[row, col] = label
        if not item.letters:
            marks[row, col, 26] = 1
        for letter, x in item.letters:
            marks[row, min(max(int(x / CELL), 0), cols - 1), ord(letter) - ord("a")] = 1
    return classes, marks


def count_before(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The ninth in which each cell lies; at shapes' centres the numbers of `Batch.orders`, elsewhere IGNORED."""
    rows, cols = scene.image.height // CELL, scene.image.width // CELL
    thirds = [(2 * np.arange(side) + 1) * 3 // (2 * side) for side in (rows, cols)]
    orders = np.full((rows, cols, 3), IGNORED)
    before: Counter[str] = Counter()
    for item in scene.items:
        if item.letters:
            continue
        x0, y0, x1, y1 = item.box
        place = min(int((y0 + y1) / 2 / CELL), rows - 1), min(int((x0 + x1) / 2 / CELL), cols - 1)
        keys = ("", item.name, item.colour)
        orders[place] = [before[key] for key in keys]
        before.update(keys)
    return thirds[0][:, None] * 3 + thirds[1], orders
