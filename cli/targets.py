"""`lensmith targets`: the devices that bundles can be made for, one of them, and this machine as one more."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..targets.errors import InputError
from .option_types import AS_JSON, FORCE, THREADS, Once
from .screen import console, print_json, size, table


@click.command(cls=Once, short_help="List the devices that bundles are made for.")
@click.argument("name", required=False)
@click.option("--measure", is_flag=True, help="Measure how quickly this machine reads and computes; half a minute.")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.toml",
              help="Where --measure writes the profile, for --target FILE.toml.")  # fmt: skip
@THREADS
@FORCE
@AS_JSON
def targets(name: str | None, measure: bool, out: Path | None, threads: int | None, force: bool, as_json: bool) -> None:
    """List the devices that `--target` knows; with NAME, show the file of one, to be copied and changed."""
    _refuse_idle(name, out, threads, measure=measure, force=force)
    if measure:
        _measure(out, threads, force=force, as_json=as_json)
    elif name is not None:
        _show(name, as_json=as_json)
    else:
        _list(as_json=as_json)


def _refuse_idle(name: str | None, out: Path | None, threads: int | None, *, measure: bool, force: bool) -> None:
    idle = {"--out": out is not None, "--threads": threads is not None, "--force": force}
    if measure:
        if name is not None:
            raise InputError(f"--measure measures this machine, not {name}; leave one of them out")
        if out is None or out.suffix != ".toml":
            raise InputError(f"--measure writes a profile, and -o is {out or 'missing'}; expected -o mine.toml")
        if out.exists() and not force:
            raise InputError(f"{out} exists; choose another name, or add --force to replace it")
    elif any(idle.values()):
        option = next(each for each, given in idle.items() if given)
        raise InputError(f"{option} is for --measure; add that, or leave it out")


def _measure(out: Path | None, threads: int | None, *, force: bool, as_json: bool) -> None:
    from ..runtimes.measuring.measured_profile import measured_profile
    from ..runtimes.storage.new_file import write_text

    assert out is not None
    write_text(out, measured_profile(threads))
    if as_json:
        _show(str(out), as_json=True)
    click.echo(out, err=as_json)


def _show(name: str, *, as_json: bool) -> None:
    from ..targets.profile import load_target, target_text

    profile = load_target(name)
    if as_json:
        print_json(asdict(profile))
    else:
        click.echo(target_text(name).rstrip())


def _list(*, as_json: bool) -> None:
    from ..targets.profile import load_target, target_names

    profiles = [load_target(each) for each in target_names()]
    if as_json:
        print_json([asdict(profile) for profile in profiles])
        return
    rows = [
        [each.name, ", ".join(each.device.formats), size(each.device.usable_bytes),
         f"{each.device.read_bytes_per_s / 1e9:.0f}", f"{each.device.rate('int4') / 1e12:.2f}",
         ", ".join(each.lacks), each.description]
        for each in profiles
    ]  # fmt: skip
    columns = ["name", "formats", ">usable memory", ">reads, GB/s", ">computes, T/s", "lacks", "description"]
    console().print(table("Targets", columns, rows))
