"""Conversations into token ids, as the Hugging Face processor makes them: template, tokenizer, image placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ..targets.errors import InputError
from .template import ChatTemplate

Ids: TypeAlias = npt.NDArray[np.int64]
Message: TypeAlias = Mapping[str, Any]
_IMAGE_KEYS = ("image", "url", "path", "base64")  # where HF looks for the source of an image block


@dataclass(frozen=True)
class PromptSpec:
    """The special tokens of a model by name, its end tokens by id, and what its template gets besides the messages."""

    image_token: str = "<|image_pad|>"
    video_token: str | None = "<|video_pad|>"
    vision_start_token: str | None = "<|vision_start|>"
    vision_end_token: str | None = "<|vision_end|>"
    eos_token_ids: tuple[int, ...] = ()
    merge_size: int = 2
    token_ids: Mapping[str, int] = field(default_factory=dict)  # ids the model expects, by token, checked on opening
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.merge_size < 1:
            raise InputError(f"prompt merge_size is {self.merge_size}; expected at least 1")
        if any(not isinstance(token, int) or token < 0 for token in self.eos_token_ids):
            raise InputError(f"prompt eos_token_ids are {self.eos_token_ids}; expected token ids of at least 0")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The names that the tokenizer must know."""
        named = (self.image_token, self.video_token, self.vision_start_token, self.vision_end_token)
        return tuple(name for name in named if name is not None)


@dataclass(frozen=True)
class Prompt:
    """Token ids [seq], and where the tokens of each image are [images, (start, end)], in the order of the images."""

    ids: Ids
    image_spans: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


class PromptBuilder:
    """The tokenizer and the chat template of one model."""

    def __init__(self, tokenizer: Tokenizer, template: str, spec: PromptSpec) -> None:
        """Raises InputError for a special token the tokenizer lacks or numbers differently, and a broken template."""
        self.tokenizer, self.spec = tokenizer, spec
        self.template = ChatTemplate(template)
        for name in (*spec.special_tokens, *spec.token_ids):
            found = _token_id(tokenizer, name)
            if (expected := spec.token_ids.get(name, found)) != found:
                raise InputError(f"the tokenizer numbers {name!r} {found}, the model expects {expected}; "
                                 "use the tokenizer.json of the same model")  # fmt: skip
        self.image_token_id = _token_id(tokenizer, spec.image_token)
        self.video_token_id = _token_id(tokenizer, spec.video_token) if spec.video_token else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation; `variables` (tools, enable_thinking, add_vision_id, ...) go to the template."""
        chat = [_normalized(message) for message in _checked(messages)]
        given = {**self.spec.template_kwargs, **variables, "add_generation_prompt": add_generation_prompt}
        return self.template.render(chat, **given)

    def encode(self, text: str, grids: Sequence[Sequence[int]] | npt.NDArray[np.int64] = ()) -> Prompt:
        """Token ids of rendered `text`, each image placeholder repeated for its grid (t, h, w), counted in patches.

        Raises InputError when placeholders and images differ in number.
        """
        ids: Ids = np.array(self.tokenizer.encode(text).ids, np.int64)
        if self.video_token_id is not None and (ids == self.video_token_id).any():
            raise InputError(f"the prompt holds {self.spec.video_token}; send the frames of a video as images")
        places = np.flatnonzero(ids == self.image_token_id)
        if len(places) != len(grids):
            raise InputError(f"the prompt has {len(places)} image placeholders for {len(grids)} images; give one image "
                             f"for each image block, and keep {self.spec.image_token} out of the text")  # fmt: skip
        lengths = np.array([image_tokens(grid, self.spec.merge_size) for grid in grids], np.int64)
        repeats = np.ones(len(ids), np.int64)
        repeats[places] = lengths
        starts = places + np.cumsum(lengths - 1) - (lengths - 1)
        return Prompt(np.repeat(ids, repeats), np.stack([starts, starts + lengths], axis=1))

    def build(
        self,
        messages: Sequence[Message],
        grids: Sequence[Sequence[int]] | npt.NDArray[np.int64] = (),
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> Prompt:
        """`render`, then `encode`: `grids` in the order of `find_images(messages)`."""
        return self.encode(self.render(messages, add_generation_prompt=add_generation_prompt, **variables), grids)


def open_prompt(folder: Path, spec: PromptSpec) -> PromptBuilder:
    """Read `tokenizer.json` and `chat_template.jinja` of a folder; raises InputError if either is missing or broken."""
    try:
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the chat template of {folder} cannot be read ({error}); export the bundle again") from None
    return PromptBuilder(open_tokenizer(folder / "tokenizer.json"), template, spec)


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, without the truncation and padding it may ask for; raises InputError if it is unusable."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path} is not a usable tokenizer ({error}); expected a tokenizer.json") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def image_tokens(grid: Sequence[int] | npt.NDArray[np.int64], merge_size: int) -> int:
    """How many tokens an image with this grid (t, h, w) of patches takes in the prompt."""
    time, height, width = (int(size) for size in grid)
    return time * height * width // merge_size**2


def _token_id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise InputError(f"the tokenizer has no token {name!r}; use the tokenizer.json of the same model")
    return found


def find_images(messages: Sequence[Message]) -> list[Any]:
    """The sources of the images of a conversation in order, as the processor finds them; an image block needs one."""
    sources: list[Any] = []
    for message in map(_normalized, _checked(messages)):
        for block in message["content"] if isinstance(message.get("content"), list) else ():
            if isinstance(block, Mapping) and block.get("type") == "image":
                sources.append(_image_source(block))
    return sources


def _image_source(block: Mapping[str, Any]) -> Any:
    found = [(key, block[key]) for key in _IMAGE_KEYS if block.get(key) is not None]
    if len(found) != 1:
        raise InputError(f"an image block has {len(found)} sources; expected one of {', '.join(_IMAGE_KEYS)}")
    key, source = found[0]
    bare = key == "base64" and isinstance(source, str) and not source.startswith("data:")
    return f"data:image/;base64,{source}" if bare else source


def check_context(n_tokens: int, limit: int) -> None:
    """Raise InputError when a prompt of `n_tokens` leaves no room for an answer in a context of `limit` tokens."""
    if n_tokens >= limit:
        raise InputError(f"the prompt has {n_tokens} tokens, the context holds {limit} with the answer; "
                         "shorten the conversation or use smaller images")  # fmt: skip


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str | bytes | Mapping) or not messages:
        raise InputError("the conversation is empty or not a list; expected a list of messages with role and content")
    for message in messages:
        if not isinstance(message, Mapping):
            raise InputError(f"a message is a {type(message).__name__}; expected an object with role and content")
    return messages


def _normalized(message: Message) -> dict[str, Any]:
    """As the processor: keys without a value are left out, OpenAI's `image_url` blocks become `image` blocks."""
    kept = {key: value for key, value in message.items() if value is not None}
    if isinstance(kept.get("content"), list):
        kept["content"] = [_image_block(block) for block in kept["content"]]
    return kept


def _image_block(block: Any) -> Any:
    if not isinstance(block, Mapping) or block.get("type") != "image_url" or "image_url" not in block:
        return block
    url = block["image_url"]
    return {"type": "image", "url": url.get("url", "") if isinstance(url, Mapping) else url}
