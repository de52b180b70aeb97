"""Commands for signed bundles: keygen, sign."""

from __future__ import annotations

from pathlib import Path

import click

from .option_types import Once

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=Once)
@click.option("-o", "--out", type=FILE, required=True, metavar="FILE", help="The private key; FILE.pub is the public.")
def keygen(out: Path) -> None:
    """Make a pair of keys to sign bundles with. Keep the private one secret; products get the public one."""
    from ..runtimes.bundle.signature import make_keys

    public = out.with_name(f"{out.name}.pub")
    make_keys(out, public)
    click.echo(public)


@click.command(cls=Once, short_help="Sign BUNDLE with a private key.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=FILE, required=True, metavar="FILE", help="The private key: PEM, or 32 raw bytes.")
def sign(bundle: Path, key: Path) -> None:
    """Sign BUNDLE, all of whose files are compared with its manifest first."""
    from ..runtimes.bundle.opening import open_bundle
    from ..runtimes.bundle.signature import sign as write_signature

    opened = open_bundle(bundle, check="sha256")
    click.echo(write_signature(opened.path, key))
