"""Pictures drawn by code, a function for each kind: the same from the same random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from ....exporters.comparing.cases import photo
from .canvas import (
    COLOURS,
    DARK,
    LIGHT,
    SIZES,
    Box,
    Colour,
    blank,
    font,
    number,
    words,
    wrapped,
)

SHAPES = ("circle", "square", "triangle", "star", "house", "tree")


def scene(draw: random.Random) -> Image.Image:
    """Ground and sky with some shapes, houses and trees."""
    image, pen = blank(draw, COLOURS[draw.choice(LIGHT)])
    width, height = image.size
    pen.rectangle((0, int(height * draw.uniform(0.6, 0.9)), width, height), fill=COLOURS[draw.choice(DARK)])
    for _ in range(draw.randrange(1, 9)):
        side = draw.randrange(min(width, height) // 9, min(width, height) // 3)
        left, top = draw.randrange(width - side), draw.randrange(height - side)
        shape(pen, draw.choice(SHAPES), (left, top, left + side, top + side), COLOURS[draw.choice([*COLOURS])])
    return image


def shape(pen: ImageDraw.ImageDraw, name: str, box: Box, colour: Colour) -> None:
    """One of SHAPES, as large as the box."""
    left, top, right, bottom = box
    middle, centre, radius = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    if name == "circle":
        pen.ellipse(box, fill=colour)
    elif name == "square":
        pen.rectangle(box, fill=colour)
    elif name == "triangle":
        pen.polygon([(left, bottom), (middle, top), (right, bottom)], fill=colour)
    elif name == "star":
        spikes = [(radius * (0.45 if spike % 2 else 1), spike * pi / 5 - pi / 2) for spike in range(10)]
        pen.polygon([(middle + far * cos(angle), centre + far * sin(angle)) for far, angle in spikes], fill=colour)
    elif name == "house":
        pen.rectangle((left, int(centre), right, bottom), fill=colour)
        pen.polygon([(left, centre), (middle, top), (right, centre)], fill=COLOURS["brown"])
    else:  # a tree
        pen.rectangle((int(middle - radius / 5), int(centre), int(middle + radius / 5), bottom), fill=COLOURS["brown"])
        pen.ellipse((left, top, right, int(centre + radius / 2)), fill=colour)


def lettering(draw: random.Random) -> Image.Image:
    """One word, a line or some lines, from as large as fits to as small as can be read."""
    paper, ink = (DARK, LIGHT) if draw.random() < 0.3 else (LIGHT, DARK)
    image, pen = blank(draw, COLOURS[draw.choice(paper)])
    count = draw.choice((1, 2, 4, 12, 30))
    text = f"{words(draw, count)} {number(draw)}" if draw.random() < 0.5 else words(draw, count)
    size = draw.uniform(0.5, 1) * min(64.0, 170 / count**0.5)
    while size > 11 and not _fits(pen, text, image.size, size):
        size *= 0.8
    place = (draw.randrange(4, 20), draw.randrange(4, 40))
    pen.multiline_text(place, wrapped(pen, text, image.width - 24, size), COLOURS[draw.choice(ink)], font(size))
    return image


def _fits(pen: ImageDraw.ImageDraw, text: str, size: tuple[int, int], points: float) -> bool:
    box = pen.multiline_textbbox((20, 40), wrapped(pen, text, size[0] - 24, points), font(points))
    return box[2] <= size[0] and box[3] <= size[1]


def chart(draw: random.Random) -> Image.Image:
    """Bars, a line or a pie of a few named values, under a title."""
    image, pen = blank(draw)
    pen.text((10, 6), words(draw, 3), COLOURS["black"], font(16))
    left, top, right, bottom = area = (36, 34, image.width - 12, image.height - 28)
    names = [words(draw, 1)[:7] for _ in range(draw.randrange(3, 7))]
    values = [draw.uniform(0.08, 1) for _ in names]
    if draw.random() < 0.3:
        _pie(pen, area, names, values)
        return image
    step, bars = (right - left) / len(names), draw.random() < 0.6
    points = [(left + step * (i + 0.5), bottom - value * (bottom - top)) for i, value in enumerate(values)]
    for tick in range(5):
        height = bottom - tick * (bottom - top) / 4
        pen.line((left, height, right, height), COLOURS["grey"])
        pen.text((4, height - 7), f"{25 * tick}", COLOURS["black"], font(11))
    for (x, y), name in zip(points, names, strict=True):
        pen.text((x - step / 2 + 2, bottom + 6), name, COLOURS["black"], font(11))
        if bars:
            pen.rectangle((x - step / 3, y, x + step / 3, bottom), COLOURS[draw.choice(DARK)])
    if not bars:
        pen.line(points, COLOURS[draw.choice(DARK)], 3)
    return image


def _pie(pen: ImageDraw.ImageDraw, area: Box, names: list[str], values: list[float]) -> None:
    left, top, right, bottom = area
    side, start = min(right - left - 60, bottom - top), 0.0
    for index, (name, value, colour) in enumerate(zip(names, values, COLOURS, strict=False)):
        end = start + 360 * value / sum(values)
        pen.pieslice((left, top, left + side, top + side), start, end, COLOURS[colour])
        pen.rectangle((left + side + 8, top + 18 * index, left + side + 18, top + 18 * index + 10), COLOURS[colour])
        pen.text((left + side + 22, top + 18 * index - 2), name, COLOURS["black"], font(11))
        start = end


def table(draw: random.Random) -> Image.Image:
    """Rows and columns of numbers with a header."""
    image, pen = blank(draw)
    columns, rows = draw.randrange(2, 5), draw.randrange(3, 9)
    width, height = image.width / columns, image.height / (rows + 1)
    pen.rectangle((0, 0, image.width, height), COLOURS[draw.choice(DARK)])
    for row in range(rows + 1):
        for column in range(columns):
            text = words(draw, 1) if not row or not column else number(draw)
            colour = COLOURS["black" if row else "white"]
            pen.text((column * width + 6, row * height + height / 2 - 7), text[: int(width / 7)], colour, font(13))
        pen.line((0, row * height, image.width, row * height), COLOURS["grey"])
    return image


def form(draw: random.Random) -> Image.Image:
    """Fields with their names, some filled in, and boxes that are ticked or not."""
    image, pen = blank(draw)
    pen.text((12, 8), words(draw, 2), COLOURS["black"], font(18))
    for top in range(42, image.height - 26, 34):
        pen.text((12, top), f"{words(draw, 1)}:", COLOURS["black"], font(13))
        if draw.random() < 0.3:
            pen.rectangle((110, top, 126, top + 16), outline=COLOURS["black"])
            if draw.random() < 0.5:
                pen.line((112, top + 2, 124, top + 14), COLOURS["blue"], 3)
                pen.line((124, top + 2, 112, top + 14), COLOURS["blue"], 3)
            continue
        pen.rectangle((110, top - 3, image.width - 12, top + 21), outline=COLOURS["grey"])
        if draw.random() < 0.8:
            pen.text((116, top), draw.choice((words(draw, 2), number(draw))), COLOURS["blue"], font(14))
    return image


def document(draw: random.Random) -> Image.Image:
    """A page with a title and paragraphs of small print, as a scanner might have seen it."""
    image, pen = blank(draw, (244, 241, 232))
    pen.text((18, 12), words(draw, 3), COLOURS["black"], font(20))
    top = 46
    while top < image.height - 40:
        text = wrapped(pen, f"{words(draw, draw.randrange(8, 40))}. {number(draw)}", image.width - 36, 12)
        pen.multiline_text((18, top), text, COLOURS["black"], font(12))
        top += 17 * (text.count("\n") + 1) + 8
    return _grainy(image.rotate(draw.uniform(-2, 2), Image.Resampling.BICUBIC, fillcolor=(230, 226, 214)), draw)


def _grainy(image: Image.Image, draw: random.Random) -> Image.Image:
    grain = np.random.default_rng(draw.randrange(1 << 30)).normal(0, 5, (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def natural(draw: random.Random) -> Image.Image:
    """Clouds and blurred shapes with grain, much like a photo to codecs and to an image encoder."""
    return photo(draw.choice(SIZES), draw.randrange(1 << 30))


def noise(draw: random.Random) -> Image.Image:
    """Nothing to see: noise, coarse or fine, stripes or a slope."""
    width, height = draw.choice(SIZES)
    random_state, cells = np.random.default_rng(draw.randrange(1 << 30)), draw.choice((4, 16, 64))
    made = random_state.integers(0, 256, (cells, draw.choice((1, cells)), 3), np.uint8)
    resampling = draw.choice((Image.Resampling.NEAREST, Image.Resampling.BILINEAR))
    return Image.fromarray(made).resize((width, height), resampling)


PICTURES: Mapping[str, Callable[[random.Random], Image.Image]] = {
    "scenes": scene, "lettering": lettering, "charts": chart, "tables": table, "forms": form, "documents": document,
    "photos": natural, "noise": noise,
}  # fmt: skip
