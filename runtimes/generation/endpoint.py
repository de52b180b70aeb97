"""Requests of Hugging Face's Inference Endpoints, answered by a bundle: what a repository's handler.py calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...targets.errors import InputError
from ..media.links import fetched
from ..prompt.messages import SOURCES, as_messages, parts_of
from .loading import load
from .model import Model

RENAMED = {"stop_sequences": "stop", "stop_strings": "stop"}  # of text-generation-inference and transformers
ALONE = ("question", "text", "prompt")  # names of the text beside an image


class Endpoint:
    """Answers bodies `{"inputs": ..., "parameters": {...}}` with `[{"generated_text": ...}]`."""

    def __init__(self, path: str | Path) -> None:
        """`path`: the folder of the bundle. Raises InputError for what is none that answers."""
        model = load(path)
        if not isinstance(model, Model):
            raise InputError(f"the bundle {path} has no decoder and answers nothing; export the whole model")
        self.model = model

    def __call__(self, data: Mapping[str, Any]) -> list[dict[str, str]]:
        """`inputs` are messages, a text, or `{"image": ..., "text": ...}`; images are links or base64.

        `parameters` are options of `Model.generate`. Raises InputError for what would not be obeyed.
        """
        messages = _messages(data.get("inputs"))
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise InputError(f"parameters are a {type(parameters).__name__}; expected an object")
        chosen = {str(RENAMED.get(name, name)): value for name, value in parameters.items()}
        if chosen.get("return_full_text") is False:  # there never is more
            del chosen["return_full_text"]
        answer = self.model.generate(messages, self.model.default_options(), **chosen)
        return [{"generated_text": answer.read()}]


def _messages(inputs: Any) -> list[dict[str, Any]]:
    if isinstance(inputs, Mapping):
        text = next((inputs[name] for name in ALONE if name in inputs), None)
        unknown = sorted(inputs.keys() - {"image", "images", *ALONE})
        if not isinstance(text, str) or unknown:
            named = f"have {unknown[0]!r}" if unknown else "have no text"
            raise InputError(f'inputs {named}; expected messages, a text or {{"image": ..., "text": ...}}')
        several = inputs.get("images", [inputs["image"]] if "image" in inputs else [])
        parts = [{"type": "image", "image": image} for image in several]
        inputs = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    if isinstance(inputs, Sequence) and not isinstance(inputs, str) and inputs and isinstance(inputs[0], list | tuple):
        if len(inputs) > 1:
            raise InputError(f"inputs are {len(inputs)} conversations; send them one by one")
        inputs = inputs[0]
    return [_opened(message) for message in as_messages(inputs)]


def _opened(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose images are data or bytes: a request names no file of the machine that answers it."""
    if not parts_of(message):
        return dict(message)
    return {**message, "content": [_opened_part(part) for part in parts_of(message)]}


def _opened_part(part: Mapping[str, Any]) -> dict[str, Any]:
    sources = SOURCES.get(part["type"], ())
    kept = {name: value for name, value in part.items() if name not in sources}
    for source in (part[name] for name in sources if name in part):
        kept[part["type"]] = _source(source, part["type"])
    return kept


def _source(source: Any, kind: str) -> Any:
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str):
        raise InputError(f"the {kind} is a {type(source).__name__}; expected a link, a data URL or base64")
    if source.startswith(("http://", "https://")):
        return fetched(source, public=True)
    return source if source.startswith("data:") else f"data:{kind}/;base64,{source}"
