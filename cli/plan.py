"""`lensmith plan`: what a bundle will take and how quickly it will answer, before anything is built."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..targets.errors import InputError
from .checkpoint_options import CHOICES, prepared
from .device_tables import print_memory, print_targets, print_times, print_verdict
from .option_types import AS_JSON, AboveZero, Once, named, parse_seconds, parse_size
from .screen import console, pairs, print_json, size, table
from .storage_tables import print_plan

if TYPE_CHECKING:
    from ..exporters.planning.planned_bundle import Plan

OF_MODEL = ("context", "max_pixels", "revision")  # choices that any build of it keeps to
OF_BUILD = ("adapter", "format", "precision", "group_size", "asymmetric", "kv_cache", "tensor_types")


@click.command(cls=Once, short_help="Say what the bundle of CHECKPOINT will take; write nothing.")
@CHOICES
@click.option(
    "--memory",
    callback=parse_size,
    metavar="SIZE",
    help='Memory that a model may take, as "3.5GB"; default: what the target has to give.',
)
@click.option(
    "--first-token",
    callback=parse_seconds,
    metavar="TIME",
    help='Longest wait for the first token of an answer about the largest image, as "1s" or "800ms".',
)
@click.option("--decode", type=AboveZero(), metavar="N", help="Fewest tokens a second behind it.")
@click.option("--all-targets", is_flag=True, help="One table: the best build for each target.")
@AS_JSON
def plan(
    memory: int | None,
    first_token: float | None,
    decode: float | None,
    all_targets: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Say what the bundle of CHECKPOINT will take on disk and in memory, and how quickly it will answer.

    Nothing is written. CHECKPOINT may be a folder of configurations without weights. With a budget, builds that keep to
    it are proposed, the best first.
    """
    wishes = {"memory_bytes": memory, "first_token_s": first_token, "decode_tokens_per_s": decode,
              "context": choices["context"], "max_pixels": choices["max_pixels"]}  # fmt: skip
    if all_targets:
        _all_targets(wishes, as_json=as_json, **choices)
        return
    with _uncollected():
        figures = prepared(**choices, wishes=wishes)[1]
    if as_json:
        print_json(figures.to_json())
        return
    print_plan(figures)
    _print_device(figures)
    print_memory(figures.device)
    print_times(figures.device)
    print_verdict(figures.device, wished=any(value is not None for value in (memory, first_token, decode)))
    for note in figures.notes:
        click.echo(f"\nnote: {note}")


def _all_targets(wishes: dict[str, Any], *, as_json: bool, **choices: Any) -> None:
    from ..exporters.planning.device_plan import plan_targets
    from ..exporters.planning.proposals import Budget
    from .checkpoint_options import opened

    if choices["target"] is not None:
        raise InputError(f"--all-targets is about every target; leave out --target {choices['target']}")
    _refuse_builds()
    kept = {name: choices[name] for name in OF_MODEL}
    with _uncollected():
        found = plan_targets(opened(choices["checkpoint"], choices["hub_revision"], **kept), Budget(**wishes))
    if as_json:
        print_json({name: made if isinstance(made, list) else asdict(made) for name, made in found.items()})
    else:
        print_targets(found)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Leaves cycles alone: a graph has ten thousand objects that all stay; looking through them doubles the time."""
    wanted = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if wanted:
            gc.enable()


def _refuse_builds() -> None:
    """InputError for an option about one build: those of each target are chosen here."""
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in OF_BUILD:
            raise InputError(f"--all-targets chooses the build for each target; leave out {named(option)}")


def _print_device(plan: Plan) -> None:
    screen = console()
    if plan.attention_bytes:
        _print_encoder(plan)
        return
    screen.print(pairs("On the device", {
        "KV cache": f"{size(plan.cache_bytes_per_token)} for each token that is used",
        "KV cache, whole context": f"{size(plan.cache_bytes)} for {plan.context} tokens",
        **({"recurrent states": f"{size(plan.state_bytes)} for any context"} if plan.state_bytes else {}),
    }))  # fmt: skip
    screen.print()


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
    screen.print()
