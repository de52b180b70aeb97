"""What a plan says of bundles against what they take: size, peak memory, and times on this machine.

lensmith targets --measure -o mine.toml --threads 2
python tests/benchmarks/planned.py CHECKPOINT --target mine.toml [--precisions int4 int8 fp32] [--sizes 448x448 896x672]

Bundles are built into --builds where they are not there yet. Each figure is of a process of its own, behind one warm
run; a machine that does other work besides gives times that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lensmith.runtimes import Encoder, GenerationOptions, Model, user_message
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.process.memory import peak_memory_bytes
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.benchmarks.contender_worker import QUESTION, picture

if TYPE_CHECKING:
    from lensmith.exporters.job import Job

STEPS = 16  # exporters are imported where they are needed: what is measured is the runtime alone


def measure(bundle: Path, size: tuple[int, int], threads: int) -> dict[str, float]:
    """Of the second of two questions about a picture."""
    opened = open_bundle(bundle)
    if opened.content.get("encoder"):
        encoder = Encoder(opened, threads=threads)
        encoder.image(picture(*size))
        started = time.perf_counter()
        encoder.image(picture(*size))
        return {"vision": time.perf_counter() - started, "memory": peak_memory_bytes()}
    model = Model(opened, threads=threads, context=2048)
    for _ in range(2):
        model.forget()
        options = GenerationOptions(max_new_tokens=STEPS + 1, ignore_eos=True, draft=False)
        answer = model.generate([user_message(QUESTION, [picture(*size)])], options)
        answer.read()
    found = answer.timings
    return {"vision": found.vision_ms / 1000, "prefill": found.prefill_ms / 1000, "tokens/s": found.tokens_per_s,
            "memory": peak_memory_bytes(), "image tokens": found.image_tokens,
            "tokens": found.prompt_tokens + STEPS}  # fmt: skip


def planned(job: Job, measured: dict[str, float], image_tokens: int) -> dict[str, float]:
    """The same figures, predicted."""
    from lensmith.exporters.planning.device_memory import memory_need
    from lensmith.exporters.planning.prediction import predict, tokens_per_s
    from lensmith.exporters.planning.variants import variant_of

    variant = variant_of(job, job.target)
    tokens = int(measured.get("tokens", 0))
    timed = predict(variant, int(measured.get("image tokens", image_tokens)))
    need = memory_need(variant, tokens=tokens, image_tokens=timed.image_tokens, context=tokens)
    return {"vision": timed.vision_s, "prefill": timed.prefill_s, "tokens/s": tokens_per_s(variant, tokens),
            "memory": need.peak}  # fmt: skip


def in_a_process(bundle: Path, size: str, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, str(bundle), "--measure", size, "--threads", str(threads)]
    made: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return made


def rows(args: argparse.Namespace) -> Iterator[tuple[str, str, str, float, float]]:
    """Precision, size of the image, figure, planned and measured."""
    from lensmith.exporters.pipeline import Options, export, prepare
    from lensmith.exporters.planning.planned_bundle import make_plan

    for precision in args.precisions:
        job = prepare(args.checkpoint, Options(precision=precision, target=args.target))
        bundle = args.builds / f"{args.checkpoint.name}-{precision}-{job.target.name}"
        if not bundle.exists():
            export(job, bundle, golden="never")
        plan = make_plan(job)
        nbytes = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        yield precision, "", "bundle, GB", (plan.bundle_bytes - plan.golden_bytes) / 1e9, nbytes / 1e9
        for size in args.sizes:
            measured = in_a_process(bundle, size, args.threads or job.target.device.threads)
            tokens = plan.image_tokens.get(size.replace("x", " x "), 0)
            for name, value in planned(job, measured, tokens).items():
                if measured.get(name):
                    scale = 1e9 if name == "memory" else 1
                    yield precision, size, name, value / scale, measured[name] / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--target", help="as `lensmith targets --measure` wrote it")
    parser.add_argument("--precisions", nargs="+", default=["int4", "int8", "fp32"])
    parser.add_argument("--sizes", nargs="+", default=["448x448", "896x672"], help="WIDTHxHEIGHT")
    parser.add_argument("--builds", type=Path, default=Path("build/planned"))
    parser.add_argument("--threads", type=int, help="default: the target's")
    parser.add_argument("--measure", metavar="SIZE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        width, height = map(int, args.measure.split("x"))
        print(json.dumps(measure(args.checkpoint, (width, height), args.threads)))
        return
    table = Table("precision", "image", "figure", "planned", "measured", "off by")
    for precision, size, name, plan, found in rows(args):
        table.add_row(precision, size, name, f"{plan:.2f}", f"{found:.2f}", f"{plan / found - 1:+.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
