"""`lensmith export`: a checkpoint to a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .calibration_tables import print_calibration
from .checkpoint_options import CHOICES, prepared
from .long_work import stages
from .option_types import AS_JSON, FORCE, NEW_FOLDER, AboveZero, Once, options, parse_size
from .screen import console, pairs, print_json, size, table
from .storage_tables import component_sizes, print_plan

if TYPE_CHECKING:
    from ..exporters.evidence.golden import Golden
    from ..exporters.job import Job
    from ..exporters.pipeline import Integers
    from ..exporters.planning.planned_bundle import Plan
    from ..runtimes.bundle.opening import Bundle


CALIBRATION = options(
    click.option("--calibrate", "method", metavar="METHOD",
                 help="Choose the integers on samples: auto, mse, awq, gptq or descent; gguf: imatrix. With an option "
                      "below alone: descent, the most exact."),
    click.option("--samples", type=click.Path(path_type=Path), metavar="PATH",
                 help="Pictures, or a .jsonl of images, prompt and answer; default: built-in ones."),
    click.option("--only-samples", is_flag=True, default=None,
                 help="Calibrate on these samples alone; otherwise a third are built-in, of all kinds."),
    click.option("--sample-count", "limit", type=click.IntRange(4), metavar="N",
                 help="Samples to calibrate on, by default 64; a third as many are held out to judge."),
    click.option("--answer-tokens", type=click.IntRange(0), metavar="N",
                 help="Most tokens of the answers that the model itself gives to samples without one; default: 64. 0: "
                      "no answers."),
    click.option("--answer-temperature", type=click.FloatRange(0, 2), metavar="X",
                 help="Of these answers; default: 0, the likeliest tokens."),
    click.option("--seed", type=click.IntRange(0), help="Of the choice of samples, and of answers; default: 0."),
    click.option("--budget", callback=parse_size, metavar="SIZE",
                 help='Size of the bundle ("1.2GB"): bits and groups are chosen for each matrix.'),
    click.option("--max-kl", type=AboveZero(), metavar="X",
                 help="Smallest bundle within X nats of the float model on held-out samples."),
)  # fmt: skip


# Any of them asks for calibration.
CALIBRATION_NAMES = ("method", "samples", "only_samples", "limit", "answer_tokens", "answer_temperature", "seed",
                     "budget", "max_kl")  # fmt: skip


@click.command(cls=Once)
@CHOICES
@CALIBRATION
@click.option("-o", "--out", "out", required=True, type=NEW_FOLDER, help="The new bundle folder.")
@FORCE
@click.option("--golden", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
              help="Record PyTorch's answers for `lensmith verify`; auto: where PyTorch is installed.")  # fmt: skip
@click.option("--with-handler", is_flag=True,
              help="Add handler.py and requirements.txt, for Hugging Face's Inference Endpoints.")  # fmt: skip
@AS_JSON
def export(
    out: Path,
    force: bool,
    golden: Golden,
    with_handler: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Compile CHECKPOINT, a Hugging Face folder, into a bundle. An interrupted export continues when run again."""
    from ..runtimes.bundle.bundle_writer import check_new_bundle

    check_new_bundle(out, force=force)  # before the work, and again when it is written
    wishes = {name: value for name in CALIBRATION_NAMES if (value := choices.pop(name)) is not None}
    job, plan = prepared(**choices)
    from ..exporters.pipeline import export as write

    if not as_json:
        print_plan(plan)
    started = time.perf_counter()
    with stages() as progress:
        bundle = write(job, out, progress, golden=golden, force=force, with_handler=with_handler,
                       **_integers(job, wishes))  # fmt: skip
    result = _result(bundle, plan, time.perf_counter() - started)
    if as_json:
        print_json({"plan": plan.to_json(), **result})
    else:
        _print_result(result)


def _integers(job: Job, wishes: dict[str, Any]) -> dict[str, Integers]:
    """How the integers of an export are chosen, where the user wishes anything of calibration."""
    if not wishes:
        return {}
    from ..calibration.calibrated_export import calibrated
    from ..calibration.calibration_options import CalibrationOptions

    return {"integers": calibrated(CalibrationOptions(**{"method": job.lowering.calibration, **wishes}))}


def _result(bundle: Bundle, plan: Plan, seconds: float) -> dict[str, Any]:
    from ..runtimes.process.memory import peak_memory_bytes

    files = {name: file.size for name, file in bundle.manifest.files.items()}
    files["lensmith.json"] = (bundle.path / "lensmith.json").stat().st_size
    total = sum(files.values())
    return {
        "bundle": str(bundle.path),
        "files": files,
        "bundle_bytes": total,
        "ratio": round(total / plan.checkpoint_bytes, 4),
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        **bundle.content["evidence"],
    }


def _print_result(result: dict[str, Any]) -> None:
    screen = console()
    if "calibration" in result:
        print_calibration(result["calibration"])
    screen.print(table("Bundle", ["component", "files", ">size"], component_sizes(result["files"])))
    screen.print()
    screen.print(pairs("Result", {
        **_proof(result.get("golden", {})),
        "size": f"{size(result['bundle_bytes'])}, {result['ratio']:.1%} of the checkpoint",
        "time": f"{result['seconds']:.1f} s",
        "peak memory": size(result["peak_memory_bytes"]),
    }))  # fmt: skip
    screen.print()
    click.echo(result["bundle"])


def _proof(golden: dict[str, Any]) -> dict[str, str]:
    """What the export compared with PyTorch, and how far rounding is from it."""
    if not golden.get("recorded"):
        proven: dict[str, str] = {key: golden[key] for key in ("graphs", "weights") if key in golden}
        proven |= {"graphs and weights": f"proven with {golden['proven']}"} if golden.get("proven") else {}
        return {**proven, "golden traces": f"none: {golden.get('reason', 'not recorded')}"}
    if "graphs" in golden:
        own = f"of {golden['reference']}: {golden['reason']}"
        return {"graphs": golden["graphs"], "weights": golden["weights"], "golden traces": own}
    rounding = golden.get("rounding", {})
    words = [f"KL {rounding['mean_kl']:.2g} nats"] if "mean_kl" in rounding else []
    words += [f"{rounding['same_token']:.0%} of its tokens"] if "same_token" in rounding else []
    near = {"rounding": f"{', '.join(words)} (given the same tokens)"} if words else {}
    return {"graphs and weights": f"proven with {golden['reference']}", **near}
