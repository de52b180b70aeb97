"""Token ids equal the Hugging Face processor's; templates can neither break out nor run away."""

from __future__ import annotations

import hashlib
import json
import random
import time
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.media.image_files import open_image
from lensmith.runtimes.media.images import ImageSpec, preprocess_images
from lensmith.runtimes.prompt.messages import find_images
from lensmith.runtimes.prompt.prompt_builder import PromptBuilder, check_context, open_prompt
from lensmith.runtimes.prompt.prompt_parts import PromptSpec
from lensmith.runtimes.prompt.template import ChatTemplate
from lensmith.runtimes.prompt.tokenizer_check import open_tokenizer
from lensmith.targets.errors import InputError
from PIL import Image
from tokenizers import Tokenizer

from tests.helpers import hf
from tests.paths import DATA

SPEC = PromptSpec()
BUILDER = open_prompt(hf.TOKENIZER, SPEC)
PARTS = json.loads((DATA / "conversation_parts.json").read_text(encoding="utf-8"))
TEXTS, TOOLS = PARTS["texts"], PARTS["tools"]
FEATURES = json.loads((DATA / "template_features.json").read_text(encoding="utf-8"))
GOLDEN = json.loads((DATA / "prompt_hashes.json").read_text())
HOSTILE = json.loads((DATA / "hostile_templates.json").read_text(encoding="utf-8"))
HOSTILE["deep nesting"] = "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"


def random_conversation(
    draw: random.Random, *, reasoning: bool = True
) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Up to six turns with text of many scripts, 0 to 4 images, tool calls and their responses."""
    images: list[Image.Image] = []

    def block() -> dict[str, Any]:
        if len(images) < 4 and draw.random() < 0.35:
            images.append(Image.new("RGB", (draw.randint(20, 400), draw.randint(20, 400))))
            return {"type": "image", "image": images[-1]}
        return {"type": "text", "text": draw.choice(TEXTS)}

    def content() -> Any:
        return draw.choice(TEXTS) if draw.random() < 0.4 else [block() for _ in range(draw.randint(0, 4))]

    def words() -> Any:
        text = draw.choice(TEXTS)
        return text if draw.random() < 0.6 else [{"type": "text", "text": text}]

    messages: list[dict[str, Any]] = [{"role": "system", "content": words()}] if draw.random() < 0.5 else []
    for _ in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": content()})
        if draw.random() < 0.4:
            call = {"name": "wetter", "arguments": {"ort": draw.choice(TEXTS), "n": draw.choice([1, 2.5, None, True])}}
            calls = [draw.choice([call, {"type": "function", "function": call}]) for _ in range(draw.randint(1, 2))]
            messages.append({"role": "assistant", "content": draw.choice([None, "", *TEXTS]), "tool_calls": calls})
            messages += [{"role": "tool", "content": content()} for _ in calls]
        if draw.random() < 0.6:
            thoughts = draw.choice(["", "hm", None])
            said = {"role": "assistant", "content": words()}
            messages.append({**said, "reasoning_content": thoughts} if reasoning else said)
    return messages, images


@pytest.mark.parametrize("seed", range(200))
def test_ids_equal_hf(seed: int) -> None:
    draw = random.Random(seed)
    messages, images = random_conversation(draw, reasoning=False)
    options: dict[str, Any] = {"tools": draw.choice([None, None, TOOLS]), "add_generation_prompt": draw.random() < 0.7}
    options |= draw.choice([{}, {}, {"add_vision_id": True}, {}])
    expected = hf.processor().apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    assert find_images(messages) == images
    _, grids = preprocess_images(map(open_image, images), ImageSpec())
    prompt = BUILDER.build(messages, grids, **options)
    assert prompt.ids.dtype == np.int64
    assert prompt.ids.tolist() == expected["input_ids"][0]
    spans = [token for start, end in prompt.image_spans for token in range(start, end)]
    assert spans == np.flatnonzero(prompt.ids == BUILDER.image_token_id).tolist()
    assert [end - start for start, end in prompt.image_spans] == [prod(grid) // 4 for grid in grids.tolist()]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["seed"])
def test_golden_prompts(case: dict[str, Any]) -> None:
    """The same ids without transformers: hashes written where the test above agrees with HF."""
    assert golden_hash(case["seed"]) == case["sha256"]


def golden_hash(seed: int) -> str:
    messages, images = random_conversation(random.Random(seed), reasoning=False)
    _, grids = preprocess_images(map(open_image, images), ImageSpec())
    return hashlib.sha256(BUILDER.build(messages, grids, tools=TOOLS).ids.astype("<i8").tobytes()).hexdigest()


@pytest.mark.parametrize("name", FEATURES)
def test_template_features_equal_hf(name: str) -> None:
    hf.import_transformers()
    from transformers.utils.chat_template_utils import render_jinja_template

    template, variables = FEATURES[name]["template"], FEATURES[name]["variables"]
    messages = [{"role": role, "content": text} for role, text in (("system", " sé "), ("user", "<hi>"), ("user", "2"))]
    expected: Any = render_jinja_template([messages], chat_template=template, **variables)[0]
    assert ChatTemplate(template).render(messages, **variables) == expected[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_one_sentence(name: str) -> None:
    begin = time.thread_time()
    with pytest.raises(InputError, match="chat template") as caught:
        ChatTemplate(HOSTILE[name], max_seconds=0.5).render([{"role": "user", "content": "x"}])
    assert time.thread_time() - begin < 3
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_long_conversation_is_no_attack() -> None:
    messages = [{"role": role, "content": "word " * 400} for _ in range(300) for role in ("user", "assistant")]
    assert len(BUILDER.render(messages)) > 1_200_000


def test_objects_in_messages_stay_out_of_reach() -> None:
    class Leak(str):
        secret = "leaked"

    template = ChatTemplate("{{ messages[0].content.secret }}{{ messages[0].image }}{{ messages[0].n + 1 }}")
    assert template.render([{"content": Leak("a"), "image": Image.new("RGB", (1, 1)), "n": True}]) == "<Image>2"


def test_template_kwargs_of_the_spec() -> None:
    builder = PromptBuilder(BUILDER.tokenizer, "{{ a }}{{ b }}", PromptSpec(template_kwargs={"a": 1, "b": 2}))
    assert builder.render([{"role": "user", "content": ""}], b=3) == "13"


def test_images_are_found_in_order() -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "image", "path": "a.png"},
        {"type": "text", "text": "x"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "image", "base64": "AAAA"},
    ]
    messages = [{"role": "user", "content": blocks}, {"role": "tool", "content": [{"type": "image", "url": "b.png"}]}]
    assert find_images(messages) == ["a.png", "data:image/png;base64,AA", "data:image/;base64,AAAA", "b.png"]
    with pytest.raises(InputError, match="0 sources"):
        find_images([{"role": "user", "content": [{"type": "image"}]}])


def test_placeholders_and_images_must_match() -> None:
    messages = [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "x"}]}]
    for grids in ([], [(1, 4, 4), (1, 4, 4)]):
        with pytest.raises(InputError, match="1 image placeholders"):
            BUILDER.build(messages, grids)
    with pytest.raises(InputError, match="out of the text"):
        BUILDER.build([{"role": "user", "content": "<|image_pad|>"}])
    with pytest.raises(InputError, match="video"):
        BUILDER.build([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}])


@pytest.mark.parametrize("messages", [[], "", " ", [[]], {"role": "user"}, ["hello"], [None]])
def test_conversations_of_the_wrong_shape(messages: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        BUILDER.render(messages)


@pytest.mark.parametrize(
    "spec",
    [
        PromptSpec(image_token="<image>"),
        PromptSpec(vision_end_token="<|no|>"),
        PromptSpec(token_ids={"<|image_pad|>": 151655}),
        PromptSpec(token_ids={"<|no|>": 1}),
    ],
)
def test_special_tokens_must_be_the_tokenizers(spec: PromptSpec) -> None:
    with pytest.raises(InputError, match="the tokenizer"):
        PromptBuilder(BUILDER.tokenizer, "", spec)


def test_unusable_files_and_specs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chat template"):
        open_prompt(tmp_path, SPEC)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="is not a tokenizer that lensmith supports"):
        open_tokenizer(tmp_path / "tokenizer.json")
    bads: list[dict[str, Any]] = [{"merge_size": 0}, {"eos_token_ids": (-1,)}]
    for bad in bads:
        with pytest.raises(InputError):
            PromptSpec(**bad)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(hf.TOKENIZER / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a longer text of several tokens"
    assert open_tokenizer(tmp_path / "tokenizer.json").encode(text).ids == BUILDER.tokenizer.encode(text).ids


def test_context_leaves_room_for_an_answer() -> None:
    check_context(99, 100, "wait")
    with pytest.raises(InputError, match=r"100 tokens, the context holds 100 .*, or wait"):
        check_context(100, 100, "wait")
