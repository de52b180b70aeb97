"""`optimum-cli export lensmith`: the wheel installs this file where optimum looks for commands of other packages."""

from __future__ import annotations

from argparse import ArgumentParser

import click
from lensmith.exporters.cli import main
from lensmith.exporters.cli.build import export
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class LensmithExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum is not typed
    """The options of `lensmith export`, handed on as they are."""

    COMMAND = CommandInfo(name="lensmith", help="Compile a vision-language model into a lensmith bundle.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare each argument and option of the click command."""
        for parameter in export.params:
            if isinstance(parameter, click.Argument):
                parser.add_argument(str(parameter.name))
            elif isinstance(parameter, click.Option) and parameter.is_flag:
                parser.add_argument(*parameter.opts, dest=parameter.name, action="store_true", help=parameter.help)
            elif isinstance(parameter, click.Option):
                parser.add_argument(*parameter.opts, dest=parameter.name, help=parameter.help)

    def run(self) -> None:
        """Run `lensmith export` with what was given."""
        arguments = ["export"]
        for parameter in export.params:
            value = getattr(self.args, str(parameter.name))
            if value in (None, False):
                continue
            option = [] if isinstance(parameter, click.Argument) else [parameter.opts[-1]]
            arguments += [*option] if value is True else [*option, value]
        main(arguments)


REGISTER_COMMANDS = [(LensmithExportCommand, ExportCommand)]
