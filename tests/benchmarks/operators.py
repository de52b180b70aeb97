"""What each operator of a bundle costs: vision, prefill of a prompt, and decoding behind it.

python tests/benchmarks/operators.py BUNDLE [--threads 2] [--size 896 672] [--words 0] [--steps 16]

The prompt is a question about a picture of a size or, with --words, so many words. The last line has what products with
few rows take from memory in a step, beside what a loop in C reads before and behind.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from lensmith.runtimes import GenerationOptions, Model, user_message
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.engines.onnx.onnx_vision import OnnxVision
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.benchmarks.bandwidth import bandwidth
from tests.benchmarks.contender_worker import QUESTION, picture, prose
from tests.helpers.extras import inside


def profile_of(session: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The operator events and the runs of a profiled session, in order of time."""
    events = json.loads(Path(session.end_profiling()).read_text())
    operators = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("kernel_time")]
    return operators, sorted((e for e in events if e["name"] == "model_run"), key=lambda e: e["ts"])


def costs(operators: list[dict[str, Any]], runs: list[dict[str, Any]]) -> Counter[str]:
    """Milliseconds by operator, averaged over `runs`."""
    total: Counter[str] = Counter()
    for event in inside_of(runs, operators):
        total[event["args"]["op_name"]] += event["dur"] / 1000 / len(runs)
    return total


def inside_of(runs: list[dict[str, Any]], operators: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e for e in operators if any(run["ts"] <= e["ts"] <= run["ts"] + run["dur"] for run in runs)]


def rate_of_products(operators: list[dict[str, Any]], runs: list[dict[str, Any]]) -> float:
    """GB/s of weights and scales that products read, the median of these runs."""
    products = [e for e in operators if "MatMul" in e["args"]["op_name"]]
    rates: list[float] = []
    for run in runs:
        part = inside_of([run], products)
        rates.append(sum(int(e["args"]["parameter_size"]) for e in part) / sum(e["dur"] for e in part) / 1000)
    return median(rates)


def show(title: str, counted: Counter[str]) -> None:
    table = Table("operator", "ms", "share", title=f"{title}: {sum(counted.values()):.1f} ms")
    for name, spent in counted.most_common(8):
        table.add_row(name, f"{spent:.2f}", f"{spent / sum(counted.values()):.0%}")
    Console().print(table)


def measure(args: argparse.Namespace) -> None:
    context = 2048 + 2 * args.words  # a common word may be two tokens
    model = Model(open_bundle(args.bundle), threads=args.threads, context=context, profile=True)
    messages = [user_message(prose(args.words, 0)) if args.words else user_message(QUESTION, [picture(*args.size)])]
    speeds = [bandwidth(args.threads)]
    for _ in range(2):  # the first run warms up
        model.forget()
        request = model.prepare(messages)
        model.prefill(request, chunk=len(request.prompt))
    model.generate(messages, GenerationOptions(max_new_tokens=args.steps + 1, ignore_eos=True, draft=False)).read()
    speeds.append(bandwidth(args.threads))
    if not args.words:
        assert isinstance(model.vision, OnnxVision)
        vision, vision_runs = profile_of(model.vision.session)
        show("vision encoder", costs(vision, vision_runs[1:2]))
    decoder, runs = profile_of(inside(model.decoder).session)
    show(f"prefill of {len(request.prompt)} tokens", costs(decoder, runs[1:2]))
    steps = runs[-args.steps :]
    show("one decode step", costs(decoder, steps))
    rate, memory = rate_of_products(decoder, steps), sum(speeds) / 2
    print(f"products read {rate:.1f} GB/s, {rate / memory:.0%} of {memory:.1f} ({speeds[0]:.1f} and {speeds[1]:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(896, 672), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--words", type=int, default=0, help="to read, in place of a picture")
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args()
    args.bundle = args.bundle.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # ONNX Runtime writes its profiles to the working folder
        measure(args)
        os.chdir(args.bundle.parent)


if __name__ == "__main__":
    main()
