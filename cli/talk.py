"""The conversation of `lensmith chat`: lines typed or piped in, slash commands, answers as they come."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..runtimes.generation.model import Model
from ..runtimes.generation.options import GenerationOptions
from ..runtimes.prompt.requests import user_message
from ..targets.errors import InputError, LensmithError, closest
from .answering import stream_parts, system_messages
from .standard_streams import read_line, unicode

HELP = """/image FILE   add an image to the next message; several are possible
/video FILE   add a video or an animated image to it
/tool NAME RESULT  give the result of a tool that the model called; it goes on when it has all
/system TEXT  set the system message and start over
/reset        forget the conversation
/help         show this
/quit         end; Ctrl-D does the same
Ctrl-C stops the current answer; what was said stays in the conversation."""
QUIT = "quit"


class Talk:
    """One conversation with a model."""

    def __init__(
        self,
        model: Model,
        generation: GenerationOptions,
        system: str | None,
        wishes: Mapping[str, float | None],
        variables: Mapping[str, Any],
    ) -> None:
        """`wishes` for the frames of videos, as of `user_message`; `variables` of the chat template."""
        self.model, self.generation, self.system = model, generation, system
        self.wishes, self.variables = wishes, variables
        self.messages: list[dict[str, Any]] = system_messages(system)
        self.images: list[str] = []
        self.videos: list[str] = []
        self.called: list[dict[str, Any]] = []  # calls whose results the model waits for
        self.results: list[dict[str, Any]] = []
        self.interactive = sys.stdin is not None and sys.stdin.isatty()
        self.commands: dict[str, Callable[[str], str | None]] = {
            "image": partial(self._add, "image", self.images), "video": partial(self._add, "video", self.videos),
            "tool": self._tool,
            "system": self._system, "reset": self._reset, "help": self._help, "quit": self._quit,
        }  # fmt: skip

    def loop(self) -> None:
        """Read and answer lines until the input ends. Piped in, the first error ends it; typed, it is only shown."""
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (input() then edits and remembers lines)
            click.echo("/help lists the commands", err=True)
        while (line := self._read()) is not None:
            try:
                if self._take(line) == QUIT:
                    return
            except LensmithError as error:
                if not self.interactive:
                    raise
                click.echo(f"error: {' '.join(str(error).split())}", err=True)

    def _read(self) -> str | None:
        try:
            line = unicode(input("> "), "the line") if self.interactive else read_line()
            return None if line is None else line.strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            click.echo("\n(Ctrl-D or /quit ends)", err=True)
            return ""

    def _take(self, line: str) -> str | None:
        if not line.startswith("/"):
            if line:
                self._answer(line)
            return None
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            raise InputError(f"no command /{name}; {closest(name, self.commands)}")
        return self.commands[name](rest.strip())

    def _answer(self, question: str) -> None:
        message = user_message(question, self.images, self.videos, **(self.wishes if self.videos else {}))
        self._go_on([*self.results, message])

    def _tool(self, text: str) -> None:
        """Take the result of one call; the model goes on when it has those of all."""
        name, _, result = text.partition(" ")
        called = [call["function"]["name"] for call in self.called]
        if name not in called:
            hint = closest(name, called) if called else "its last answer calls no tool"
            raise InputError(f"the model did not call {name or 'a tool without a name'}; {hint}")
        if not result.strip():
            raise InputError(f"the result of {name} is empty; expected /tool {name} and its result")
        call = self.called.pop(called.index(name))
        called.remove(name)
        self.results.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": result.strip()})
        if called:
            click.echo(f"(still to come: {', '.join(called)})", err=True)
        else:
            self._go_on(self.results)

    def _go_on(self, new: list[dict[str, Any]]) -> None:
        """Answer the conversation with `new` messages, and show which tools the answer calls."""
        answer = self.model.generate([*self.messages, *new], self.generation, **self.variables)
        self._drop_media()
        try:
            stream_parts(answer)
        except KeyboardInterrupt:
            click.echo("\n(stopped)", err=True)
        message = answer.message
        if not self.model.prompts.reads_thoughts:
            message.pop("reasoning_content", None)
        self.messages += [*new, message]
        self.called, self.results = [*message.get("tool_calls", ())], []
        for function in (call["function"] for call in self.called):
            click.echo(f"(calls {function['name']} {function['arguments']}; "
                       f"answer with /tool {function['name']} RESULT)", err=True)  # fmt: skip

    def _add(self, kind: str, to: list[str], path: str) -> None:
        if not Path(path).is_file():
            article = "an" if kind == "image" else "a"
            raise InputError(f"{path or f'/{kind}'} is not a file; expected /{kind} and the path of {article} {kind}")
        to.append(path)

    def _drop_media(self) -> None:
        self.images.clear()
        self.videos.clear()

    def _system(self, text: str) -> None:
        self.system = text or None
        self._reset()

    def _reset(self, _: str = "") -> None:
        self.messages = system_messages(self.system)
        self.called, self.results = [], []
        self._drop_media()

    def _help(self, _: str) -> None:
        click.echo(HELP, err=True)

    def _quit(self, _: str) -> str:
        return QUIT
