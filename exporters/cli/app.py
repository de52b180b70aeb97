"""The group of all commands, and how each failure becomes one sentence and an exit code.

0    done
1    a check ran and failed
2    unusable input or command line
3    a defect of lensmith; LENSMITH_DEBUG=1 shows the traceback
130  stopped with Ctrl-C
141  the reader of the output went away
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import sys
from collections.abc import Sequence

import click

from ...targets.errors import LensmithError
from . import answer, build, check, engines, measure

INTERNAL, INTERRUPTED, PIPE_CLOSED = 3, 130, 141
REPORT = "please report it with the command and what LENSMITH_DEBUG=1 prints"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(importlib.metadata.version("lensmith"), prog_name="lensmith")
def lensmith() -> None:
    """Compile vision-language models into small, exact, provable bundles, and run them without PyTorch."""


for command in (*build.COMMANDS, *engines.COMMANDS, *answer.COMMANDS, *measure.COMMANDS, *check.COMMANDS):
    lensmith.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a replaced stream of an embedding program
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        with lensmith.make_context("lensmith", given) as context:  # lensmith.main() would deal with errors itself
            lensmith.invoke(context)
        sys.stdout.flush()
        return 0
    except BaseException as error:
        if isinstance(error, click.exceptions.Exit):  # --help and --version
            return error.exit_code
        if os.environ.get("LENSMITH_DEBUG"):
            raise
        return _report(error)


def _report(error: BaseException) -> int:
    """Say what went wrong on stderr, in one line; the exit code."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush at exit
        return PIPE_CLOSED
    message, code = _sentence(error)
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


def _sentence(error: BaseException) -> tuple[str, int]:
    if isinstance(error, LensmithError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "stopped; an export that is run again continues with the graphs it had finished", INTERRUPTED
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        return f"{error.format_message().rstrip('.')}; see: {context.command_path if context else 'lensmith'} --help", 2
    if isinstance(error, MemoryError):
        return "the memory of this machine is full; choose a smaller --context or --max-pixels", 2
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'the system'}: {error.strerror}; check the path, its rights and its disk", 2
    return f"this is a defect of lensmith ({type(error).__name__}: {str(error)[:300]}); {REPORT}", INTERNAL
