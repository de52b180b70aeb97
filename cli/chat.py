"""`lensmith chat`: a conversation, see talk.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..targets.errors import InputError
from .answering import LOADING, SAMPLING, SYSTEM, VIDEO, open_model
from .option_types import KEYS, Once
from .template_options import TEMPLATE, template_variables


@click.command(cls=Once)
@click.argument("bundle", type=click.Path(path_type=Path))
@VIDEO
@SYSTEM
@TEMPLATE
@SAMPLING
@LOADING
@KEYS
def chat(
    bundle: Path, system: str | None, fps: float | None, num_frames: int | None, keys: tuple[Path, ...], **chosen: Any
) -> None:
    """Talk with BUNDLE; /help lists what can be typed. Ctrl-C stops an answer, Ctrl-D ends."""
    from ..runtimes.bundle.opening import open_bundle
    from .talk import Talk

    if fps is not None and num_frames is not None:
        raise InputError("--fps and --frames both say how many frames are taken; leave one of them out")
    variables = template_variables(chosen)
    model, generation = open_model(open_bundle(bundle, trusted_keys=keys or None), chosen, variables)
    Talk(model, generation, system, {"fps": fps, "num_frames": num_frames}, variables).loop()
