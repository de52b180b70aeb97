"""All commands in the order in which they are needed, and what is meant by the names of others."""

from __future__ import annotations

import click

EXPORT, RUN, COMPARE = (
    "export CHECKPOINT -o BUNDLE",
    'run BUNDLE "QUESTION" --image FILE',
    "compare BUNDLE --against CHECKPOINT",
)
MEANT = {
    "calibrate": f"{EXPORT} --calibrate auto", "quantize": f"{EXPORT} --precision int4", "compile": EXPORT,
    "convert": EXPORT, "ask": RUN, "generate": RUN, "benchmark": COMPARE, "evaluate": COMPARE,
    "info": "inspect BUNDLE", "check": "verify BUNDLE", "server": "serve BUNDLE",
}  # fmt: skip


class Verbs(click.Group):
    """A group that lists its commands as they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in MEANT:
            raise click.UsageError(f"there is no command {args[0]!r}; try: lensmith {MEANT[args[0]]}", ctx)
        return super().resolve_command(ctx, args)
