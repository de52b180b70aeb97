"""The built-in pictures and the clip of golden traces, drawn in whole-number arithmetic: the same everywhere."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZES = ((320, 256), (192, 448), (560, 144))  # width and height in pixels: near square, tall, wide
FILES = tuple(f"golden/image_{index}.png" for index in range(len(SIZES)))
CLIP = "golden/clip.gif"
CLIP_FRAMES, CLIP_MS = 12, 250  # frames, and how long each is shown
CLIP_SIZE = (104, 72)  # width and height


def sources() -> dict[str, bytes]:
    """The built-in files by name: images as PNG, a short clip as GIF."""
    files = {}
    for index, name in enumerate(FILES):
        buffer = io.BytesIO()
        draw(index).save(buffer, "PNG")
        files[name] = buffer.getvalue()
    return files | {CLIP: draw_clip()}


def draw_clip() -> bytes:
    """A disc that moves over stripes that move the other way, in few colours, so that a GIF keeps every pixel."""
    width, height = CLIP_SIZE
    y, x = np.mgrid[:height, :width]
    frames = []
    for index in range(CLIP_FRAMES):
        planes = np.stack([(x - 2 * index) // 8 % 2 * 180, y // 24 * 60, np.full_like(x, 40)], axis=-1)
        planes[(x - 8 * index) ** 2 + (y - 36) ** 2 < 300] = (250, 220, 30)
        frames.append(Image.fromarray(planes.astype(np.uint8)))
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=CLIP_MS)
    return buffer.getvalue()


def draw(index: int) -> Image.Image:
    """One of the built-in images: a gradient, stripes, a disc and a patch of noise, in whole-number arithmetic."""
    width, height = SIZES[index]
    y, x = np.mgrid[:height, :width].astype(np.int64)
    planes = np.stack([x * 255 // width, y * 255 // height, (x + y) // 8 % 2 * 200 + index * 20], axis=-1)
    disc = (x - width // 3) ** 2 + (y - height // 2) ** 2 < (min(width, height) // 4) ** 2
    planes[disc] = np.roll([230, 40, 60], index)
    noisy = (x > width * 2 // 3) & (y < height // 2)
    planes[noisy] = ((x * 7919 ^ y * 104729) * (index + 3) % 256)[noisy][:, None]
    pixels: NDArray[np.uint8] = planes.astype(np.uint8)
    return Image.fromarray(pixels)
