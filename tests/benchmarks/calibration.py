"""What calibration gains: divergence and right answers by method, bits and samples, and what its own judgement says.

python tests/training/calibration_samples.py --out SAMPLES [--long]
python tests/benchmarks/calibration.py CHECKPOINT --held-out TASKS/tasks.jsonl --samples built-in SAMPLES/tasks.jsonl

KL divergences are in nats, means over the positions of the held-out tasks. "next to nearest" is how far the divergence
of answers is above that of rounding to nearest, question by question, and the standard error of this difference: what
is within two of them is chance. Methods run side by side, so that they see the same inputs. `auto` is what
`lensmith export --calibrate auto` keeps. "judged" are the divergences on own kinds, foreign kinds and answers that the
calibration itself measured on samples that it did not see.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lensmith.calibration.calibrated_export import _judge, _quantize, float_model
from lensmith.calibration.calibration_options import CalibrationOptions
from lensmith.calibration.layerwise.candidates import Candidate, nearest, stored
from lensmith.calibration.layerwise.float_model import FloatModel
from lensmith.calibration.layerwise.judge import Judgement, judge
from lensmith.calibration.layerwise.prepared_samples import Sample
from lensmith.calibration.layerwise.verdict import NEAREST, choose
from lensmith.calibration.mixed_precision import schemes_of
from lensmith.calibration.samples.sample_preparation import look_through, open_samples, prompts_of
from lensmith.exporters.comparing.cases import read_tasks
from lensmith.exporters.pipeline import Job, Options, prepare
from rich.console import Console
from rich.table import Table

BUILT_IN, AUTO = "built-in", "auto"
GRIDS = ("int4:128", "int4:32", "int3:128", "int2:32")
METHODS = ("gptq", "descent")
COLUMNS = ("samples", "grid", "method", "KL answers", "next to nearest", "KL image", "right %", "most lost",
           "right by task", "judged", "matrices")  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """Of one set of samples: weights by method, what calibration said of each, and what became of the matrices."""

    made: Mapping[str, Candidate]
    judged: Mapping[str, Judgement]
    matrices: Mapping[str, Mapping[str, int]]
    kept: str  # of `made`, by the calibration's own judgement of descent and what is simpler


def job_of(checkpoint: Path, grid: str) -> Job:
    """A prepared job for "precision:group size"; asymmetric below 4 bits, where a level counts."""
    precision, _, group = grid.partition(":")
    options = Options(precision=precision, group_size=int(group), symmetric=precision == "int4", target="cpu-any")
    return prepare(checkpoint, options)


def candidates(model: FloatModel, job: Job, source: str, args: Any, scratch: Path) -> Candidates:
    """All methods on one set of samples."""
    path = None if source == BUILT_IN else Path(source)
    options = CalibrationOptions(samples=path, limit=args.limit, threads=args.threads, only_samples=args.only_samples
                                 and path is not None)  # fmt: skip
    samples = look_through(model, open_samples(job, options, scratch), "weights are rounded to nearest")
    schemes, kept = schemes_of(job.graphs), NEAREST
    made: dict[str, Candidate] = {}
    judged: dict[str, Judgement] = {}
    matrices: dict[str, Mapping[str, int]] = {}
    for method in METHODS:
        wanted = CalibrationOptions(**{**vars(options), "method": method})
        stores = _quantize(model, job, samples, wanted, scratch, lambda *_: None)
        judged |= _judge(model, job, stores, samples, False, lambda *_: None)
        matrices |= {name: Counter(row.method for row in store.journal.outcomes) for name, store in stores.items()}
        made |= {name: stored(model, schemes, store) for name, store in stores.items()}
        verdict = choose(method, stores, judged)
        kept = verdict.method if verdict.kept else NEAREST  # in the end that of descent, which is the method of auto
    return Candidates({NEAREST: nearest(model, schemes), **made}, judged, matrices, kept)


def held_out(job: Job, path: Path, each: int) -> tuple[list[Sample], Mapping[str, Any]]:
    """The first questions of each task, and their pictures."""
    builder = prompts_of(job)
    return [builder.build(case) for case in read_tasks(path, each)], builder.pictures


def rows(source: str, grid: str, one: Candidates, found: Mapping[str, Judgement]) -> Iterator[dict[str, Any]]:
    """A row for each method, the last for what the judgement keeps."""
    plain = found["float"].accuracy
    for name in (*one.made, AUTO):
        method = one.kept if name == AUTO else name
        own, said = found[method], one.judged[method]
        worst = max((100 * (plain[task] - own.accuracy[task]), task) for task in plain)
        yield {
            "samples": source if source == BUILT_IN else Path(source).parent.name, "grid": grid,
            "method": f"{AUTO}: {method}" if name == AUTO else name,
            "kl": dict(own.kl), "next_to_nearest": difference(own, found[NEAREST]),
            "right": 100 * sum(own.accuracy.values()) / len(plain), "worst": worst,
            "tasks": {task: 100 * share for task, share in own.accuracy.items()},
            "judged": dict(said.groups), "matrices": one.matrices.get(method, {}),
        }  # fmt: skip


def difference(one: Judgement, other: Judgement) -> tuple[float, float]:
    """The mean difference of the divergence of answers over the questions, and its standard error."""
    paired = np.subtract(one.answers, other.answers)
    return float(paired.mean()), float(paired.std(ddof=1) / len(paired) ** 0.5)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as it is shown."""
    return [
        row["samples"], row["grid"], row["method"], f"{row['kl']['answers']:.5f}",
        "{:+.5f} ± {:.5f}".format(*row["next_to_nearest"]), f"{row['kl']['image']:.4f}",
        f"{row['right']:.1f}", f"{row['worst'][0]:+.0f} {row['worst'][1]}",
        " ".join(f"{share:.0f}" for share in row["tasks"].values()),
        " ".join(f"{kl:.4f}" for kl in row["judged"].values()),
        ", ".join(f"{count} {name}" for name, count in row["matrices"].items()),
    ]  # fmt: skip


def show(table: Sequence[Mapping[str, Any]]) -> None:
    """The rows on the terminal."""
    grid = Table(*COLUMNS, box=None)
    for row in table:
        grid.add_row(*cells(row))
    Console(width=200).print(grid)


def main() -> None:
    """Prints a table for each grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--samples", nargs="+", default=[BUILT_IN], metavar="SOURCE")
    parser.add_argument("--only-samples", action="store_true", help="without built-in ones beside others")
    parser.add_argument("--limit", type=int, default=64, help="samples to calibrate on")
    parser.add_argument("--grids", nargs="+", default=GRIDS, metavar="PRECISION:GROUP")
    parser.add_argument("--each", type=int, default=100, help="held-out questions of each task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="rows as lines of JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for grid in args.grids:
            job = job_of(args.checkpoint, grid)
            model = float_model(job, args.threads)
            for index, source in enumerate(args.samples):
                one = candidates(model, job, source, args, Path(folder) / str(index))  # answers are kept there
                table = [*rows(source, grid, one, judge(model, *held_out(job, args.held_out, args.each), one.made))]
                if args.json:
                    sys.stdout.writelines(json.dumps(row) + "\n" for row in table)
                else:
                    show(table)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
