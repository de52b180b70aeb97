"""What a comparison asks: samples of a tasks file, or a small built-in set with generated images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ...runtimes.prompt.requests import user_message
from ...runtimes.storage.reading import read_utf8
from ...targets.errors import InputError
from ..tasks.answer_metrics import Expected

MOST_BYTES = 1 << 28  # of a tasks file
PHOTO = (896, 672)  # width, height of the generated photo: 588 image tokens of 32 x 32 pixels
KINDS = {"task": str, "images": list, "prompt": str, "answer": str}
# Of samples to calibrate on, which need a prompt alone.
DEFAULTS: Mapping[str, Any] = {"task": "samples", "images": [], "answer": None}

QUESTIONS = (  # of the built-in set: number of images, question
    (1, "Describe this image."),
    (1, "What are the main colours of this picture?"),
    (1, "List the objects you can see, one a line."),
    (1, "Is anything written in the image? Answer in one sentence."),
    (2, "What is different between the two images?"),
    (1, "Write a short title for this photo."),
    (0, "Explain in two sentences why the sky is blue."),
    (0, "Write the numbers from one to ten in words."),
)


@dataclass(frozen=True)
class Case:
    """One question; without an answer, the reference's own continuation is the answer."""

    task: str
    images: tuple[str, ...]  # paths
    prompt: str
    answer: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()  # that the model may call, as JSON schemas
    # Above 0: the prompt begins a user's message, which the model itself goes on with. Others go on in another way.
    free: int = 0
    given: bool = False  # whether its words are a user's
    metric: str = "exact match"  # by which an answer counts, see METRICS
    answers: tuple[str, ...] = ()  # that are right; none: the answer
    options: tuple[str, ...] = ()  # of a multiple choice, whose answers are letters
    new_tokens: int | None = None  # most of an answer; None: a few more than the right one has

    @property
    def expected(self) -> Expected:
        """What an answer is measured against."""
        return Expected(self.answers or (self.answer or "",), self.options)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The question as a conversation."""
        return [user_message(self.prompt, self.images)]

    @property
    def variables(self) -> dict[str, Any]:
        """What the chat template gets besides."""
        tools = {"tools": [*self.tools]} if self.tools else {}
        return {**tools, "continue_final_message": True} if self.free else tools


def read_tasks(path: Path, limit: int | None = None) -> list[Case]:
    """The samples of a JSONL file, up to `limit` of each task; InputError names the line that is unusable."""
    counts: Counter[str] = Counter()
    cases = []
    for number, line in _lines(path):
        case = _case(path, number, line)
        counts[case.task] += 1
        if limit is None or counts[case.task] <= limit:
            cases.append(case)
    return cases


def read_samples(path: Path) -> list[Case]:
    """The samples of a JSONL file to calibrate on: a prompt each, if wanted with images, an answer and a task."""
    return [_case(path, number, line, DEFAULTS) for number, line in _lines(path)]


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers; there is at least one."""
    text = read_utf8(path, MOST_BYTES, "tasks, as JSON lines")
    # Not splitlines, which tears texts at signs that JSON need not escape, such as U+2028.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"the tasks file {path} has no samples; expected one JSON object a line")
    return lines


def _case(path: Path, number: int, line: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> Case:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"line {number} of {path} is not JSON ({error})") from None
    row = {**defaults, **row} if isinstance(row, dict) else {}
    for key, kind in KINDS.items():
        optional = key in defaults and row.get(key) == defaults[key]
        if not optional and not isinstance(row.get(key), kind):
            raise InputError(f"line {number} of {path} needs {key!r}, a {kind.__name__}; expected {', '.join(KINDS)}")
    images = tuple(str((path.parent / str(name)).resolve()) for name in row["images"])
    missing = [name for name in images if not Path(name).is_file()]
    if missing:
        raise InputError(f"line {number} of {path} names an image that is not there: {missing[0]}")
    return Case(row["task"], images, row["prompt"], row["answer"], given=True)


def spread_over_tasks(cases: Sequence[Case], count: int) -> list[int]:
    """Indices of up to `count` cases: one of each task in turn, and within a task one about each picture in turn."""
    seen: Counter[tuple[str, tuple[str, ...] | int]] = Counter()
    ranks = []
    for index, case in enumerate(cases):
        about = (case.task, case.images or index)
        ranks.append((seen[about], index))
        seen[about] += 1
    turns: Counter[str] = Counter()
    order = []
    for _, index in sorted(ranks):
        order.append((turns[cases[index].task], index))
        turns[cases[index].task] += 1
    return sorted(index for _, index in sorted(order)[:count])


def builtin_cases(folder: Path) -> list[Case]:
    """The built-in questions, with small photos written to `folder`."""
    cases = []
    for number, (images, question) in enumerate(QUESTIONS):
        paths = [folder.resolve() / f"builtin-{number}-{index}.png" for index in range(images)]
        for index, path in enumerate(paths):
            photo((320, 256), seed=10 * number + index).save(path)
        cases.append(Case("built-in", tuple(map(str, paths)), question))
    return cases


def benchmark_image(folder: Path, limits: Mapping[str, Any], factor: int, room_tokens: int) -> Path:
    """A generated photo as JPEG, 896 x 672 or the largest below it of the same shape that the limits of a bundle allow.

    `factor`: pixels a side of one image token. `room_tokens`: image tokens that fit into the context.
    """
    most = min(limits["max_pixels"], limits["max_image_tokens"] * factor**2, room_tokens * factor**2)
    scale = min(1.0, sqrt(most / (PHOTO[0] * PHOTO[1])))
    width, height = (max(factor, int(side * scale) // factor * factor) for side in PHOTO)
    path = folder / f"photo-{width}x{height}.jpg"
    photo((width, height), seed=0).save(path, quality=90)
    return path


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Clouds, blurred shapes and grain of `size` (width, height): for codecs and resizing, much like a photo."""
    rng = np.random.default_rng(seed)
    clouds = sum((_clouds(rng, size, cells) / cells for cells in (3, 6, 12, 48)), np.zeros((*size[::-1], 3)))
    low, high = clouds.min(), clouds.max()
    image = Image.fromarray((255 * (clouds - low) / max(high - low, 1e-9)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, radius = rng.integers(size[0]), rng.integers(size[1]), rng.integers(min(size) // 16, min(size) // 4)
        box = (int(x - radius), int(y - radius), int(x + radius), int(y + radius))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape(box, fill=tuple(map(int, rng.integers(0, 256, 3))))
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), np.float64)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def _clouds(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Any:
    """Smooth noise [height, width, 3] with about `cells` lumps a side."""
    grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
    return np.asarray(grid.resize(size, Image.Resampling.BICUBIC), np.float64)


def pictured(cases: Sequence[Case], source: Path | None, encoder: object) -> list[Case]:
    """The cases with pictures, which an encoder alone has a use for; InputError where a file has none."""
    found = [case for case in cases if case.images]
    if source is not None and not found:
        raise InputError(
            f"{source} has no question with a picture, and {encoder} encodes pictures alone; name a file of questions "
            "about pictures, or leave out the tasks"
        )
    return found
