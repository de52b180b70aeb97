"""Errands as text of Qwen3.5's chat template, from which the caller learns, and the tokenizer that has its words."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from tests.paths import TINY
from tests.training.errands import TOOLS, Call, Errand
from tests.training.hugging_face import AutoTokenizer
from tests.training.hybrid import FORMAT
from tests.training.long_tasks import LONG_WORDS
from tests.training.scenes import Question
from tests.training.tokenizer import SPLIT_WITH_MARKS, build_tokenizer

START = "<|im_start|>user"
NEEDS_NONE = "I need no tool."  # the thought before an answer without one
OTHER_WORDS = (  # of errands, thoughts and final texts
    "Put the shapes into cart Who owns I put shape for The picture has The price is The owner Look up word both words "
    "means shows and It have no tool need that"
)


@cache
def tools_section(names: tuple[str, ...]) -> str:
    """The template's text before the user's turn when these tools are given; none without tools."""
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY / "qwen3_5")
    tools = [TOOLS[name] for name in names] or None
    text: str = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tools=tools, tokenize=False)
    return text[: text.index(START)]


def new_tokenizer() -> Tokenizer:
    """The tokenizer with every piece of the section of tools, of calls and of errands as one token."""
    call = Call("look_up", {"text": ""}, {"meaning": "", "price": "", "owner": ""})
    text = tools_section(tuple(TOOLS)) + call_text([call]) + json.dumps(call.response)
    splitter = pre_tokenizers.Split(Regex(SPLIT_WITH_MARKS), behavior="isolated")
    found = [piece.strip(" ") for piece, _ in splitter.pre_tokenize_str(text) if piece.strip()]
    words = [*LONG_WORDS, *OTHER_WORDS.split(), *found]
    return build_tokenizer(list(dict.fromkeys(words)), split=SPLIT_WITH_MARKS)


def call_text(calls: Sequence[Call]) -> str:
    """The calls in the template's XML."""
    return "\n".join(
        f"<tool_call>\n<function={call.name}>\n"
        + "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in call.arguments.items())
        + "</function>\n</tool_call>"
        for call in calls
    )


def responses_text(calls: Sequence[Call]) -> str:
    """The user's turn with what the tools answer, from the end of the assistant's turn on."""
    responses = (f"\n<tool_response>\n{json.dumps(call.response)}\n</tool_response>" for call in calls)
    return f"\n{START}{''.join(responses)}"


def errand_questions(errand: Errand) -> Iterator[Question]:
    """How the errand may go on: without thoughts, with thoughts, and with thoughts that the history has lost."""
    calls, responses = call_text(errand.calls), responses_text(errand.calls)
    first, last = errand.thoughts
    final = f"{last}\n</think>\n\n{errand.final}"
    answered, turn, turn_to_think = responses + FORMAT.end, FORMAT.turn, FORMAT.thinking_turn
    yield Question(errand.task, errand.prompt, calls, ((answered + turn, errand.final),))
    yield thoughtful(Question(errand.task, errand.prompt, calls, ((answered + turn_to_think, final),)), first)
    history = errand.prompt + FORMAT.end + turn + calls + FORMAT.end + responses
    yield thoughtful(Question(errand.task, history, errand.final), last)


def thoughtful(asked: Question, thought: str) -> Question:
    """The question with a thought before its answer."""
    return replace(asked, answer=f"{thought}\n</think>\n\n{asked.answer}", thinks=True)
