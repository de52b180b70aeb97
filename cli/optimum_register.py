"""`optimum-cli export lensmith`: the wheel installs this file where optimum looks for commands of other packages."""

from __future__ import annotations

from argparse import ArgumentParser

import click
from lensmith.cli import main
from lensmith.cli.export import export
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

CHECKPOINT, OUT = "checkpoint", "out"
TASKS = ("auto", "image-text-to-text")  # what bundles do, in optimum's words


class LensmithExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum is not typed
    """The options of `lensmith export`, handed on as they are, with the checkpoint and the output as optimum has them.

    `--model CHECKPOINT OUT` is optimum's way; `CHECKPOINT OUT` and `CHECKPOINT -o OUT` are the same.
    """

    COMMAND = CommandInfo(name="lensmith", help="Compile a vision-language model into a lensmith bundle.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare each option of the click command; all may come several times, which is for that to judge."""
        parser.add_argument("-m", "--model", action="append", default=[], help="The checkpoint.")
        parser.add_argument("--task", choices=TASKS, help="Has no effect: bundles answer questions about images.")
        parser.add_argument("paths", nargs="*", metavar="OUT", help="The new bundle; without --model: CHECKPOINT OUT.")
        for parameter in export.params:
            if not isinstance(parameter, click.Option):
                continue
            if parameter.is_flag:
                parser.add_argument(*parameter.opts, dest=parameter.name, action="store_true", help=_help(parameter))
            else:
                parser.add_argument(
                    *parameter.opts, dest=parameter.name, action="append", default=[], help=_help(parameter)
                )

    def run(self) -> None:
        """Run `lensmith export` with what was given."""
        arguments, paths = [], list(self.args.model)
        for parameter in export.params:
            if not isinstance(parameter, click.Option):
                continue
            given = getattr(self.args, str(parameter.name))
            if parameter.is_flag:
                arguments += [parameter.opts[-1]] if given else []
            elif parameter.name == OUT and given:
                arguments += [f"--out={value}" for value in given]
            else:
                arguments += [f"{parameter.opts[-1]}={value}" for value in given]
        paths += self.args.paths
        if len(paths) > 1 and not self.args.out:
            arguments += [f"--out={paths.pop()}"]
        main(["export", *arguments, "--", *paths])


def _help(option: click.Option) -> str:
    return (option.help or "").replace("%", "%%")


REGISTER_COMMANDS = [(LensmithExportCommand, ExportCommand)]
