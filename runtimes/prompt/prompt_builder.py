"""Conversations into token ids, as the Hugging Face processor makes them: template, tokenizer, placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ...targets.errors import ContextFull, InputError
from ..bundle.input_sections import Speech, TileWords
from ..storage.reading import read_utf8
from .call_history import with_calls
from .continuation import ends_in_thoughts
from .messages import Messages, as_messages
from .positions import NO_TOKEN, Grids
from .prompt_parts import Ids, Prompt, PromptSpec, VideoLayout
from .reach import MARK, REASONING, Chat, check_reaches
from .speech import find_speech
from .template import MOST_SOURCE_BYTES, ChatTemplate
from .tokenizer_check import open_tokenizer, panics_told
from .variables import checked_variables


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
        self.image_token_id = _token_id(tokenizer, spec.image_token) if spec.image_token else NO_TOKEN
        self.video_token_id = _token_id(tokenizer, spec.video_token) if spec.video_token else None

    @cached_property
    def speech(self) -> Speech:
        """How the model writes calls and thoughts."""
        return self.spec.speech or find_speech(self.template)

    @property
    def reads_thoughts(self) -> bool:
        """Whether the template reads those of earlier turns; where it does not, messages must not have any."""
        return bool({*REASONING} & self.template.words.keys)

    @cached_property
    def tags(self) -> frozenset[int]:
        """Tokens around thoughts and calls, which are text, even where the tokenizer has them as special ones."""
        thoughts = ("<think>", "</think>") if self.speech.reasoning else ()
        calls = ("<tool_call>", "</tool_call>") if self.speech.tool_calls else ()
        ids = map(self.tokenizer.token_to_id, (*thoughts, *calls))
        return frozenset(number for number in ids if number is not None)

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation; `variables` (tools, enable_thinking, add_vision_id, ...) go to the template.

        It ends with the beginning of an answer, unless `continue_final_message` lets it end within the last message: in
        its content, or in the field of that name. Raises InputError for what would not reach the text.
        """
        if not isinstance(continue_final_message, bool | str) or not isinstance(add_generation_prompt, bool | None):
            raise InputError(f"continue_final_message is {continue_final_message!r} and add_generation_prompt "
                             f"{add_generation_prompt!r}; expected true or false")  # fmt: skip
        said = as_messages(messages)
        chat = with_calls(
            [_in_parts(message) for message in said] if self._parts_alone else said,
            lambda: self.speech.arguments,
            reads_ids=lambda: "tool_call_id" in self.template.words.keys,
        )
        given = {**self.spec.template_kwargs, **checked_variables(variables, self.template)}
        continued = "content" if continue_final_message is True else continue_final_message or None
        if continued is not None and add_generation_prompt:
            raise InputError("continue_final_message goes on with the last message and add_generation_prompt begins a "
                             "new one; leave one of them out")  # fmt: skip
        given["add_generation_prompt"] = continued is None if add_generation_prompt is None else add_generation_prompt

        def render(chat: Chat) -> str:
            return self.template.render(chat, continued=continued, **given)

        text = render(chat)
        check_reaches(chat, text, render, lambda: self.template.words.keys)
        return text

    @cached_property
    def _parts_alone(self) -> bool:
        """Whether the template loses what is said as a text, and has it as a part, as that of SmolVLM does."""
        said: dict[str, Any] = {"role": "user", "content": MARK}
        try:
            texts = [self.template.render([each], **self.spec.template_kwargs) for each in (said, _in_parts(said))]
        except InputError:
            return False
        printed = "'text'" in texts[1]  # the list as it is
        return not printed and [MARK in text for text in texts] == [False, True]

    def encode(self, text: str, grids: Grids = (), videos: Sequence[VideoLayout] = ()) -> Prompt:
        """Token ids of rendered `text`, each image placeholder repeated for its grid (t, h, w), counted in patches.

        That of an image in tiles becomes one for each tile, with words around it; its grid is (rows, columns, tokens of
        each tile), and the prompt has a grid for each tile. A video's placeholder becomes `<0.3 seconds>` and a
        placeholder between start and end for each temporal patch first, in models whose prompts have timestamps. Raises
        InputError when placeholders and images or videos differ in number.
        """
        if self.spec.tiles is not None:
            text = self._with_tiles(text, self.spec.tiles, grids)
            grids = [(1, 1, int(tokens)) for rows, columns, tokens in grids for _ in range(tile_count(rows, columns))]
        ids = self._ids(self._with_frames(text, videos))
        video_token = -1 if self.video_token_id is None else self.video_token_id
        places = np.flatnonzero((ids == self.image_token_id) | (ids == video_token))
        of_video = ids[places] == video_token
        self._check_number("image", int((~of_video).sum()), len(grids))
        ordered = np.zeros((len(places), 3), np.int64)
        ordered[~of_video] = np.asarray(grids, np.int64).reshape(-1, 3)
        whole = not self.spec.timestamps
        frames = [grid for video in videos for grid in ([video.grid] if whole else video.frame_grids())]
        ordered[of_video] = np.asarray(frames, np.int64).reshape(-1, 3)
        lengths = ordered.prod(axis=1) // self.spec.merge_size**2
        repeats = np.ones(len(ids), np.int64)
        repeats[places] = lengths
        starts = places + np.cumsum(lengths - 1) - (lengths - 1)
        spans = np.stack([starts, starts + lengths], axis=1)
        gaps = iter([video.interval for video in videos])
        intervals = tuple(next(gaps) if each else 0.0 for each in of_video) if whole and videos else ()
        return Prompt(np.repeat(ids, repeats), spans, ordered, of_video, intervals)

    def for_decoder(self, ids: Ids) -> Ids:
        """Token ids as the decoder's graph takes them: with image placeholders in place of those of videos.

        The graph puts features in the place of one placeholder. They replace its embedding, so it may be either.
        """
        return ids if self.video_token_id is None else np.where(ids == self.video_token_id, self.image_token_id, ids)

    def _ids(self, text: str) -> Ids:
        """Token ids of a text, as ProcessorMixin.apply_chat_template has them."""
        begins = self.spec.bos_token is not None and text.startswith(self.spec.bos_token)
        with panics_told("the tokenizer fails on this text"):
            return np.array(self.tokenizer.encode(text, add_special_tokens=not begins).ids, np.int64)

    def _with_tiles(self, text: str, words: TileWords, grids: Grids) -> str:
        """`text` with a placeholder for each tile, between the words that tell its row and its column."""
        token = self.spec.image_token or ""
        before, *parts = text.split(token)
        self._check_number("image", len(parts), len(grids))
        tiles = (tile_words(int(rows), int(columns), token, words) for rows, columns, _ in grids)
        return before + "".join(each + part for each, part in zip(tiles, parts, strict=True))

    def _with_frames(self, text: str, videos: Sequence[VideoLayout]) -> str:
        """`text` with a timestamp and a placeholder for each temporal patch, as transformers 5 writes them.

        The start and end that the template puts around a video stay; transformers 4.57 left them out.
        """
        spec = self.spec
        before, *parts = text.split(spec.video_token) if spec.video_token else [text]
        self._check_number("video", len(parts), len(videos))
        if not spec.timestamps:
            return text
        frame = f"{spec.vision_start_token or ''}{spec.video_token}{spec.vision_end_token or ''}"
        filled = ("".join(f"<{second:.1f} seconds>{frame}" for second in video.seconds) for video in videos)
        return before + "".join(frames + part for frames, part in zip(filled, parts, strict=True))

    def _check_number(self, kind: str, placeholders: int, given: int) -> None:
        if placeholders != given:
            token = {"image": self.spec.image_token, "video": self.spec.video_token}[kind]
            raise InputError(f"the prompt has {placeholders} {kind} placeholders for {given} {kind}s; give one {kind} "
                             f"for each {kind} block, and keep {token} out of the text")  # fmt: skip

    def build(
        self, messages: Messages, grids: Grids = (), videos: Sequence[VideoLayout] = (), **variables: Any
    ) -> Prompt:
        """`render`, then `encode`: `grids` in the order of the images, `videos` in that of the videos."""
        text = self.render(messages, **variables)
        continued = variables.get("continue_final_message")
        thinking = ends_in_thoughts(text, messages, continued) if self.speech.reasoning else False
        return replace(self.encode(text, grids, videos), thinking=thinking)


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose text is a part."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def tile_count(rows: int, columns: int) -> int:
    """Tiles of an image, the whole image behind those of a grid among them."""
    return int(rows * columns) + int(rows * columns > 1)


def tile_words(rows: int, columns: int, token: str, words: TileWords) -> str:
    """What stands for an image in tiles: rows of them, a line for each, and the whole image."""
    whole = f"{words.around}{words.whole}{token}{words.around}"
    if rows * columns == 1:
        return whole
    lines = []
    for row in range(1, rows + 1):
        in_row = words.cell.replace("{row}", str(row))
        cells = (in_row.replace("{column}", str(column)) for column in range(1, columns + 1))
        lines.append("".join(f"{words.around}{cell}{token}" for cell in cells))
    return "\n".join(lines) + "\n\n" + whole


def open_prompt(folder: Path, spec: PromptSpec) -> PromptBuilder:
    """Read `tokenizer.json` and `chat_template.jinja` of a folder; raises InputError if either is missing or broken."""
    template = read_utf8(folder / "chat_template.jinja", MOST_SOURCE_BYTES, "the chat template of a whole bundle")
    return PromptBuilder(open_tokenizer(folder / "tokenizer.json"), template, spec)


def _token_id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise InputError(f"the tokenizer has no token {name!r}; use the tokenizer.json of the same model")
    return found


def check_context(n_tokens: int, limit: int, larger: str) -> None:
    """Raise ContextFull when a prompt leaves no room for an answer in `limit` tokens; `larger` says how to get more."""
    if n_tokens >= limit:
        raise ContextFull(f"the prompt has {n_tokens} tokens, the context holds {limit} with the answer; "
                         f"shorten the conversation, use smaller images or fewer frames, or {larger}")  # fmt: skip
