"""Speed, memory and size of any bundles of one checkpoint next to each other and to PyTorch, in one run.

python tests/benchmarks/contenders.py CHECKPOINT BUNDLE ... [--dtypes bfloat16] [--threads 2] [--repeats 3]

Each contender has a process of its own, one after another, and answers the same question about the same picture (896 x
672 pixels); the first answer warms up, the medians of the others are printed, with ratios to the first bundle.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from lensmith.exporters.comparing.cases import benchmark_image
from lensmith.exporters.comparing.contender import Assignment
from lensmith.exporters.comparing.job_process import run_job
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.media.pixels import image_spec
from rich.console import Console
from rich.table import Table

STEPS = 32  # of decoding
ROOM = 4096  # most image tokens
COLUMNS = ("size GB", "load s", "peak GB", "first token s", "vision s", "prefill s", "decode tokens/s")


def jobs(args: argparse.Namespace, image: Path) -> Iterator[Assignment]:
    """One for each bundle, then PyTorch in each dtype."""
    contenders = [(path.name, path, None) for path in args.bundles]
    contenders += [(f"PyTorch {dtype}", args.bundles[0], dtype) for dtype in args.dtypes]
    for name, bundle, dtype in contenders:
        yield Assignment(
            name=name, bundle=str(bundle.resolve()), checkpoint=str(args.checkpoint.resolve()), dtype=dtype,
            threads=args.threads, repeats=args.repeats, image=str(image), prompt="Describe this image.",
            decode_steps=STEPS, cases=(), traced=(), traces="", is_reference=False, answers=False,
        )  # fmt: skip


def figures(result: dict[str, Any], folder: Path) -> list[float]:
    """In the order of the columns."""
    timings = [Timings(**row) for row in result["timings"]]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".npz")
    parts = [
        median(getattr(one, name) for one in timings) / 1000 for name in ("first_token_ms", "vision_ms", "prefill_ms")
    ]
    speed = median(one.tokens_per_s for one in timings)
    return [size / 1e9, result["load_ms"] / 1000, result["peak_memory_bytes"] / 1e9, *parts, speed]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16"], help="of PyTorch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    table, first = Table(box=None), list[float]()
    for column in ("contender", *COLUMNS, "prompt tokens", "engine"):
        table.add_column(column)
    bundle = open_bundle(args.bundles[0])
    with tempfile.TemporaryDirectory() as folder:
        image = benchmark_image(Path(folder), bundle.content["limits"], image_spec(bundle.manifest).factor, ROOM)
        for index, job in enumerate(jobs(args, image)):
            result = run_job(job, Path(folder) / str(index), lambda *_: None)
            found = figures(result, Path(job.checkpoint if job.dtype else job.bundle))
            first = first or found
            cells = [f"{value:.2f} ({value / one:.2f}x)" for value, one in zip(found, first, strict=True)]
            table.add_row(job.name, *cells, str(result["timings"][0]["prompt_tokens"]), result["engine"])
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
