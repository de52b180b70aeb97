"""Bundles called as transformers' `pipeline("image-text-to-text")` is: a script of a model card runs with one import
changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from tokenizers import Tokenizer

from ...targets.errors import InputError, closest
from ..media.links import fetched
from ..prompt.messages import parts_of
from ..prompt.requests import question_message
from .loading import load
from .model import Model

TASK = "image-text-to-text"
NEW_TOKENS = 256  # as there, where nothing else is said
OF_PYTORCH = ("torch_dtype", "dtype", "device_map", "trust_remote_code", "model_kwargs", "framework", "use_fast")
RENAMED = {"stop_strings": "stop"}  # names of `generate` there that have others here
Chat: TypeAlias = "Sequence[Mapping[str, Any]]"


class Streamer(Protocol):
    """What transformers' TextStreamer is: it gets the prompt, then each token."""

    def put(self, value: Any) -> None:
        """Token ids [1, seq] or [1], of the prompt first."""

    def end(self) -> None:
        """Nothing more comes."""


class PipelineTokenizer:
    """As much of transformers' tokenizers as its streamers use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: int | Sequence[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of token ids, or of one."""
        listed = [int(ids)] if isinstance(ids, int | np.integer) else [int(each) for each in ids]
        return self._tokenizer.decode(listed, skip_special_tokens=skip_special_tokens)


class Pipeline:
    """A bundle as transformers' ImageTextToTextPipeline."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tokenizer = PipelineTokenizer(model.prompts.tokenizer)

    def __call__(self, images: Any = None, text: Any = None, **asked: Any) -> list[Any]:
        """Answers a chat, several chats, or a text with its images.

        Gives `[{"input_text": ..., "generated_text": ...}]`, of a list of chats a list of such lists. The generated
        text of a chat is the chat with the answer, with `return_full_text=False` the answer alone. Options are those of
        `Model.generate` and of `generate_kwargs`, where a `streamer` may be. Raises InputError as that does.
        """
        if text is None and _is_chat(images):
            images, text = None, images
        if _is_chat(text) and images is not None:
            raise InputError("the images of a chat belong into its messages; leave `images` out")
        if _is_chat(text):
            chats = [text] if isinstance(text[0], Mapping) else list(text)
            answers = [[self._answer(chat, chat, **asked)] for chat in chats]
            return answers[0] if chats[0] is text else answers
        if not isinstance(text, str):
            raise InputError("a pipeline takes a chat, or a text with or without images; give text=...")
        several = images if isinstance(images, list | tuple) else [] if images is None else [images]
        return [self._answer([question_message(text, several)], text, **asked)]

    def _answer(
        self,
        chat: Chat,
        given: Any,
        *,
        return_full_text: bool = True,
        generate_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool | None = None,
        **asked: Any,
    ) -> dict[str, Any]:
        options = {RENAMED.get(name, name): value for name, value in (generate_kwargs or {}).items()}
        if twice := sorted(options.keys() & asked.keys()):
            raise InputError(f"{twice[0]} is given twice, once in generate_kwargs; leave one of them out")
        streamer: Streamer | None = options.pop("streamer", None)
        chosen = {"max_new_tokens": NEW_TOKENS, **options, **asked}
        continued = chat[-1]["role"] == "assistant" if continue_final_message is None else continue_final_message
        base = self.model.default_options()
        if continued:
            chosen["continue_final_message"] = True
        answer = self.model.generate([_with_pictures(message) for message in chat], base, **chosen)
        told = 0
        if streamer is not None:
            streamer.put(answer.prompt_ids[None])
        for _ in answer:
            told = _tell(streamer, answer.ids, told)
        _tell(streamer, answer.ids, told)
        if streamer is not None:
            streamer.end()
        return {"input_text": given, "generated_text": _generated(given, answer.text, continued, return_full_text)}


def pipeline(
    task: str = TASK,
    model: str | Path | Model | None = None,
    *,
    threads: int | None = None,
    context: int | None = None,
    device: str | int | None = None,
    **others: Any,
) -> Pipeline:
    """A pipeline over a bundle, for the task "image-text-to-text".

    What transformers' function takes besides says how PyTorch loads a model: it has no effect on a bundle, and a
    warning says so. Raises InputError for another task, and as `load` does.
    """
    if task != TASK:
        raise InputError(f"the task {task!r} is not one of bundles; {closest(task, [TASK])}")
    if model is None:
        raise InputError("a pipeline needs the path of a bundle; give model=...")
    for name in others:
        if name not in OF_PYTORCH:
            raise InputError(f"pipeline has no option {name!r}; {closest(name, [*OF_PYTORCH, 'threads', 'context'])}")
        warnings.warn(f"{name} has no effect on a bundle, whose precision was chosen when it was built", stacklevel=2)
    opened = model
    if not isinstance(opened, Model):
        wished = device if isinstance(device, str) and device not in ("auto", "cpu") else None
        loaded = load(opened, threads=threads, context=context, device=wished)
        if not isinstance(loaded, Model):
            raise InputError(f"the bundle {model} has no decoder and answers nothing; load it for features instead")
        opened = loaded
    return Pipeline(opened)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], list | tuple | Mapping)


def _tell(streamer: Streamer | None, ids: Sequence[int], told: int) -> int:
    """Give a streamer the tokens behind the first `told`; how many there are."""
    if streamer is not None:
        for token in ids[told:]:
            streamer.put(np.array([token], np.int64))
    return len(ids)


def _with_pictures(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose pictures behind links are fetched, as transformers does."""
    parts: Iterable[Mapping[str, Any]] = parts_of(message)
    if not parts:
        return dict(message)
    return {**message, "content": [_with_picture(part) for part in parts]}


def _with_picture(part: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("image", "video", "url"):
        link = part.get(key)
        if isinstance(link, str) and link.startswith(("http://", "https://")):
            others = {name: value for name, value in part.items() if name != key}
            return {**others, ("video" if part.get("type") == "video" else "image"): fetched(link)}
    return dict(part)


def _generated(given: Any, answer: str, continued: bool, full: bool) -> Any:
    """What is generated, as transformers has it: a chat goes on, a text is longer."""
    if not full:
        return answer
    if isinstance(given, str):
        return given + answer
    if not continued:
        return [*given, {"role": "assistant", "content": answer}]
    last = dict(given[-1])
    content = last["content"]
    if isinstance(content, str):
        last["content"] = content + answer
    else:
        last["content"] = [*content[:-1], {**content[-1], "text": content[-1]["text"] + answer}]
    return [*given[:-1], last]
