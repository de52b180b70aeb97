"""`lensmith targets`: the devices that bundles can be made for."""

from __future__ import annotations

from dataclasses import asdict

import click

from .option_types import AS_JSON, Once
from .screen import console, print_json, table


@click.command(cls=Once)
@AS_JSON
def targets(as_json: bool) -> None:
    """List the devices that `lensmith export --target` knows."""
    from ..targets.profile import load_target, target_names

    profiles = [asdict(load_target(name)) for name in target_names()]
    if as_json:
        print_json(profiles)
        return
    rows = [
        [row["name"], row["dialect"], row["prefill_chunk"], ", ".join(row["lacks"]), row["description"]]
        for row in profiles
    ]
    console().print(table("Targets", ["name", "dialect", ">prefill chunk", "lacks", "description"], rows))
