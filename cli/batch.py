"""`lensmith batch`: a file of questions to a file of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..targets.errors import CheckFailed
from .answering import LOADING, SAMPLING, open_model
from .long_work import stages
from .option_types import AS_JSON, KEYS, Once
from .screen import console, pairs, print_json
from .template_options import TEMPLATE, template_variables


@click.command(cls=Once)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("tasks", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Where answers go, a line each; what an earlier run answered there is left alone.")  # fmt: skip
@TEMPLATE
@SAMPLING
@LOADING
@KEYS
@AS_JSON
def batch(bundle: Path, tasks: Path, out: Path, keys: tuple[Path, ...], as_json: bool, **chosen: Any) -> None:
    """Answer each line of TASKS with BUNDLE.

    A line is a JSON object with `prompt` and `images`, or with `messages`. Lines that cannot be answered get an
    `error`, and exit code 1 says that there are some. An interrupted run continues when it is run again.
    """
    from ..runtimes.bundle.opening import open_bundle
    from ..runtimes.generation.answer_file import answer_file

    variables = template_variables(chosen)
    model, generation = open_model(open_bundle(bundle, trusted_keys=keys or None), chosen, variables)
    with stages() as progress:
        counts = answer_file(model, tasks, out, generation, told=lambda *at: progress("answers", *at), **variables)
    figures = {"answered": counts.answered, "answered before": counts.kept, "cannot be answered": counts.failed}
    if as_json:
        print_json({"out": str(out), "answered": counts.answered, "kept": counts.kept, "failed": counts.failed})
    else:
        console().print(pairs(str(out), {name: str(value) for name, value in figures.items()}))
    if counts.failed:
        raise CheckFailed(f"{counts.failed} lines cannot be answered; {out} says why")
