"""The text of an answer, piece by piece, as thoughts, text and calls of tools.

Any way to cut a text into pieces gives the same events, once neighbours are merged. What may still become a tag is held
back; a call comes out whole, so that nothing ever has to be taken back: one that is cut off or malformed is text.

- Thinking is opened by the prompt or by `<think>` at the beginning of an answer, and lasts until `</think>` or to the
  end.
- A call in the thoughts counts where the model says nothing behind them: it forgot to end them first. Where it goes on,
  the call was a draft.
- White space next to tags is no text.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..bundle.input_sections import Speech
from .call_forms import (
    CLOSING,
    FUNCTION,
    OPENING,
    CallReader,
    NoCall,
    WholeCall,
    arguments_text,
    reader_of,
    tool_schemas,
)
from .events import BrokenCall, Event, Reasoning, Text, ToolCall, merged

THINK, THINK_END = "<think>", "</think>"
PLAIN = Speech()


def new_call_id() -> str:
    """An id for a call, unlike any other."""
    return f"call_{uuid.uuid4().hex[:24]}"


class DialogueParser:
    """Takes pieces of one answer and gives events."""

    def __init__(
        self,
        speech: Speech = PLAIN,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        thinking: bool = False,
        make_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`thinking`: whether the prompt ends within the model's thoughts. Without `tools` nothing is a call."""
        self._speech, self._tools = speech, tool_schemas(tools)
        calls = bool(tools) and speech.tool_calls is not None
        self._openings = (OPENING, *((FUNCTION,) if speech.tool_calls == "xml" else ())) if calls else ()
        self._make_id, self._calls = make_id, 0
        self._rest, self._events = "", list[Event]()
        self._thinking = thinking
        self._step: Callable[[bool], bool] = self._begin if speech.reasoning or thinking else self._text
        self._reader: CallReader | None = None
        self._reason = ""  # why something is no call
        self._looked = 0  # how much of the rest holds no end
        self._space, self._said = "", False  # held back at the end of the text; whether there is text
        self._behind_tag = False  # so that white space is none

    def push(self, piece: str) -> list[Event]:
        """The events that are certain after one more piece."""
        self._rest += piece
        return self._run(final=False)

    def finish(self) -> list[Event]:
        """Those of the rest; the answer has ended."""
        events = self._run(final=True)
        if self._space and not self._behind_tag and not self._thinking:
            events.append(Text(self._space))
        self._space = ""
        return events

    @property
    def thinking(self) -> bool:
        """Whether what comes next are thoughts, as far as it is known."""
        return self._thinking

    def _run(self, *, final: bool) -> list[Event]:
        while self._step(final):
            pass
        events, self._events = self._events, []
        return events

    # Each step takes what it can from the beginning of the rest, and says whether the next one may go on.

    def _begin(self, final: bool) -> bool:
        stripped = self._rest.lstrip()
        if THINK.startswith(stripped) and stripped != THINK and not final:
            return False
        if stripped.startswith(THINK):
            self._rest, self._thinking = stripped.removeprefix(THINK), True
        self._step = self._thoughts if self._thinking else self._text
        self._behind_tag = self._thinking
        return True

    def _thoughts(self, final: bool) -> bool:
        found = self._first((THINK_END, *self._openings[:1]))
        if found is None:
            self._think(self._taken_but_tags((THINK_END, *self._openings[:1]), final))
            return False
        place, tag = found
        self._think(self._take(place))
        if tag == THINK_END:
            self._take(len(tag))
            self._end_thoughts()
            return True
        reader = reader_of(self._rest, self._tools, final=final)
        if isinstance(reader, NoCall):  # the tag alone
            self._think(self._take(len(tag)))
            return True
        if reader is not None:
            self._step, self._looked = self._draft, 0
        return reader is not None

    def _draft(self, final: bool) -> bool:
        """A call among the thoughts, up to the end of these and the first word behind."""
        place = self._rest.find(THINK_END, self._looked)
        if place < 0:
            self._looked = max(0, len(self._rest) - len(THINK_END) + 1)
            if final:
                self._end_with_calls(self._take(len(self._rest)))
            return False
        self._looked = place
        behind = self._rest[place + len(THINK_END) :]
        if not behind.strip():
            if final:
                self._end_with_calls(self._take(place))
                self._rest = ""
            return False
        self._think(self._take(place))
        self._take(len(THINK_END))
        self._end_thoughts()
        return True

    def _end_with_calls(self, thoughts: str) -> None:
        """Calls that the model made within its last thoughts."""
        inner = DialogueParser(Speech(tool_calls=self._speech.tool_calls), (), make_id=self._make_id)
        inner._tools, inner._openings = self._tools, self._openings
        events = merged([*inner.push(thoughts), *inner.finish()])
        if not any(isinstance(event, ToolCall) for event in events):
            events = [Text(thoughts)]
        for event in events:
            if isinstance(event, ToolCall):
                self._events.append(event)
            else:
                self._think(event.text)
        self._end_thoughts()

    def _end_thoughts(self) -> None:
        self._thinking, self._step = False, self._text
        self._space, self._said, self._behind_tag = "", False, True

    def _text(self, final: bool) -> bool:
        found = self._first(self._openings)
        if found is None:
            self._say(self._taken_but_tags(self._openings, final))
            return False
        self._say(self._take(found[0]))
        self._step = self._call
        return True

    def _call(self, final: bool) -> bool:
        """A call, or another one in the same pair of tags."""
        if self._reader is None:
            reader = reader_of(self._rest, self._tools, final=final)
            if isinstance(reader, NoCall):
                self._say(self._take(len(OPENING)))
                self._step = self._text
                return True
            if reader is None:
                return False
            self._reader = reader
        result = self._reader.read(self._rest, final=final)
        if isinstance(result, WholeCall):
            self._events.append(ToolCall(self._calls, self._make_id(), result.name, arguments_text(result.arguments)))
            self._calls += 1
            self._take(result.end)
            self._behind_tag, self._step = True, self._behind
        elif isinstance(result, NoCall):
            self._reason, self._looked, self._step = result.reason, result.end, self._broken
        if result is not None:
            self._reader = None
        return result is not None

    def _behind(self, final: bool) -> bool:
        """What follows a call: the closing tag, or a further call without it."""
        stripped = self._rest.lstrip()
        if stripped.startswith(CLOSING):
            self._rest = stripped.removeprefix(CLOSING)
        elif (CLOSING.startswith(stripped) or FUNCTION.startswith(stripped)) and not final:
            return False
        elif stripped.startswith(("{", FUNCTION)):
            self._step = self._call
            return True
        self._step = self._text
        return True

    def _broken(self, final: bool) -> bool:
        """The rest of what is no call, to its closing tag."""
        place = self._rest.find(CLOSING, self._looked)
        if place < 0 and not final:
            self._looked = max(0, len(self._rest) - len(CLOSING) + 1)
            return False
        text = self._take(len(self._rest) if place < 0 else place + len(CLOSING))
        if self._space and not (self._behind_tag and not self._said):
            self._events.append(Text(self._space))
        self._space, self._said, self._behind_tag, self._step = "", True, False, self._text
        self._events.append(BrokenCall(text, self._reason))
        return True

    def _first(self, tags: Sequence[str]) -> tuple[int, str] | None:
        """The first of the tags in the rest."""
        return min(((place, tag) for tag in tags if (place := self._rest.find(tag)) >= 0), default=None)

    def _taken_but_tags(self, tags: Sequence[str], final: bool) -> str:
        """The rest, without an end that may begin a tag."""
        longest = 0 if final else min(max(map(len, tags), default=1) - 1, len(self._rest))
        held = next((n for n in range(longest, 0, -1) if any(tag.startswith(self._rest[-n:]) for tag in tags)), 0)
        return self._take(len(self._rest) - held)

    def _take(self, count: int) -> str:
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def _think(self, text: str) -> None:
        if body := self._stripped(text):
            self._events.append(Reasoning(body))

    def _say(self, text: str) -> None:
        if body := self._stripped(text):
            self._events.append(Text(body))

    def _stripped(self, text: str) -> str:
        """`text` behind the white space that was held back, without what is to be held back."""
        whole = self._space + text
        body = whole.rstrip()
        self._space = whole[len(body) :]
        if body:
            body = body.lstrip() if self._behind_tag and not self._said else body
            self._said, self._behind_tag = True, False
        return body
