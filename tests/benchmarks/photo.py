"""What a photo costs before the vision encoder: reading, resizing and cutting 12 megapixels, JPEG and PNG.

python tests/benchmarks/photo.py BUNDLE [--threads 2] [--repeats 5]

The first call of a process, which has its memory mapped and its tables built on the way, stands apart from the median
of the others. A call takes a photo of its own, so that nothing is taken from a cache.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
from lensmith.runtimes import Model
from lensmith.runtimes.bundle.opening import open_bundle
from PIL import Image
from rich.console import Console
from rich.table import Table

SIZE = (4000, 3000)  # width, height


def photo(kind: str, seed: int) -> bytes:
    """Smooth shades, as a camera's."""
    shades = np.random.default_rng(seed).integers(0, 255, (188, 250, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(shades).resize(SIZE, Image.Resampling.BICUBIC).save(file, kind, quality=90)
    return file.getvalue()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model = Model(open_bundle(args.bundle), threads=args.threads)
    table = Table("format", "MB", "first s", "median s", "processor s", box=None)
    for kind in ("JPEG", "PNG"):
        walls, used = [], []
        for seed in range(args.repeats + 1):
            data = photo(kind, seed)
            wall, processor = time.perf_counter(), time.process_time()
            model.media.cut(data)
            walls.append(time.perf_counter() - wall)
            used.append(time.process_time() - processor)
        table.add_row(kind, f"{len(data) / 1e6:.1f}", f"{walls[0]:.2f}", f"{statistics.median(walls[1:]):.2f}",
                      f"{statistics.median(used[1:]):.2f}")  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
