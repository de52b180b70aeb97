"""Commands that make something: export, plan, synth."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..exporters.formats.gguf import file_types
from ..exporters.formats.gguf.file_types import FILE_TYPES
from ..exporters.graphs.kv_cache import KINDS as KV_CACHES
from ..exporters.storage.scheme import GROUP_SIZES, PRECISIONS
from ..targets.errors import InputError
from .shared import (
    AS_JSON,
    FORCE,
    NEW_FOLDER,
    AboveZero,
    Once,
    console,
    count,
    needs,
    options,
    pairs,
    parse_size,
    peak_memory_bytes,
    print_json,
    size,
    stages,
    table,
)

if TYPE_CHECKING:
    from ..exporters.evidence.golden import Golden
    from ..exporters.job import Job
    from ..exporters.planning.planned_bundle import Plan
    from ..runtimes.bundle.opening import Bundle

FORMATS: dict[str, tuple[str, list[str]]] = {  # the precision by default, and all of them
    "onnx": ("int4", [name for name, precision in PRECISIONS.items() if not precision.float8]),
    "gguf": (file_types.DEFAULT, list(FILE_TYPES)),
    "tensorrt": ("int4", list(PRECISIONS)),
}
CHOICES = options(
    click.argument("checkpoint", type=click.Path(path_type=Path)),
    click.option("--hub-revision", metavar="NAME",
                 help="Branch, tag or commit, where CHECKPOINT is a name on the Hugging Face hub."),
    click.option("--adapter", type=click.Path(path_type=Path), metavar="FOLDER",
                 help="A LoRA adapter of peft to merge into the weights; also a name on the hub."),
    click.option("--format", type=click.Choice(list(FORMATS)), default="onnx", show_default=True,
                 help="What runs the model: ONNX Runtime, llama.cpp (gguf), or TensorRT."),
    click.option("--precision", type=click.Choice([*PRECISIONS, *FILE_TYPES], case_sensitive=False),
                 help="How weights are stored. onnx: fp32 to int4 and below, by default int4, which keep the vision "
                      "encoder at 8 bits. tensorrt: fp8 besides. gguf: a file type of llama.cpp, by default f16."),
    click.option("--group-size", type=click.Choice(list(GROUP_SIZES)),
                 help="Inputs that share one scale, by default 128, or as a quantized checkpoint has them; "
                      "channel: all of an output."),
    click.option("--asymmetric", is_flag=True, help="Give each group of the decoder a zero point."),
    click.option("--target", metavar="NAME", help="A row of `lensmith targets`; default: cpu."),
    click.option("--context", type=click.IntRange(1), metavar="N", help="Most tokens; default: the model's."),
    click.option("--kv-cache", type=click.Choice(KV_CACHES), default="float", show_default=True,
                 help="How keys and values are kept: float32, or int8 in a quarter of the memory, with --calibrate."),
    click.option("--revision", metavar="NAME", help="Of the class that trained an Arlow encoder, A or B. Default: B."),
    click.option("--max-pixels", type=click.IntRange(1), metavar="N", help="Largest image area; default: the model's."),
    click.option("--tensor-type", "tensor_types", multiple=True, metavar="PATTERN=TYPE",
                 help="gguf: another type for tensors of the language model whose names the pattern finds."),
)  # fmt: skip


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
@AS_JSON
def export(
    out: Path,
    force: bool,
    golden: Golden,
    as_json: bool,
    **choices: Any,
) -> None:
    """Compile CHECKPOINT, a Hugging Face folder, into a bundle. An interrupted export continues when run again."""
    from ..runtimes.bundle.bundle_writer import check_new_bundle

    check_new_bundle(out, force=force)  # before the work, and again when it is written
    wishes = {name: value for name in CALIBRATION_NAMES if (value := choices.pop(name)) is not None}
    job, plan = _prepare(**choices)
    if not as_json:
        _print_plan(plan)
    started = time.perf_counter()
    with stages() as progress:
        if wishes:
            from ..calibration.calibrated_export import export_calibrated
            from ..calibration.calibration_options import CalibrationOptions

            wishes.setdefault("method", default_method(choices["format"]))
            bundle = export_calibrated(job, CalibrationOptions(**wishes), out, progress, golden=golden, force=force)
        else:
            from ..exporters.pipeline import export as write

            bundle = write(job, out, progress, golden=golden, force=force)
    result = _result(bundle, plan, time.perf_counter() - started)
    if as_json:
        print_json({"plan": plan.to_json(), **result})
    else:
        _print_result(result)


@click.command(cls=Once)
@CHOICES
@AS_JSON
def plan(as_json: bool, **choices: Any) -> None:
    """Say what the bundle of CHECKPOINT will take on disk and in memory, without writing anything."""
    figures = _prepare(**choices)[1]
    if as_json:
        print_json(figures.to_json())
        return
    _print_plan(figures)
    _print_device(figures)
    for note in figures.notes:
        click.echo(f"\nnote: {note}")


@click.command(cls=Once)
@click.argument("name")
@click.option("-o", "--out", "out", required=True, type=NEW_FOLDER, help="The new folder.")
@click.option("--tiny", is_flag=True, help="The same architecture at a few million parameters.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@FORCE
def synth(name: str, out: Path, tiny: bool, seed: int, force: bool) -> None:
    """Write a checkpoint of random weights in the architecture NAME, to measure size, memory and speed."""
    with needs("export", "lensmith synth"):
        from ..exporters.synth.making import synth as write
    with stages() as progress:
        folder = write(name, out, tiny=tiny, seed=seed, force=force,
                       progress=lambda done, total: progress("weights", done, total))  # fmt: skip
    click.echo(folder)


COMMANDS = (plan, export, synth)


def _prepare(
    checkpoint: Path,
    hub_revision: str | None,
    adapter: Path | None,
    group_size: str | None,
    asymmetric: bool,
    **chosen: Any,
) -> tuple[Job, Plan]:
    """Open the checkpoint and make the plan; every error of the input shows here."""
    with needs("export", "compiling a checkpoint"):
        from ..exporters.checkpoint.hub import located, located_adapter
        from ..exporters.pipeline import Options, prepare
        from ..exporters.planning.planned_bundle import make_plan
    chosen["precision"] = _precision(**chosen)
    groups = None if group_size is None else GROUP_SIZES[group_size]
    options = Options(group_size=groups, symmetric=False if asymmetric else None, **chosen)
    job = prepare(located(checkpoint, hub_revision), options, adapter=located_adapter(adapter))
    return job, make_plan(job)


def default_method(format: str) -> str:
    """How a format is calibrated where only samples were named."""
    return "imatrix" if format == "gguf" else "descent"


def _precision(format: str, precision: str | None, **_: Any) -> str:
    default, names = FORMATS[format]
    if precision is not None and precision not in names:
        raise InputError(f"--precision {precision} is none of --format {format}; expected {', '.join(names)}")
    return precision or default


def _print_plan(plan: Plan) -> None:
    rows = [
        (row.component.replace("_", " "), row.precision, row.tensors, count(row.parameters), size(row.disk_bytes))
        for row in plan.storage
    ]
    screen = console()
    screen.print(pairs("Plan", {
        "checkpoint": f"{plan.checkpoint} ({size(plan.checkpoint_bytes)})",
        "architecture": f"{plan.architecture}, {count(plan.parameters)} parameters",
        "precision": f"{plan.precision} for {plan.target}",
        "bundle": f"about {size(plan.bundle_bytes)}, {plan.bundle_bytes / plan.checkpoint_bytes:.0%} of the checkpoint",
        **({"golden traces": f"about {size(plan.golden_bytes)} of it"} if plan.golden_bytes else {}),
        "memory to export": f"about {size(plan.export_memory_bytes)}",
    }))  # fmt: skip
    screen.print()
    screen.print(table("Weights", ["component", "stored as", ">tensors", ">parameters", ">on disk"], rows))
    screen.print()


def _print_device(plan: Plan) -> None:
    screen = console()
    if plan.attention_bytes:
        _print_encoder(plan)
        return
    screen.print(pairs("On the device", {
        "weights and cache": f"{size(plan.device_memory_bytes)} with {plan.default_context} tokens of context, "
                             "activations not counted",
        "KV cache": f"{size(plan.cache_bytes_per_token)} for each token that is used",
        "KV cache, whole context": f"{size(plan.cache_bytes)} for {plan.context} tokens",
        **({"recurrent states": f"{size(plan.state_bytes)} for any context"} if plan.state_bytes else {}),
    }))  # fmt: skip
    screen.print()
    screen.print(table("Image tokens", ["pixels", ">tokens", ">KV cache"], [
        (pixels, tokens, size(tokens * plan.cache_bytes_per_token)) for pixels, tokens in plan.image_tokens.items()
    ]))  # fmt: skip


def _print_encoder(plan: Plan) -> None:
    """Of a model without a decoder, which keeps nothing from one image to the next."""
    screen = console()
    screen.print(pairs("On the device", {
        "weights": size(plan.device_memory_bytes),
        "most patches": f"{plan.context} of one image or clip",
    }))  # fmt: skip
    screen.print()
    screen.print(table("Images", ["pixels", ">image tokens", ">memory of attention"], [
        (pixels, tokens, size(plan.attention_bytes[pixels])) for pixels, tokens in plan.image_tokens.items()
    ]))  # fmt: skip


def _result(bundle: Bundle, plan: Plan, seconds: float) -> dict[str, Any]:
    files = {name: int(record["size"]) for name, record in bundle.manifest["files"].items()}
    files["lensmith.json"] = (bundle.path / "lensmith.json").stat().st_size
    total = sum(files.values())
    return {
        "bundle": str(bundle.path),
        "files": files,
        "bundle_bytes": total,
        "ratio": round(total / plan.checkpoint_bytes, 4),
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        **({"golden": golden} if (golden := bundle.manifest["evidence"].get("golden")) else {}),
        **({"calibration": calibration} if (calibration := bundle.manifest["evidence"].get("calibration")) else {}),
    }


def component_sizes(files: dict[str, int]) -> list[tuple[str, str, str]]:
    """Rows of component, files and size: the two files of a graph count together."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in sorted(files):
        stem, _, suffix = name.rpartition(".")
        names[stem if suffix in ("onnx", "data", "engine") else name.split("/")[0]].append(name)
    return [
        (component.replace("_", " "), ", ".join(members[:3]) + (", …" if len(members) > 3 else ""),
         size(sum(files[name] for name in members)))
        for component, members in names.items()
    ]  # fmt: skip


def _print_calibration(made: dict[str, Any]) -> None:
    """How the calibrated weights did on held-out samples, next to rounding to nearest in the same size."""
    screen = console()
    if "judgement" not in made:  # of GGUF: `lensmith compare` judges the finished bundle
        seen = made["samples"]
        screen.print(pairs("Importance", {
            "samples": f"{seen['calibrated']} of {seen['source']}",
            "tokens": f"{seen['image_tokens']} of images, {seen['text_tokens']} of text",
            "matrices": made["matrices"],
        }))  # fmt: skip
        return
    judged = made["judgement"]
    kinds, tasks = list(judged["float"]["kl"]), list(judged["float"]["accuracy"])
    every = {"float": "float32", "nearest": "rounded to nearest", "calibrated": made["method"]}
    names = {key: name for key, name in every.items() if key in judged}
    head = ["weights", *(f">KL, {kind}" for kind in kinds), ">same top token", ">perplexity"]
    head += [">right answers"] if tasks else []
    drafts = judged["float"]["drafts"] is not None
    head += [">drafts accepted"] if drafts else []
    rows = []
    for key, name in names.items():
        row, total = judged[key], sum(judged[key]["positions"].values())
        same = sum(row["top1"][kind] * row["positions"][kind] for kind in kinds) / total
        figures = [*(f"{row['kl'][kind]:.4f}" for kind in kinds), f"{same:.1%}", f"{row['perplexity']:.3f}"]
        figures += [f"{sum(row['accuracy'].values()) / len(tasks):.1%}"] if tasks else []
        figures += [f"{row['drafts']['accepted']:.1%}"] if drafts else []
        rows.append([name, *figures])
    screen.print(table("Held-out samples (KL in nats)", head, rows))
    groups = list(judged["float"]["groups"])
    screen.print(table("KL by group: kinds that were calibrated on, kinds that were not, answers of both",
                       ["weights", *(f">{group}" for group in groups)],
                       [[names[key], *(f"{judged[key]['groups'][group]:.4g}" for group in groups)]
                        for key in names if key != "float"]))  # fmt: skip
    for warning in made.get("samples", {}).get("warnings", []):
        screen.print(warning, style="yellow")
    for method, groups in made["tried"].items():
        if groups:
            has = f"{made['method']} is kept" if made["kept"] else "rounding is kept"
            simpler = "rounding to nearest" if method == made["method"] else f"{made['method']} or rounding to nearest"
            screen.print(f"{method} was worse than {simpler} on {' and '.join(groups)}: {has}", style="yellow")
    screen.print()


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


def _print_result(result: dict[str, Any]) -> None:
    screen = console()
    if "calibration" in result:
        _print_calibration(result["calibration"])
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
