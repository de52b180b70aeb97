"""What drawn pictures have in common: colours, words, and text in a size that fits."""

from __future__ import annotations

import random
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from ....exporters.synth.synth_tokenizer import WORDS

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]
SIZES = ((224, 224), (320, 256), (256, 320), (384, 288), (448, 336))  # width, height
COLOURS: dict[str, Colour] = {
    "red": (208, 40, 38), "blue": (38, 74, 200), "green": (44, 148, 62), "yellow": (242, 205, 56),
    "orange": (238, 132, 36), "purple": (126, 62, 160), "black": (24, 24, 26), "white": (250, 250, 248),
    "grey": (140, 142, 146), "brown": (126, 82, 48), "pink": (240, 152, 186),
}  # fmt: skip
DARK, LIGHT = ("black", "blue", "purple", "brown", "red", "green"), ("white", "yellow", "pink", "orange")


@cache
def vocabulary() -> tuple[str, ...]:
    """Common English words of three letters and more."""
    return tuple(word for word in WORDS.read_text(encoding="utf-8").split() if len(word) > 2)


def words(draw: random.Random, count: int) -> str:
    """Some words in a row, the first with a capital."""
    return " ".join(draw.choices(vocabulary(), k=count)).capitalize()


def number(draw: random.Random) -> str:
    """A number as papers have them: a count, a sum of money, a share, a date or a code."""
    date = f"{draw.randrange(1990, 2031)}-{draw.randrange(1, 13):02}-{draw.randrange(1, 29):02}"
    return draw.choice((
        f"{draw.randrange(1, 1000)}", f"{draw.randrange(1, 90_000):,}", f"{draw.uniform(1, 2000):.2f}",
        f"{draw.randrange(101)} %", date,
        f"{draw.choice('ABCDEFGHJKLMNPRSTUVWXYZ')}{draw.choice('ABCDEFGHJKLM')}-{draw.randrange(1000, 99_999)}",
    ))  # fmt: skip


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def blank(draw: random.Random, colour: Colour = COLOURS["white"]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A picture of one colour in one of SIZES, and what draws on it."""
    image = Image.new("RGB", draw.choice(SIZES), colour)
    return image, ImageDraw.Draw(image)


def wrapped(pen: ImageDraw.ImageDraw, text: str, width: int, size: float) -> str:
    """A text in lines of at most a width in pixels, as far as its words allow."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font(size)) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
