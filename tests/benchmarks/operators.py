"""What each operator of a bundle costs: vision, prefill of a prompt with an image, and decoding.

python tests/benchmarks/operators.py BUNDLE [--threads 2] [--size 896 672] [--steps 16]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from lensmith.runtimes import GenerationOptions, Model, user_message
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.engines.onnx.onnx_vision import OnnxVision
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.benchmarks.contender_worker import QUESTION, picture
from tests.helpers.extras import inside


def profile_of(session: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The operator events and the runs of a profiled session, in order of time."""
    events = json.loads(Path(session.end_profiling()).read_text())
    operators = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("kernel_time")]
    return operators, sorted((e for e in events if e["name"] == "model_run"), key=lambda e: e["ts"])


def costs(operators: list[dict[str, Any]], runs: list[dict[str, Any]]) -> Counter[str]:
    """Milliseconds by operator, averaged over `runs`."""
    total: Counter[str] = Counter()
    for event in operators:
        if any(run["ts"] <= event["ts"] <= run["ts"] + run["dur"] for run in runs):
            total[event["args"]["op_name"]] += event["dur"] / 1000 / len(runs)
    return total


def show(title: str, counted: Counter[str]) -> None:
    table = Table("operator", "ms", "share", title=f"{title}: {sum(counted.values()):.1f} ms")
    for name, spent in counted.most_common(8):
        table.add_row(name, f"{spent:.2f}", f"{spent / sum(counted.values()):.0%}")
    Console().print(table)


def measure(args: argparse.Namespace) -> None:
    model = Model(open_bundle(args.bundle), threads=args.threads, context=2048, profile=True)
    messages = [user_message(QUESTION, [picture(*args.size)])]
    assert isinstance(model.vision, OnnxVision)
    for _ in range(2):  # the first run warms up
        model.forget()
        request = model.prepare(messages)
        model.prefill(request, chunk=len(request.prompt))
    model.generate(messages, GenerationOptions(max_new_tokens=args.steps + 1, ignore_eos=True, draft=False)).read()
    vision, vision_runs = profile_of(model.vision.session)
    show("vision encoder", costs(vision, vision_runs[1:2]))
    decoder, runs = profile_of(inside(model.decoder).session)
    show(f"prefill of {len(request.prompt)} tokens", costs(decoder, runs[1:2]))
    show("one decode step", costs(decoder, runs[-args.steps :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(896, 672), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args()
    args.bundle = args.bundle.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # ONNX Runtime writes its profiles to the working folder
        measure(args)
        os.chdir(args.bundle.parent)


if __name__ == "__main__":
    main()
