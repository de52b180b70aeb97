"""What `lensmith run` does with a bundle that has no decoder: images and videos to a file of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..runtimes.bundle.opening import Bundle
from ..runtimes.generation.encoder import Encoder, Features, save_features
from ..runtimes.storage.new_file import check_new_file
from ..targets.errors import InputError
from .screen import console, print_json, table

COLUMNS = ["file", "grid", "features", "deepstack", ">image ms", ">vision ms"]


def encode(
    bundle: Bundle,
    images: Sequence[str],
    out: Path | None,
    *,
    videos: Sequence[str],
    fps: float | None,
    num_frames: int | None,
    as_json: bool,
    **loading: Any,
) -> None:
    """Write the features of images, then of videos, and print what they are."""
    if out is None or not (images or videos):
        raise InputError(f"{bundle.path} makes features of images; expected --image FILE and -o FEATURES.npz")
    if loading.pop("max_video_pixels") is not None:
        raise InputError(f"{bundle.path} limits the frames of a video one by one; leave out --max-video-pixels")
    if not videos and (fps is not None or num_frames is not None):
        raise InputError("--fps and --frames have no effect without --video; leave them out")
    check_new_file(out)
    encoder = Encoder(bundle, **loading)
    items = [encoder.image(file) for file in images]
    items += [encoder.clip(file, fps=fps, num_frames=num_frames) for file in videos]
    save_features(out, items)
    rows = [_row(file, item) for file, item in zip([*images, *videos], items, strict=True)]
    if as_json:
        print_json({"out": str(out), "items": rows})
        return
    console().print(table("Features", COLUMNS, [tuple(row.values()) for row in rows]))
    click.echo(out)


def _row(file: str, item: Features) -> dict[str, Any]:
    """One item as figures; shapes as lists."""
    return {
        "file": file,
        "grid": list(item.grid),
        "features": list(item.features.shape),
        "deepstack": None if item.deepstack is None else list(item.deepstack.shape),
        "image_ms": round(item.image_ms, 1),
        "vision_ms": round(item.vision_ms, 1),
    }
