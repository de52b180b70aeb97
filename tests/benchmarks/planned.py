"""What a plan says of bundles against what they take: size, peak memory, and times on this machine.

lensmith targets --measure -o mine.toml --threads 2
python tests/benchmarks/planned.py CHECKPOINT... --target mine.toml [--precisions int4 int8 fp32] [--sizes 448x448]
python tests/benchmarks/planned.py --systems --target mine.toml [--layers 4]

The last makes five systems of full widths with few layers, one after another, and removes each behind its figures:
about 10 GB of disk. Bundles of checkpoints that are named are built into --builds where they are not there yet, and
stay. Each figure is of a process of its own, behind one warm run; a machine that does other work besides gives times
that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lensmith.runtimes import Encoder, GenerationOptions, Model, user_message
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.process.memory import peak_memory_bytes
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.benchmarks.contender_worker import QUESTION, picture
from tests.benchmarks.shallow import shallow

if TYPE_CHECKING:
    from lensmith.exporters.job import Job

SYSTEMS = ("qwen3-vl-2b", "tarn-2b", "vqwen3-4b", "nemotron-4b", "arlow-vision")
BUNDLE, MEMORY, SPEED = "bundle, GB", "memory", "tokens/s"
BOUNDS = {BUNDLE: ("bundles", 0.03), MEMORY: ("memory", 0.10)}  # how far off a plan may be; others are times
TIMES = ("times", 0.30)
STEPS = 16  # exporters are imported where they are needed: what is measured is the runtime alone


@dataclass(frozen=True)
class Row:
    """One figure of a bundle."""

    system: str
    precision: str
    size: str  # of the image
    name: str
    planned: float
    measured: float

    @property
    def off(self) -> float:
        """How much more was planned than measured, as a share; of speeds by the time of a token."""
        ratio = self.planned / self.measured
        return (1 / ratio if self.name == SPEED else ratio) - 1

    @property
    def bound(self) -> tuple[str, float]:
        return BOUNDS.get(self.name, TIMES)

    @property
    def kept(self) -> bool:
        return abs(self.off) <= self.bound[1]


def summary(rows: Iterable[Row]) -> list[str]:
    """How many of each kind of figure are as near as they are to be."""
    found: dict[tuple[str, float], list[bool]] = {}
    for row in rows:
        found.setdefault(row.bound, []).append(row.kept)
    return [f"{kind}: {sum(kept)} of {len(kept)} within {bound:.0%}".replace("%", " %")
            for (kind, bound), kept in sorted(found.items())]  # fmt: skip


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


def rows(checkpoint: Path, builds: Path, args: argparse.Namespace) -> Iterator[Row]:
    """All figures of a checkpoint."""
    from lensmith.exporters.pipeline import Options, export, prepare
    from lensmith.exporters.planning.planned_bundle import make_plan

    for precision in args.precisions:
        job = prepare(checkpoint, Options(precision=precision, target=args.target))
        bundle = builds / f"{checkpoint.name}-{precision}-{job.target.name}"
        if not bundle.exists():
            export(job, bundle, golden="never")
        plan = make_plan(job)
        nbytes = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        yield Row(checkpoint.name, precision, "", BUNDLE, (plan.bundle_bytes - plan.golden_bytes) / 1e9, nbytes / 1e9)
        for size in args.sizes:
            measured = in_a_process(bundle, size, args.threads or job.target.device.threads)
            tokens = plan.image_tokens.get(size.replace("x", " x "), 0)
            for name, value in planned(job, measured, tokens).items():
                if measured.get(name):
                    scale = 1e9 if name == MEMORY else 1
                    yield Row(checkpoint.name, precision, size, name, value / scale, measured[name] / scale)


def all_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Of the checkpoints that are named, and of systems that are made and removed one by one."""
    for checkpoint in args.checkpoints:
        yield from rows(checkpoint, args.builds, args)
    for name in args.systems or ():
        folder = Path(tempfile.mkdtemp(prefix="lensmith-planned-"))
        try:
            yield from rows(shallow(name, folder / name, args.layers), folder / "builds", args)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--systems", nargs="*", metavar="NAME", help="of lensmith synth; without names, the five")
    parser.add_argument("--layers", type=int, default=4, help="of each part of --systems")
    parser.add_argument("--target", help="as `lensmith targets --measure` wrote it")
    parser.add_argument("--precisions", nargs="+", default=["int4", "int8", "fp32"])
    parser.add_argument("--sizes", nargs="+", default=["448x448", "896x672"], help="WIDTHxHEIGHT")
    parser.add_argument("--builds", type=Path, default=Path("build/planned"))
    parser.add_argument("--threads", type=int, help="default: the target's")
    parser.add_argument("--measure", metavar="SIZE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.systems = SYSTEMS if args.systems == [] else args.systems
    if not args.checkpoints and not args.systems:
        parser.error("name a checkpoint, or add --systems")
    return args


def show(found: Sequence[Row]) -> None:
    table = Table("system", "precision", "image", "figure", "planned", "measured", "off by")
    for row in found:
        table.add_row(row.system, row.precision, row.size, row.name, f"{row.planned:.2f}", f"{row.measured:.2f}",
                      f"{row.off:+.0%}")  # fmt: skip
    Console().print(table)
    print("\n".join(summary(found)))


def main() -> None:
    args = options()
    if args.measure:
        width, height = map(int, args.measure.split("x"))
        print(json.dumps(measure(args.checkpoints[0], (width, height), args.threads)))
        return
    show(list(all_rows(args)))


if __name__ == "__main__":
    main()
