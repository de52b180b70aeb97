"""Small images through the vision encoder one by one, as a turn has them, and all in one run of its graph.

    python tests/benchmarks/batched_images.py BUNDLE [--images 8] [--side 224] [--threads 2] [--repeats 5]

The bundle is one for the CPU whose graph takes several images (the Qwen families). Seconds of the processor are told
beside those that passed, as other programs lengthen the latter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lensmith.runtimes import Model, load
from lensmith.runtimes.engines.onnx.onnx_vision import OnnxVision
from rich.console import Console
from rich.table import Table


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """That passed, and of the processor."""
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    for name, usual in (("images", 8), ("side", 224), ("threads", 2), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    args = parser.parse_args()
    model = load(args.bundle, threads=args.threads, context=2048, min_pixels=1024)
    assert isinstance(model, Model)
    engine = next(each for each in (model.vision, *vars(model.vision).values()) if isinstance(each, OnnxVision))
    noise = np.random.default_rng(0).integers(0, 256, (args.images, args.side, args.side, 3), np.uint8)
    cut = [model.media.cut(image) for image in noise]
    whole = {"pixel_values": np.concatenate([patches for patches, _ in cut]),
             "image_grid_thw": np.array([grid for _, grid in cut], np.int64)}  # fmt: skip
    ways: dict[str, Callable[[], list[Any]]] = {
        "one by one": lambda: [engine(patches, grid).features for patches, grid in cut],
        "in one run": lambda: [engine.session.run(engine.outputs, whole)[0]],
    }
    made = [np.concatenate(way()) for way in ways.values()]
    found = [{name: seconds(way) for name, way in ways.items()} for _ in range(args.repeats)]
    table = Table(
        f"{args.images} images of {args.side} x {args.side}", "s, least to most", "of the processor, s, least"
    )
    for name in ways:
        passed, used = zip(*(each[name] for each in found), strict=True)
        table.add_row(name, f"{min(passed):.3f} to {max(passed):.3f}", f"{min(used):.3f}")
    Console().print(table)
    print("the same bits" if np.array_equal(made[0], made[1]) else "other bits")


if __name__ == "__main__":
    main()
