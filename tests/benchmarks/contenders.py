"""Speed, memory and size of bundles of one checkpoint next to each other and to other runtimes, in one run.

    python tests/benchmarks/contenders.py BUNDLE ... --peers openvino=FOLDER llamacpp=MODEL,MMPROJ genai=FOLDER
        [--pythons openvino=PYTHON] [--size 896 672] [--words 7000 28000] [--threads 2] [--repeats 3]

Each contender has a process of its own (peers in their own environment, named by its Python), one after another, and
answers about the same pictures of a size, then reads the same words. docs/compare.md says how peers are made. Printed
are medians with the least and the most, and ratios to the first bundle: `=` where the ranges of the two overlap, since
such a difference may be noise. The read bandwidth is measured before and behind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.benchmarks.bandwidth import bandwidth

WORKER = Path(__file__).with_name("contender_worker.py")
COLUMNS = ("size GB", "load s", "peak GB", "first token s", "decode tokens/s")
TEXT_ALONE = ("genai",)  # kinds that read no pictures


@dataclass(frozen=True)
class Contender:
    """A row of the table: what the worker opens, by which Python."""

    name: str
    kind: str
    paths: tuple[str, ...]
    python: str

    def size(self) -> float:
        """GB of its files, golden traces aside."""
        files = [file for path in map(Path, self.paths) for file in (path.rglob("*") if path.is_dir() else [path])]
        return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".npz") / 1e9


def contenders(args: argparse.Namespace) -> Iterator[Contender]:
    """Bundles first, then peers."""
    pythons = dict(pair.split("=", 1) for pair in args.pythons)
    for path in args.bundles:
        yield Contender(path.name, "lensmith", (str(path.resolve()),), sys.executable)
    for peer in args.peers:
        kind, paths = peer.split("=", 1)
        yield Contender(kind, kind, tuple(paths.split(",")), pythons.get(kind, sys.executable))


def run(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """The figures of one contender at one task."""
    command = [contender.python, str(WORKER), contender.kind, *contender.paths]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contender.name} failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    result["figures"] = {"size GB": [contender.size()], **result["figures"]}
    return result


def cell(values: list[float], against: list[float]) -> str:
    """The median with the range of the repeats, and the ratio to the first contender's."""
    middle, ratio = median(values), median(values) / median(against)
    spread = f" [{min(values):.2f}..{max(values):.2f}]" if len(values) > 1 else ""
    same = values is not against and min(values) <= max(against) and min(against) <= max(values)
    return f"{middle:.2f}{spread} ({'=' if same else f'{ratio:.2f}x'})"


def compared(title: str, rows: list[Contender], job: dict[str, Any]) -> Table:
    """All contenders at one task."""
    table, first = Table("contender", *COLUMNS, "prompt tokens", "of", title=title, box=None), None
    for contender in rows:
        if "size" in job and contender.kind in TEXT_ALONE:
            table.add_row(contender.name, *[""] * len(COLUMNS), "", "takes no pictures")
            continue
        result = run(contender, job)
        figures = result["figures"]
        first = first or figures
        cells = [cell(figures[column], first[column]) for column in COLUMNS]
        table.add_row(contender.name, *cells, str(result["prompt_tokens"]), result["version"])
    return table


def tasks(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """A title and a job for the picture, then for each number of words."""
    common = {"threads": args.threads, "repeats": args.repeats, "steps": args.steps}
    if args.size:
        width, height = args.size
        yield f"a picture of {width} x {height}", {**common, "size": args.size, "context": 4096}
    for words in args.words:
        yield f"{words} words", {**common, "words": words, "context": words + words // 2 + 256}


def main() -> None:
    """Prints a table a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PATH[,PATH]", help="openvino, llamacpp, genai")
    parser.add_argument("--pythons", nargs="*", default=[], metavar="NAME=PYTHON", help="of peers' environments")
    parser.add_argument("--size", type=int, nargs="*", default=[896, 672], help="width and height; none: no picture")
    parser.add_argument("--words", type=int, nargs="*", default=[], help="to read, each number a task of its own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32, help="of decoding")
    args = parser.parse_args()
    console = Console(width=220)
    console.print(f"{bandwidth(args.threads):.1f} GB/s read with {args.threads} threads")
    for title, job in tasks(args):
        console.print(compared(title, list(contenders(args)), job))
    console.print(f"{bandwidth(args.threads):.1f} GB/s")


if __name__ == "__main__":
    main()
