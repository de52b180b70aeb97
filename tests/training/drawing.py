"""Draws what the tiny model sees: small pictures of coloured shapes or of rendered words, from a seeded generator."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

ALL_WORDS = (
    "apple arm bear bird boat bone book bread brush cake camp card cat chair chess clock cloud coat coin corn crow cup "
    "deer desk dog door drum duck eagle ear egg farm fish flag foot fork fox frog gate ghost goat gold grape hand hat "
    "hill horse house ice ink jar jeep key king kite knee lake lamp leaf lion milk moon mouse mug nest nose nut ocean "
    "onion owl paint pear pen piano pig plate queen rain rice river road robot rock rose sand ship shoe snow sock "
    "stone sun swan table tent tiger tree truck whale wolf zebra"
)
WORDS = ALL_WORDS.split()
COLOURS = {
    "red": (220, 30, 35),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 20),
    "orange": (250, 130, 10),
    "purple": (135, 40, 170),
    "pink": (250, 130, 190),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
INKS = ("red", "green", "blue", "purple", "black")  # dark enough to read on every paper
PAPERS = ((255, 255, 255), (245, 245, 235), (232, 240, 250), (238, 250, 236), (250, 236, 236), (226, 226, 226))
# fmt: off
TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10", "DejaVuSans-Oblique",
    "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "cmss10", "STIXGeneralItalic", "cmtt10",
)
HELDOUT_FONTS = (
    "DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "DejaVuSansMono-Oblique", "STIXGeneralBol", "cmb10", "pillow",
)
# fmt: on
SCALE = 3  # pictures of shapes are drawn this much larger, then reduced, for smooth edges


@dataclass(frozen=True)
class Item:
    """One thing in a picture: a shape or a word, its cell, its centre and, for a word, where each letter lies."""

    name: str
    colour: str
    row: int
    col: int
    box: tuple[float, float, float, float]
    letters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Scene:
    """A picture and its items in reading order; shapes sit in the cells of a `rows` by `cols` grid."""

    image: Image.Image
    items: tuple[Item, ...]
    rows: int
    cols: int


def random_size(rng: random.Random, level: float = 1.0) -> tuple[int, int]:
    """A width and height in pixels, multiples of 16 of at most 13,000 pixels; a low `level` gives small pictures."""
    while True:
        width, height = 16 * rng.randint(4, 10), 16 * rng.randint(4, 8)
        if width * height <= 8000 + 5000 * level:
            return width, height


def draw_shapes(
    rng: random.Random, size: tuple[int, int], *, level: float = 1.0, most: int = 8, one_colour: bool = False
) -> Scene:
    """A picture of one to `most` shapes on a jittered grid, of few kinds and colours so that kinds repeat."""
    width, height = size
    rows, cols = (rng.randint(2, max(2, min(4, side // 21))) for side in (height, width))
    if width >= 64 and height >= 64 and rng.random() < 0.4:
        rows = cols = 3
    count = rng.randint(1, min(most, rows * cols, 3 + round(5 * level)))
    cells = sorted(rng.sample(range(rows * cols), count))
    kinds, colours = rng.sample(SHAPES, rng.randint(1, 6)), rng.sample(list(COLOURS), rng.randint(2, 8))
    if one_colour:
        colours = colours[:1]
    items = [
        _place_shape(rng, rng.choice(kinds), rng.choice(colours), divmod(cell, cols), (width / cols, height / rows))
        for cell in cells
    ]
    canvas = Image.new("RGB", (width * SCALE, height * SCALE), _paper(rng, level))
    pen = ImageDraw.Draw(canvas)
    for item in items:
        _draw_shape(pen, item, _tint(rng, item.colour))
    return Scene(canvas.reduce(SCALE), tuple(items), rows, cols)


def draw_sized_shapes(rng: random.Random, side: int, *, level: float = 1.0, fewest: int = 2, most: int = 8) -> Scene:
    """A square picture of shapes on a grid of three by three, each unmistakably small or large."""
    cell = side / 3
    cells = sorted(rng.sample(range(9), rng.randint(min(fewest, most), max(fewest, round(most * (0.5 + level / 2))))))
    items = []
    for place in cells:
        row, col = divmod(place, 3)
        radius = rng.uniform(11.5, min(0.46 * cell, 17)) if rng.random() < 0.5 else rng.uniform(6.5, 8.5)
        slack = min(0.18 * cell, cell / 2 - radius - 0.5)
        x, y = ((at + 0.5) * cell + rng.uniform(-slack, slack) for at in (col, row))
        name, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
        items.append(Item(name, colour, row, col, (x - radius, y - radius, x + radius, y + radius)))
    canvas = Image.new("RGB", (side * SCALE, side * SCALE), _paper(rng, level))
    pen = ImageDraw.Draw(canvas)
    for item in items:
        _draw_shape(pen, item, _tint(rng, item.colour))
    return Scene(canvas.reduce(SCALE), tuple(items), 3, 3)


def draw_words(
    rng: random.Random, size: tuple[int, int], *, count: int, fonts: Sequence[str] = TRAIN_FONTS, level: float = 1.0
) -> Scene:
    """A picture of `count` different words, one to a line, each with its own font, size, place and ink."""
    image = Image.new("RGB", size, _paper(rng, level))
    pen = ImageDraw.Draw(image)
    fonts = fonts[: 2 + round(level * (len(fonts) - 2))]
    line_height = size[1] / count
    items = []
    for row, word in enumerate(rng.sample(WORDS, count)):
        font = _fitting_font(rng, word, rng.choice(fonts), size[0] - 4, line_height, level)
        left, top, right, bottom = pen.textbbox((0, 0), word, font=font)
        x = rng.uniform(1, max(1.0, size[0] - 2 - (right - left))) - left
        slack = max(0.0, line_height - (bottom - top) - 2) * (0.3 + 0.7 * level)
        y = line_height * row + 1 + (line_height - 2 - (bottom - top)) / 2 + rng.uniform(-slack, slack) / 2 - top
        ink = rng.choice(INKS) if rng.random() < level else "black"
        pen.text((x, y), word, font=font, fill=_tint(rng, ink))
        letters = tuple((c, x + font.getlength(word[:i]) + font.getlength(c) / 2) for i, c in enumerate(word))
        items.append(Item(word, ink, row, 0, (x + left, y + top, x + right, y + bottom), letters))
    return Scene(image, tuple(items), count, 1)


def _paper(rng: random.Random, level: float) -> tuple[int, int, int]:
    return rng.choice(PAPERS) if rng.random() < level else PAPERS[0]


def _tint(rng: random.Random, colour: str) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, part + rng.randint(-12, 12))) for part in COLOURS[colour])
    return red, green, blue


@lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if name == "pillow":
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _fitting_font(
    rng: random.Random, word: str, name: str, width: int, line_height: float, level: float
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A random size from 13 to 24 pixels, made smaller until the word fits its line and the picture's width."""
    size = min(round(rng.uniform(17 - 4 * level, 22 + 3 * level)), int(line_height * 0.8))
    while size > 12 and _font(name, size).getlength(word) > width:
        size -= 1
    return _font(name, max(size, 12))


def _place_shape(
    rng: random.Random, name: str, colour: str, cell: tuple[int, int], cell_size: tuple[float, float]
) -> Item:
    """Jitters less than a fifth of the cell, so that rows, columns and thirds of the picture stay unmistakable."""
    (row, col), (cell_width, cell_height) = cell, cell_size
    room = min(cell_width, cell_height)
    radius = rng.uniform(max(6.5, 0.28 * room), min(0.46 * room, 17)) if room < 46 else rng.uniform(8, 17)
    x_slack, y_slack = (min(0.18 * side, max(0.0, side / 2 - radius - 0.5)) for side in cell_size)
    x = (col + 0.5) * cell_width + rng.uniform(-x_slack, x_slack)
    y = (row + 0.5) * cell_height + rng.uniform(-y_slack, y_slack)
    return Item(name, colour, row, col, (x - radius, y - radius, x + radius, y + radius))


def _draw_shape(pen: ImageDraw.ImageDraw, item: Item, fill: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = (SCALE * value for value in item.box)
    x, y, r = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2
    if item.name == "circle":
        pen.ellipse((x0, y0, x1, y1), fill=fill)
    elif item.name == "cross":
        pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)
        pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=fill)
    else:
        pen.polygon([(x + r * dx, y + r * dy) for dx, dy in _corners(item.name)], fill=fill)


@lru_cache(maxsize=8)
def _corners(name: str) -> tuple[tuple[float, float], ...]:
    """The corners of a polygon in a box from -1 to 1."""
    plain = {
        "square": ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
        "triangle": ((0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)),
        "diamond": ((0.0, -1.0), (0.8, 0.0), (0.0, 1.0), (-0.8, 0.0)),
    }
    if name in plain:
        return plain[name]
    turns = [(math.pi * step / 5, 1.0 if step % 2 == 0 else 0.42) for step in range(10)]
    return tuple((length * math.sin(turn), -length * math.cos(turn)) for turn, length in turns)
