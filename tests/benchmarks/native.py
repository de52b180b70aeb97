"""lensmith's own kernels against ONNX Runtime's, on one bundle: loading, first token, decoding and memory.

python tests/benchmarks/native.py BUNDLE [--threads 2] [--size 896 672] [--steps 32] [--repeats 2]

Each side runs in a process of its own, since a process does not give memory back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lensmith.runtimes import GenerationOptions, Model, user_message
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.process.memory import peak_memory_bytes
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.benchmarks.contender_worker import QUESTION, picture

SIDES = ("native", "stock")


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds, tokens per second and gigabytes of one side; medians of the repeats behind one warm run."""
    started = time.perf_counter()
    model = Model(open_bundle(args.bundle), threads=args.threads, context=2048, native=args.side == "native")
    load = time.perf_counter() - started
    messages = [user_message(QUESTION, [picture(*args.size)])]
    runs = []
    for _ in range(args.repeats + 1):
        model.forget()
        options = GenerationOptions(max_new_tokens=args.steps + 1, ignore_eos=True, draft=False)
        answer = model.generate(messages, options)
        answer.read()
        runs.append(answer.timings)
    warm = runs[1:]
    return {
        "kernels": len(model.kernels),
        "load, s": load,
        "vision, s": statistics.median(run.vision_ms for run in warm) / 1000,
        "prefill, s": statistics.median(run.prefill_ms for run in warm) / 1000,
        "first token, s": statistics.median(run.first_token_ms for run in warm) / 1000,
        "first token when cold, s": runs[0].first_token_ms / 1000,
        "decoding, tokens/s": statistics.median(run.tokens_per_s for run in warm),
        "peak memory, GB": peak_memory_bytes() / 1e9,
    }


def in_a_process(side: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    made: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(896, 672), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args)))
        return
    figures = {side: in_a_process(side) for side in SIDES}
    table = Table("figure", *SIDES)
    for name in figures["native"]:
        table.add_row(name, *(f"{figures[side][name]:.2f}" for side in SIDES))
    Console().print(table)


if __name__ == "__main__":
    main()
