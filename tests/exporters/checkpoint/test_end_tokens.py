"""What ends an answer: every place that names such a token, and none that only looks like it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lensmith.exporters.formats.gguf import gguf_files as gguf
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes.engines.llamacpp.header import read_gguf
from lensmith.targets.errors import InputError
from tokenizers import Tokenizer

from tests.helpers.extras import Ran, load
from tests.paths import TINY

IMAGE = TINY / "heldout" / "images" / "0001.png"
FAMILIES = ("qwen3_vl", "qwen3_5", "llava")
END, CLOSE, BOX, VISION = "<|endoftext|>", "<|im_end|>", "<|box_end|>", "<|vision_end|>"  # 796 and 798 of qwen3_5
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}CLOSE\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}LAST{% endif %}"
)


def template(close: str, last: str = "") -> str:
    return CHATML.replace("CLOSE", close).replace("LAST", last)


def source(
    folder: Path,
    family: str = "qwen3_5",
    *,
    generation: Any = None,
    outer: Any = None,
    text: Any = None,
    tokenizer: str | None = None,
    chat: str = NO_END,
) -> Path:
    """A trained checkpoint that names its end tokens at these places alone; None leaves a place out."""
    shutil.copytree(TINY / family, folder)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    config = json.loads((folder / "config.json").read_text())
    for section, value in ((config, outer), (config["text_config"], text)):
        section.pop("eos_token_id", None)
        section.update({} if value is None else {"eos_token_id": value})
    (folder / "config.json").write_text(json.dumps(config))
    named = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": tokenizer}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "chat_template.jinja").write_text(chat)
    return folder


def ends(path: Path) -> dict[str, list[str]]:
    job = prepare(path, Options())
    prompt = job.sections["prompt"]
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    assert prompt["eos_token_ids"] == [tokenizer.token_to_id(token) for token in prompt["end_tokens"]]
    found: dict[str, list[str]] = prompt["end_tokens"]
    return found


GENERATION, CONFIG, TEXT = "generation_config.json", "config.json", "text_config of config.json"
TOKENIZER, TEMPLATE = "tokenizer_config.json", "the chat template"
CASES: dict[str, tuple[dict[str, Any], dict[str, list[str]]]] = {
    "generation": ({"generation": 796}, {END: [GENERATION]}),
    "generation, a list": ({"generation": [798, 796, 798]}, {CLOSE: [GENERATION], END: [GENERATION]}),
    "outer": ({"outer": 798}, {CLOSE: [CONFIG]}),
    "text": ({"text": [796]}, {END: [TEXT]}),
    "tokenizer": ({"tokenizer": CLOSE}, {CLOSE: [TOKENIZER]}),
    "template": ({"chat": template(CLOSE)}, {CLOSE: [TEMPLATE]}),
    "as Qwen3.5 is published": (
        {"text": 796, "tokenizer": CLOSE, "chat": template(CLOSE)}, {CLOSE: [TEMPLATE, TOKENIZER], END: [TEXT]}
    ),
    "all agree": (
        {"generation": 798, "outer": 798, "text": 798, "tokenizer": CLOSE, "chat": template(CLOSE)},
        {CLOSE: [TEMPLATE, GENERATION, CONFIG, TEXT, TOKENIZER]},
    ),
    "template against generation": (
        {"generation": 796, "chat": template(CLOSE)}, {CLOSE: [TEMPLATE], END: [GENERATION]}
    ),
    "written at the very end too": ({"chat": template(CLOSE, END)}, {CLOSE: [TEMPLATE]}),
    "in front of the end": ({"chat": template(BOX + CLOSE)}, {CLOSE: [TEMPLATE]}),
    "a turn that only opens": ({"generation": 796, "chat": template("")}, {END: [GENERATION]}),
    "text behind an answer": ({"generation": 796, "chat": template(" ###")}, {END: [GENERATION]}),
    "a token of images": ({"generation": 796, "chat": template(VISION)}, {END: [GENERATION]}),
    "a class default of config.json": ({"generation": 798, "outer": 0, "text": 0}, {CLOSE: [GENERATION]}),
    "an ordinary token that transformers obeys": ({"generation": [798, 0]}, {CLOSE: [GENERATION], "!": [GENERATION]}),
    "what opens a turn": (
        {"generation": 796, "outer": 797, "chat": template(CLOSE)}, {CLOSE: [TEMPLATE], END: [GENERATION]}
    ),
    "an added token that is not special": ({"generation": 796, "outer": 820, "text": 820}, {END: [GENERATION]}),
    "an ordinary token that the tokenizer names": ({"tokenizer": "!"}, {"!": [TOKENIZER]}),
    "the tokenizer's own end in a configuration": (
        {"generation": 796, "outer": 0, "tokenizer": "!"}, {END: [GENERATION], "!": [CONFIG, TOKENIZER]}
    ),
    "a template that refuses": (
        {"generation": 798, "chat": "{{ raise_exception('no') }}"}, {CLOSE: [GENERATION]}
    ),
    "a template that says nothing of an answer": ({"generation": 796, "chat": f"Hi{CLOSE}"}, {END: [GENERATION]}),
    "a template of lists alone": (
        {"chat": template(CLOSE).replace("m.content", "m.content[0]['text']")}, {CLOSE: [TEMPLATE]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_place_counts_and_is_named(case: str, tmp_path: Path) -> None:
    places, expected = CASES[case]
    found = ends(source(tmp_path / "source", **places))
    assert list(found.items()) == list(expected.items())  # the first is the usual one


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_same_rules(family: str, tmp_path: Path) -> None:
    end = Tokenizer.from_file(str(TINY / family / "tokenizer.json")).token_to_id(END)
    path = source(tmp_path / "source", family, text=end, tokenizer=CLOSE, chat=template(CLOSE))
    assert ends(path) == {CLOSE: [TEMPLATE, TOKENIZER], END: [TEXT]}


@pytest.mark.parametrize("bad", [-1, 822, "798", True, 1.5, [798, None], {"id": 1}, 2**70])
def test_ids_that_are_none(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"generation_config\.json has eos_token_id .* from 0 to 821"):
        prepare(source(tmp_path / "source", generation=bad), Options())


def test_no_place_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no token that ends an answer; add eos_token_id to"):
        prepare(source(tmp_path / "source"), Options())


def test_answers_of_a_published_checkpoint_end(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """Its configuration names a token that it never says; the bundle stops where the checkpoint as trained does."""
    path = source(
        tmp_path / "source", text=796, tokenizer=CLOSE, chat=(TINY / "qwen3_5" / "chat_template.jinja").read_text()
    )
    bundle = export(prepare(path, Options(precision="fp32")), tmp_path / "bundle", golden="never")
    answer = load(bundle.path, threads=1).ask("What word is written?", [str(IMAGE)])
    assert ("".join(answer), answer.finish_reason) == ("lion", "eos")
    shown = cli("inspect", bundle.path).out
    assert "answers end at <|im_end|>" in shown
    assert "the chat template, tokenizer_config.json" in " ".join(shown.split())


def test_gguf_names_the_end_of_a_turn(tmp_path: Path) -> None:
    """Stock llama.cpp stops there as well: the tokenizer's own end, and the turn's where that is another."""
    pytest.importorskip("gguf")
    for number, (tokenizer, expected) in enumerate([(END, (796, 798)), (CLOSE, (798, None)), (None, (798, None))]):
        path = source(tmp_path / str(number), generation=[796, 798], tokenizer=tokenizer, chat=template(CLOSE))
        job = prepare(path, Options(format="gguf", precision="f16"))
        export(job, tmp_path / f"bundle{number}", golden="never")
        metadata = read_gguf(tmp_path / f"bundle{number}" / gguf.MODEL).metadata
        keys = "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"
        assert tuple(metadata.get(key) for key in keys) == expected
        assert metadata["tokenizer.chat_template"] == template(CLOSE)
