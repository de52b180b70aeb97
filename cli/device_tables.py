"""Tables of what a build does on a device: memory, times, and the builds that a budget leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from .screen import console, pairs, size, table

if TYPE_CHECKING:
    from ..exporters.planning.device_plan import DevicePlan
    from ..exporters.planning.proposals import Proposal

COLUMNS = ["format", "precision", ">group", ">pixels up to", ">context", ">weights", ">memory", ">first token",
           ">tokens/s", "besides"]  # fmt: skip


def print_memory(device: DevicePlan) -> None:
    """Where the memory goes at the limits of the bundle."""
    need, asked = device.memory, device.asked
    rows = {name.replace("_", " "): size(value) for name, value in need.to_json().items() if value}
    rows.pop("loading", None)
    image = {"largest image": f"{asked.max_pixels:,} pixels"} if asked.max_pixels else {}
    screen = console()
    screen.print(pairs("Memory", {"of": device.target, "there": size(device.usable_bytes),
                                  "full context": f"{asked.context} tokens", **image, **rows}))  # fmt: skip
    screen.print()


def print_times(device: DevicePlan) -> None:
    """What is predicted of questions about images of common sizes, and of decoding."""
    screen = console()
    rows: list[tuple[object, ...]] = []
    for pixels, row in device.images.items():
        times = map(_seconds, (row.vision_s, row.prefill_s, row.first_token_s))
        rows.append((pixels, row.image_tokens, *times, size(row.memory_bytes)))
    columns = ["pixels", ">image tokens", ">vision", ">prefill", ">first token", ">memory"]
    if not device.decode_tokens_per_s:  # an encoder alone
        rows, columns = [(*row[:3], row[5]) for row in rows], [*columns[:3], columns[5]]
    if rows:
        screen.print(table(f"Predicted on {device.target}", columns, rows))
        screen.print()
    if device.decode_tokens_per_s:
        paces = {f"behind {length:,} tokens": f"{pace:.1f} tokens/s"
                 for length, pace in device.decode_tokens_per_s.items()}  # fmt: skip
        screen.print(pairs("Decoding", paces))
        screen.print()


def print_verdict(device: DevicePlan, *, wished: bool) -> None:
    """Whether the build fits; where it does not, or something was wished, what does."""
    if device.fits:
        click.echo(f"This build fits {device.target}{' and keeps to the wishes' if wished else ''}.")
    for sentence in device.misses:
        click.echo(f"This build does not fit {device.target}: {sentence}.")
    if device.fits and not wished:
        return
    if device.proposals:
        click.echo()
        console().print(table("Builds that keep to it, the best first", COLUMNS, map(_row, device.proposals)))
    for sentence in device.nearest_misses:
        click.echo(f"No build does; the nearest, {_named(device.nearest)}: {sentence}.")


def print_targets(found: Mapping[str, Proposal | list[str]]) -> None:
    """The best build for each target, or why there is none."""
    rows = [(name, *_row(made)) if not isinstance(made, list) else (name, *[""] * (len(COLUMNS) - 1), "; ".join(made))
            for name, made in found.items()]  # fmt: skip
    console().print(table("The best build for each target", ["target", *COLUMNS], rows))


def _row(made: Proposal) -> Sequence[object]:
    return (made.format, made.precision, made.group_size or "", f"{made.max_pixels:,}" if made.max_pixels else "",
            made.context, size(made.bundle_bytes), size(made.memory_bytes), _seconds(made.first_token_s),
            f"{made.decode_tokens_per_s:.1f}" if made.decode_tokens_per_s else "",
            "wants calibration" if made.calibrate else "")  # fmt: skip


def _named(made: Proposal | None) -> str:
    return f"{made.format} {made.precision}" if made else "none"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"
