"""A turn with several photos: time to its first token with the next photo read while one is encoded, and in turn.

    python tests/benchmarks/turn_of_images.py BUNDLE [--images 4] [--size 896 672] [--megapixels 12] [--threads 2]

Photos are JPEG files of the shape of `--size`, which each is resized to. Both ways take turns, with the same photos;
their tokens must be the same.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from lensmith.runtimes import Model, load
from PIL import Image
from rich.console import Console
from rich.table import Table

QUESTION = "What do these photos have in common?"
NEW_TOKENS = 8


def photo(seed: int, size: tuple[int, int], megapixels: float) -> bytes:
    """A JPEG file with areas, edges and noise, which takes about as long to decode as one of a camera."""
    scale = math.sqrt(megapixels * 1e6 / math.prod(size))
    width, height = (round(side * scale) for side in size)
    noise = np.random.default_rng(seed)
    image = Image.fromarray(noise.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    pixels = pixels + noise.integers(-8, 9, pixels.shape, np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def turn(model: Model, photos: list[bytes], args: argparse.Namespace, *, ahead: bool) -> tuple[Any, list[int]]:
    """The timings and the tokens of an answer for which nothing is known."""
    model.forget()
    model.media.ahead = ahead
    answer = model.ask(QUESTION, photos, max_new_tokens=NEW_TOKENS, temperature=0, max_pixels=math.prod(args.size))
    answer.read()
    return answer.timings, answer.ids


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[896, 672], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    model = load(args.bundle, threads=args.threads, context=args.context)
    assert isinstance(model, Model)
    photos = [photo(seed, args.size, args.megapixels) for seed in range(args.images)]
    turn(model, photos[:1], args, ahead=False)  # warms up
    ways: dict[str, bool] = {"in turn": False, "one ahead": True}
    found = [{name: turn(model, photos, args, ahead=ahead) for name, ahead in ways.items()}
             for _ in range(args.repeats)]  # fmt: skip
    table = Table("photos are read", "first token, s", "waiting for pixels, s", "vision encoder, s",
                  title=f"{args.images} photos of {args.megapixels:g} megapixels")  # fmt: skip
    for name in ways:
        timings = [each[name][0] for each in found]
        rows = [[getattr(one, part) / 1000 for one in timings] for part in ("first_token_ms", "image_ms", "vision_ms")]
        table.add_row(name, *(f"{statistics.median(row):.2f} ({min(row):.2f} to {max(row):.2f})" for row in rows))
    Console().print(table)
    tokens = [ids for each in found for _, ids in each.values()]
    print("the same tokens" if all(ids == tokens[0] for ids in tokens) else sys.exit("other tokens"))


if __name__ == "__main__":
    main()
