"""Tokens in tokenizer_config.json, added_tokens.json and tokenizer.json that a stranger wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.pipeline import Options, prepare
from lensmith.targets.errors import InputError

from tests.exporters.families.test_strange_configs import linked
from tests.paths import TINY

CONFIG, ADDED, TOKENIZER = "tokenizer_config.json", "added_tokens.json", "tokenizer.json"
ODD: tuple[Any, ...] = (["x"], {"a": 1}, 5, 0.5, True)
NAMED = "names the special token"
LISTED = "lists added tokens wrongly"
RIGHT: tuple[tuple[str, Any], ...] = (("its flag", True), ("an older list", 5), ("more special tokens", ["x"]))
FIRST = "778"  # of the checkpoint's own list
KINDS = {
    "a special token": (CONFIG, ("eos_token",), NAMED),
    "its content": (CONFIG, ("pad_token",), NAMED),
    "more special tokens": (CONFIG, ("additional_special_tokens",), NAMED),
    "a listed token": (CONFIG, ("added_tokens_decoder", FIRST), LISTED),
    "its text": (CONFIG, ("added_tokens_decoder", FIRST, "content"), LISTED),
    "its flag": (CONFIG, ("added_tokens_decoder", FIRST, "special"), LISTED),
    "the list": (CONFIG, ("added_tokens_decoder",), LISTED),
    "an older list": (ADDED, ("<|new|>",), LISTED),
    "a token": (TOKENIZER, ("added_tokens", 0, "content"), "not a tokenizer that lensmith supports"),
    "all tokens": (TOKENIZER, ("added_tokens",), "not a tokenizer that lensmith supports"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_other_types(kind: str, tmp_path: Path) -> None:
    name, place, words = KINDS[kind]
    for odd in ODD:
        if (kind, odd) in RIGHT:
            continue
        path = TINY / "qwen3_vl" / name
        values = json.loads(path.read_text()) if path.exists() else {}
        inner = values
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = {"content": odd} if kind == "its content" else odd
        folder = linked("qwen3_vl", tmp_path / "made", name, values)
        if name == ADDED:  # counts where the newer list is missing
            config = json.loads((folder / CONFIG).read_text())
            (folder / CONFIG).unlink()
            (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if k != "added_tokens_decoder"}))
        with pytest.raises(InputError, match=words):
            prepare(folder, Options())


def test_halves_of_surrogates_are_no_tokens(tmp_path: Path) -> None:
    values = json.loads((TINY / "qwen3_vl" / CONFIG).read_text())
    values["added_tokens_decoder"][FIRST]["content"] = "\ud800"
    with pytest.raises(InputError, match=LISTED):
        prepare(linked("qwen3_vl", tmp_path / "made", CONFIG, values), Options())


@pytest.mark.parametrize("key", ["eos_token", "pad_token", "image_token", "chat_template"])
def test_halves_of_surrogates_are_no_text(key: str, tmp_path: Path) -> None:
    values = json.loads((TINY / "qwen3_vl" / CONFIG).read_text()) | {key: "<\ud800>"}
    folder = linked("qwen3_vl", tmp_path / "made", CONFIG, values)
    if key == "chat_template":
        (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=f"{key.replace('_', '.')}.* holds half of a surrogate pair; expected text"):
        prepare(folder, Options())
    values[key] = {"content": "<\udfff>"} if key != "chat_template" else [{"name": "default", "template": "\udfff"}]
    (folder / CONFIG).unlink()
    (folder / CONFIG).write_text(json.dumps(values))
    with pytest.raises(InputError, match="half of a surrogate pair"):
        prepare(folder, Options())
