"""Where a checkpoint keeps its chat template and the settings of its processors, in transformers' order of precedence.

`AutoProcessor` of transformers 5 reads processor_config.json first, for settings and template alike; a tokenizer alone,
of a model without images, does not read it at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...runtimes.prompt.template import MOST_SOURCE_BYTES
from ...runtimes.storage.files import read_json
from ...runtimes.storage.reading import read_utf8
from ...targets.errors import InputError
from .conventions import Conventions
from .special_tokens import is_text

PROCESSOR, IMAGE, VIDEO = "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"
TOKENIZER, JINJA, LEGACY = "tokenizer_config.json", "chat_template.jinja", "chat_template.json"
MORE = "additional_chat_templates"
DEFAULT = "default"

Settings = dict[str, Any]


def json_file(path: Path) -> Settings:
    """The object in a JSON file; empty where there is none."""
    return read_json(path) if path.is_file() else {}


def settings(own: Conventions, processor: Settings, key: str, *files: Path | None) -> Settings | None:
    """The settings of an image or a video processor: a part of processor_config.json, or the first file that is there.

    Encoders alone have their own file first. None where no place has them; an InputError for a part that is no object.
    """
    part = processor.get(key)
    if part is not None and not isinstance(part, dict):
        raise InputError(f"{PROCESSOR} has {key} {str(part)[:100]!r}; expected an object of settings")
    if own.files_first:
        return part if files[0] is None else read_json(files[0])
    return next((read_json(file) for file in files if file is not None), None) if part is None else part


def processor_class(processor: Settings, image: Settings | None, tokenizer: Settings) -> Any:
    """The class that the files name, from the first one that names any."""
    places = (processor, image or {}, tokenizer)
    return next((place["processor_class"] for place in places if place.get("processor_class") is not None), None)


def chat_template(folder: Path, own: Conventions, processor: Settings, tokenizer: Settings) -> str | None:
    """The default template of a folder, None where there is none; an InputError for places that contradict each other.

    tokenizer_config.json comes last: AutoProcessor would find nothing there, AutoTokenizer does.
    """
    # Templates by name; chat_template.jinja is the default one
    paths = {path.stem: path for path in sorted((folder / MORE).glob("*.jinja"))}
    paths |= {DEFAULT: folder / JINJA} if (folder / JINJA).is_file() else {}
    files = {name: read_utf8(path, MOST_SOURCE_BYTES, "a chat template") for name, path in paths.items()}
    of_processor = () if own.text_only else _of_processor(folder, processor, set(files))
    for place, found in (*of_processor, (JINJA, files or None), (TOKENIZER, tokenizer.get("chat_template"))):
        if found is not None:
            # The default one of several by name, or the only one.
            if isinstance(found, list) and place == TOKENIZER:
                pairs = [(item.get("name"), item.get("template")) for item in found if isinstance(item, dict)]
                found = {name: template for name, template in pairs if isinstance(name, str)}
            template = found.get(DEFAULT) if isinstance(found, Mapping) else found
            if not isinstance(template, str):
                what = f"the names {list(found)}" if isinstance(found, Mapping) else repr(found)
                raise InputError(
                    f"the chat template of {place} has {what[:100]}; expected one text, or one of the name {DEFAULT!r}"
                )
            if not is_text(template):
                raise InputError(f"the chat template of {place} holds half of a surrogate pair; expected text")
            return template
    return None


def _of_processor(folder: Path, processor: Settings, names: set[str]) -> Iterator[tuple[str, Any]]:
    yield PROCESSOR, processor.get("chat_template")
    if (folder / LEGACY).is_file():
        if names - {DEFAULT} or (folder / MORE / f"{DEFAULT}.jinja").is_file():
            raise InputError(f"{folder} has templates in {LEGACY} and in {MORE}; remove one of the two")
        yield LEGACY, read_json(folder / LEGACY).get("chat_template", {})
