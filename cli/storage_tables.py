"""Tables of what a bundle takes: planned weights, and files."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from .screen import console, count, pairs, size, table

if TYPE_CHECKING:
    from ..exporters.planning.planned_bundle import Plan


def print_plan(plan: Plan) -> None:
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
