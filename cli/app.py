"""The group of all commands, and how each failure becomes one sentence and an exit code.

0    done
1    a check ran and failed
2    unusable input or command line
3    a defect of lensmith; LENSMITH_DEBUG=1 shows the traceback
130  stopped with Ctrl-C
141  the reader of the output went away; commands that make or check something finish that instead
"""

from __future__ import annotations

import errno
import importlib.metadata
import itertools
import os
import sys
from collections.abc import Iterator, Sequence

import click

from ..targets.errors import LensmithError
from .batch import batch
from .build import build
from .chat import chat
from .compare import compare
from .embed import embed
from .export import export
from .inspect import inspect
from .matrix import matrix
from .plan import plan
from .run import run as ask
from .screen import PRINTED, print_json
from .serve import serve
from .sign import keygen, sign
from .standard_streams import close_streams, open_streams, unicode
from .synth import synth
from .targets import targets
from .tune import tune
from .verbs import Verbs
from .verify import verify

INTERNAL, INTERRUPTED, PIPE_CLOSED = 3, 130, 141
REPORT = "please report it with the command and what LENSMITH_DEBUG=1 prints"
WORKERS = (
    "batch",
    "embed",
    "export",
    "build",
    "synth",
    "compare",
    "matrix",
    "verify",
    "tune",
)  # have work to finish, whoever reads their output


@click.group(cls=Verbs, invoke_without_command=True,
             context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})  # fmt: skip
@click.version_option(importlib.metadata.version("lensmith"), prog_name="lensmith")
@click.pass_context
def lensmith(context: click.Context) -> None:
    """Compile vision-language models into small, exact, provable bundles, and run them without PyTorch."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


for command in (
    plan,
    export,
    ask,
    chat,
    verify,
    compare,
    matrix,
    inspect,
    tune,
    batch,
    embed,
    serve,
    synth,
    targets,
    build,
    keygen,
    sign,
):
    lensmith.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    outlets = open_streams(stops=not given or given[0] not in WORKERS)
    code = run(given)
    if (error := close_streams(outlets)) is not None and code == 0:
        code = _report(error)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    printed: dict[str, object] = {}
    try:
        given = [unicode(argument, "the argument") for argument in arguments]
        with lensmith.make_context("lensmith", given) as context:  # lensmith.main() would deal with errors itself
            printed = context.meta
            lensmith.invoke(context)
        sys.stdout.flush()
        return 0
    except BaseException as error:
        if isinstance(error, click.exceptions.Exit):  # --help and --version
            return error.exit_code
        if os.environ.get("LENSMITH_DEBUG"):
            raise
        return _report(error, as_json=_wants_json(arguments) and PRINTED not in printed)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command was to print JSON, which its failure then is, too."""
    options = list(arguments)
    options = options[: options.index("--")] if "--" in options else options
    if options[:1] == ["compare"]:  # which names a file
        return "--json=-" in options or ("--json", "-") in itertools.pairwise(options)
    return "--json" in options


def _report(error: BaseException, *, as_json: bool = False) -> int:
    """Say what went wrong on stderr, in one line, and as JSON on stdout where that was wanted; the exit code."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return PIPE_CLOSED
    message, code = _sentence(error)
    sentence = " ".join(message.split())
    if as_json:
        print_json({"error": sentence, "exit_code": code})
    print("error:", sentence, file=sys.stderr)
    return code


def _sentence(error: BaseException) -> tuple[str, int]:
    if any(isinstance(each, KeyboardInterrupt | click.Abort) for each in _chain(error)):  # libraries may rename it
        return "stopped; exports, builds and batches continue where they were when they are run again", INTERRUPTED
    if isinstance(error, LensmithError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        return f"{error.format_message().rstrip('.')}; see: {context.command_path if context else 'lensmith'} --help", 2
    if isinstance(error, MemoryError):
        return "the memory of this machine is full; choose a smaller --context or --max-pixels", 2
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'the system'}: {error.strerror}; check the path, its rights and its disk", 2
    if isinstance(error, UnicodeEncodeError):
        text, encoding = ascii(error.object[max(error.start - 20, 0) : error.end + 20]), error.encoding
        return f"the text {text} cannot be written in {encoding}; names of files want a locale of UTF-8", 2
    return f"this is a defect of lensmith ({type(error).__name__}: {str(error)[:300]}); {REPORT}", INTERNAL


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from or during."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
