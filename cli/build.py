"""The command that finishes a bundle on its device: build."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .long_work import stages
from .option_types import AS_JSON, FORCE, NEW_FOLDER, Once
from .screen import console, print_json, table
from .storage_tables import component_sizes


@click.command(cls=Once)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=NEW_FOLDER, help="The new bundle folder; default: in place.")
@FORCE
@AS_JSON
def build(bundle: Path, out: Path | None, force: bool, as_json: bool) -> None:
    """Build the TensorRT engines of BUNDLE on the device it is for. An interrupted build continues when run again."""
    from ..exporters.formats.tensorrt.finish import build as finish

    started = time.perf_counter()
    with stages() as progress:
        made = finish(bundle, out, progress, force=force)
    files = {name: file.size for name, file in made.manifest.files.items()}
    result = {"bundle": str(made.path), "files": files, "seconds": round(time.perf_counter() - started, 1)}
    if as_json:
        print_json(result)
        return
    console().print(table("Bundle", ["component", "files", ">size"], component_sizes(files)))
    click.echo(made.path)
