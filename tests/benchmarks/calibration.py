"""What calibration gains: size, divergence and right answers by method, bits and group size, on held-out questions.

python tests/tiny_vlm/calibration_samples.py --out SAMPLES [--long]
python tests/benchmarks/calibration.py CHECKPOINT --samples SAMPLES/tasks.jsonl --held-out HELDOUT/tasks.jsonl

KL divergences are in nats, means over held-out positions. All rows of one table run side by side, so that they see the
same inputs. "text alone" calibrates on the samples without pictures only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lensmith.exporters import weights
from lensmith.exporters.calibrate import float_model, prompts_of
from lensmith.exporters.cases import read_samples
from lensmith.exporters.export import Job, Options, prepare
from lensmith.exporters.layerwise.calibrate import Calibration, Plan
from lensmith.exporters.layerwise.candidates import Candidate, nearest, stored
from lensmith.exporters.layerwise.judge import Judgement, judge
from lensmith.exporters.layerwise.model import FloatModel
from lensmith.exporters.layerwise.quantizer import RECIPES
from lensmith.exporters.layerwise.samples import Sample, SampleBuilder
from lensmith.exporters.layerwise.store import Store
from lensmith.exporters.mixed_precision import schemes_of
from rich.console import Console
from rich.table import Table

NEAREST, TEXT_ALONE = "rtn", "text alone"
GRIDS = ("int4:128", "int4:32", "int3:128", "int2:32")


def jobs(checkpoint: Path, grids: Sequence[str]) -> Iterator[tuple[str, Job]]:
    """A prepared job for each "precision:group size"; asymmetric below 4 bits, where a level counts."""
    for grid in grids:
        precision, _, group = grid.partition(":")
        options = Options(precision=precision, group_size=int(group), symmetric=precision == "int4", target="cpu-any")
        yield grid, prepare(checkpoint, options)


def candidates(
    model: FloatModel, job: Job, methods: Sequence[str], samples: Sequence[Sample], builder: SampleBuilder, folder: Path
) -> Iterator[tuple[str, Candidate]]:
    """Each method's weights."""
    schemes = schemes_of(job.graphs)
    prefix = job.family.prefixes.text
    for method in methods:
        if method == NEAREST:
            yield method, nearest(model, schemes)
            continue
        used = samples if method != TEXT_ALONE else [sample for sample in samples if not sample.pictures]
        recipe = RECIPES["descent" if method == TEXT_ALONE else method]
        store = Store(folder / method.replace(" ", "-"))
        Calibration(model, Plan(schemes, recipe), store, prefix).run(used, builder.pictures, lambda *_: None)
        yield method, stored(model, schemes, store)


def rows(judged: Mapping[str, Judgement], job: Job, grid: str) -> Iterator[list[str]]:
    """One row for each method; `gap` is the part of the KL divergence of rounding to nearest that is gone, of each kind
    and of their mean."""
    parameters = [p for graph in job.graphs for source in graph.sources for p in source.parameters]
    size = sum(weights.stored_bytes(parameter) for parameter in parameters)
    plain = judged["float"].accuracy
    for name, found in judged.items():
        if name == "float":
            continue
        gaps = [1 - found.kl[kind] / max(judged[NEAREST].kl[kind], 1e-12) for kind in found.kl]
        whole = 1 - found.mean_kl / max(judged[NEAREST].mean_kl, 1e-12)
        worst = max((100 * (plain[task] - found.accuracy[task]), task) for task in plain)
        accuracy = 100 * sum(found.accuracy.values()) / len(plain)
        yield [
            grid, name, f"{size / 1e6:.2f} MB", *(f"{value:.4f}" for value in found.kl.values()),
            "" if name == NEAREST else f"{' '.join(f'{100 * gap:.0f}' for gap in gaps)}: {100 * whole:.0f}",
            " ".join(f"{100 * value:.1f}" for value in found.top1.values()),
            f"{accuracy:.1f}", f"{worst[0]:+.1f} {worst[1]}",
            " ".join(f"{100 * value:.0f}" for value in found.accuracy.values()),
            drafts(found),
        ]  # fmt: skip


def drafts(found: Judgement) -> str:
    """The share of drafts that the decoder accepts, and of those that the float32 head would have made."""
    return "" if found.drafts is None else f"{100 * found.drafts.accepted:.1f} {100 * found.drafts.top1:.1f}"


def main() -> None:
    """Prints the table and the float model's accuracy by task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--grids", nargs="+", default=GRIDS, metavar="PRECISION:GROUP")
    parser.add_argument("--methods", nargs="+", default=[NEAREST, *RECIPES, TEXT_ALONE])
    parser.add_argument("--each", type=int, default=100, help="held-out questions of each task")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    table: list[list[str]] = []
    for grid, job in jobs(args.checkpoint, args.grids):
        model, builder = float_model(job, args.threads), prompts_of(job)
        samples = [builder.build(case) for case in read_samples(args.samples)]
        counts: dict[str, int] = {}
        held = []
        for case in read_samples(args.held_out):
            counts[case.task] = counts.get(case.task, 0) + 1
            if counts[case.task] <= args.each:
                held.append(builder.build(case))
        with tempfile.TemporaryDirectory() as folder:
            made = dict(candidates(model, job, args.methods, samples, builder, Path(folder)))
            judged = judge(model, held, builder.pictures, made)
        table += list(rows(judged, job, grid))
        plain, kinds = judged["float"], list(judged["float"].kl)
        show(table[-len(made) :], kinds)
    tasks = " ".join(f"{task} {100 * share:.0f}" for task, share in plain.accuracy.items())
    print(f"float32: {tasks}; drafts {drafts(plain) or '-'}", flush=True)


def show(table: Sequence[Sequence[str]], kinds: Sequence[str]) -> None:
    """The rows on the terminal."""
    grid = Table(box=None)
    for name in ("grid", "method", "weights", *(f"KL {kind}" for kind in kinds), "gap closed %", "top-1 %", "right %",
                 "most lost", "right by task", "drafts %"):  # fmt: skip
        grid.add_column(name)
    for row in table:
        grid.add_row(*row)
    Console(width=240).print(grid)


if __name__ == "__main__":
    main()
