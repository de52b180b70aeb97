"""`lensmith tune`: what is quickest for a bundle on this device, kept as the defaults of its runs."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..targets.errors import InputError
from .long_work import stages
from .option_types import AS_JSON, BUNDLE, DEVICE, KEYS, Once
from .screen import console, print_json, table

if TYPE_CHECKING:
    from ..runtimes.bundle.opening import Bundle
    from ..runtimes.tuning.choosing import Findings, Trial

WORDS = {  # of each setting, for people
    "threads": "threads",
    "chunk": "tokens of a prompt at once",
    "ngram_drafts": "most drafts of the text",
    "head_drafts": "most drafts of the head",
}
FOR = {"threads": "prompts", "decode_threads": "decoding"}
SIDE = 1 << 14  # pixels


def parse_image_size(_: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Width and height of "896x672". A callback of click's options."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value.strip().lower())
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(0 < side <= SIDE for side in size):
        raise click.BadParameter(f"{value!r} is not a size; expected WIDTHxHEIGHT, such as 896x672", param=option)
    return size


@click.command(cls=Once, short_help="Measure what is quickest for BUNDLE on this device.")
@BUNDLE
@click.option("--image-size", "size", metavar="WxH", callback=parse_image_size,
              help="Of the image that is asked about; default: 448x336, or what fits in the context.")  # fmt: skip
@click.option("--new-tokens", "tokens", type=click.IntRange(8, 4096), default=32, show_default=True, metavar="N",
              help="Length of each answer.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(3, 100), default=4, show_default=True, metavar="N",
              help="Answers with each value, of which the median counts.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Measure, and keep nothing.")
@click.option("--reset", is_flag=True, help="Forget what was measured of BUNDLE, and measure nothing.")
@DEVICE
@KEYS
@AS_JSON
def tune(
    bundle: Path,
    reset: bool,
    dry_run: bool,
    device: str | None,
    keys: tuple[Path, ...],
    as_json: bool,
    **measured: Any,
) -> None:
    """Measure how many threads, tokens at once and drafts are quickest for BUNDLE on this device.

    From then on they are the defaults of run, chat, batch, serve, embed, compare and of load() in Python, wherever no
    value is given. Answers stay the same, token for token. What is quicker by no more than the noise is left as it was.
    """
    from ..runtimes.bundle.opening import open_bundle

    opened = open_bundle(bundle, trusted_keys=keys or None)
    if reset:
        _refuse_idle(dry_run=dry_run)
        _reset(opened, as_json=as_json)
        return
    from ..runtimes.tuning.choosing import tune as measure
    from ..runtimes.tuning.tuned_files import check_folder, keep_tuning

    if not dry_run:
        check_folder()
    with stages() as progress:
        found = measure(opened, device=device, progress=progress, **measured)
    kept = None if dry_run else keep_tuning(opened, found.tuning, device=device)
    if as_json:
        print_json(_figures(found, kept))
        return
    console().print(table("Tried", ["setting", ">value", ">decode tokens/s", ">first token s", ""],
                          [_row(trial) for trial in found.trials]))  # fmt: skip
    for sentence in _sentences(found):
        click.echo(sentence)
    click.echo(kept or "Nothing was kept.")


def _refuse_idle(*, dry_run: bool) -> None:
    context = click.get_current_context()
    given = [name for name in ("size", "tokens", "repeats")
             if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]  # fmt: skip
    if dry_run or given:
        raise InputError("--reset measures nothing; leave out what says how to measure")


def _reset(bundle: Bundle, *, as_json: bool) -> None:
    from ..runtimes.tuning.tuned_files import forget_tunings

    count = forget_tunings(bundle)
    if as_json:
        print_json({"bundle": str(bundle.path), "forgotten": count})
    else:
        forgotten = {0: "nothing was", 1: "one tuning is"}.get(count, f"{count} tunings are")
        click.echo(f"{bundle.path} runs with the usual defaults: {forgotten} forgotten.")


def _row(trial: Trial) -> tuple[object, ...]:
    chosen = ", ".join(FOR.get(field, "yes") for field in trial.chosen)
    remark = f"chosen for {chosen}" if chosen not in ("", "yes") else "chosen" * bool(chosen)
    value = f"{trial.value}{' (usual)' if trial.usual else ''}"
    further, first = trial.median("token_s"), trial.median("first_token_s")
    return (WORDS[trial.setting], value, f"{1 / further:.1f}" if further else "", f"{first:.3f}",
            remark if trial.same else "another answer, not to be chosen")  # fmt: skip


def _sentences(found: Findings) -> list[str]:
    """What is to be known beside the table."""
    said = []
    if any(trial.setting.endswith("drafts") for trial in found.trials):
        said.append("Speeds with drafts are those of an answer of which seven of ten drafts are right.")
    if found.left_out:
        reasons = defaultdict[str, list[str]](list)
        for name, reason in found.left_out.items():
            reasons[reason].append(WORDS[name])
        parts = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
        said.append(f"Not tuned: {'; '.join(parts)}.")
    return said


def _figures(found: Findings, kept: Path | None) -> dict[str, Any]:
    from dataclasses import asdict

    trials = [
        {
            "setting": trial.setting,
            "value": trial.value,
            "usual": trial.usual,
            "first_token_s": trial.median("first_token_s"),
            "tokens_per_s": 1 / further if (further := trial.median("token_s")) else None,
            "same_answer": trial.same,
            "chosen_for": list(trial.chosen),
            "runs": [{"first_token_s": run.first_token_s, "token_s": run.token_s} for run in trial.runs],
        }
        for trial in found.trials
    ]
    return {"tuning": asdict(found.tuning), "kept": kept and str(kept), "trials": trials, "not_tuned": found.left_out}
