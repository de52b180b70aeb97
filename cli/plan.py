"""`lensmith plan`: what a bundle will take, before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .checkpoint_options import CHOICES, prepared
from .option_types import AS_JSON, Once
from .screen import console, pairs, print_json, size, table
from .storage_tables import print_plan

if TYPE_CHECKING:
    from ..exporters.planning.planned_bundle import Plan


@click.command(cls=Once, short_help="Say what the bundle of CHECKPOINT will take; write nothing.")
@CHOICES
@AS_JSON
def plan(as_json: bool, **choices: Any) -> None:
    """Say what the bundle of CHECKPOINT will take on disk and in memory, without writing anything."""
    figures = prepared(**choices)[1]
    if as_json:
        print_json(figures.to_json())
        return
    print_plan(figures)
    _print_device(figures)
    for note in figures.notes:
        click.echo(f"\nnote: {note}")


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
