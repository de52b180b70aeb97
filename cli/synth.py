"""`lensmith synth`: a checkpoint of random weights."""

from __future__ import annotations

from pathlib import Path

import click

from .long_work import needs, stages
from .option_types import FORCE, NEW_FOLDER, Once


@click.command(cls=Once, short_help="Write a checkpoint of random weights, to measure with.")
@click.argument("name")
@click.option("-o", "--out", "out", required=True, type=NEW_FOLDER, help="The new folder.")
@click.option("--tiny", is_flag=True, help="The same architecture at a few million parameters.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@FORCE
def synth(name: str, out: Path, tiny: bool, seed: int, force: bool) -> None:
    """Write a checkpoint of random weights in the architecture NAME, to measure size, memory and speed.

    NAME is qwen3-vl-2b, tarn-2b or nemotron-4b (Qwen3.5), vqwen3-4b (LLaVA), qwen2.5-vl-3b, qwen2-vl-2b, smolvlm2-500m
    or arlow-vision.
    """
    with needs("export", "lensmith synth"):
        from ..exporters.synth.making import synth as write
    with stages() as progress:
        folder = write(name, out, tiny=tiny, seed=seed, force=force,
                       progress=lambda done, total: progress("weights", done, total))  # fmt: skip
    click.echo(folder)
