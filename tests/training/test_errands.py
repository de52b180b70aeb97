"""Errands: right by their picture, and written as the chat template writes them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the pictures need lensmith[report]")
pytest.importorskip("transformers", reason="the model needs lensmith[torch]")

from tests.paths import TINY
from tests.training.drawing import random_size
from tests.training.errand_text import errand_questions, new_tokenizer, tools_section
from tests.training.errands import ERRANDS, TOOLS, Errand, heldout_errand
from tests.training.hugging_face import AutoTokenizer
from tests.training.hybrid import FORMAT
from tests.training.scenes import Example
from tests.training.trees import TreePacker


def conversation(errand: Errand, *, thoughts: tuple[str, str] | None, kept: bool = True) -> list[dict[str, Any]]:
    """The errand from the question to the final text, in the form of Hugging Face's templates."""
    calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in errand.calls]
    first: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
    last = {"role": "assistant", "content": errand.final}
    if thoughts:
        first |= {"reasoning_content": thoughts[0]} if kept else {}
        last["reasoning_content"] = thoughts[1]
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": errand.prompt}]}
    results = [{"role": "tool", "content": json.dumps(call.response)} for call in errand.calls]
    return [asked, first, *results, last]


@pytest.mark.parametrize("task", ERRANDS)
def test_training_sees_what_the_template_writes(task: str) -> None:
    loader: Any = AutoTokenizer
    template, tokenizer = loader.from_pretrained(TINY / "qwen3_5"), new_tokenizer()
    scene, errand, names = heldout_errand(random.Random(f"text-{task}"), task, random_size)
    written = [
        conversation(errand, thoughts=None),
        conversation(errand, thoughts=errand.thoughts),
        conversation(errand, thoughts=errand.thoughts, kept=False),
    ]
    packer = TreePacker(tokenizer, FORMAT, (task,))
    for messages, question in zip(written, errand_questions(errand), strict=True):
        tree = packer.pack([Example((scene,), (question,), tools_section(names))])
        text = template.apply_chat_template(messages, tools=[TOOLS[name] for name in names], tokenize=False)
        places = int((tree.ids == packer.picture).sum())
        text = text.replace("<|image_pad|>", "<|image_pad|>" * places)
        ids = [*tree.ids.tolist(), tokenizer.token_to_id("<|im_end|>")]
        assert ids == tokenizer.encode(text.rstrip("\n")).ids


def test_labels_are_the_next_tokens_of_the_answers_alone() -> None:
    scene, errand, names = heldout_errand(random.Random(5), "cart", random_size)
    packer = TreePacker(new_tokenizer(), FORMAT, ERRANDS)
    tree = packer.pack([Example((scene,), (next(errand_questions(errand)),), tools_section(names))])
    said = packer.tokenizer.decode(tree.labels[tree.labels >= 0].tolist(), skip_special_tokens=False)
    colour, count = errand.calls[0].arguments.values()
    assert count == sum(item.colour == colour for item in scene.items)
    assert said == (
        f"<tool_call>\n<function=add_to_cart>\n<parameter=colour>\n{colour}\n</parameter>\n<parameter=count>\n{count}\n"
        f"</parameter>\n</function>\n</tool_call><|im_end|>{errand.final}<|im_end|>"
    )
    places = (tree.labels[:-1] >= 0).nonzero()[:, 0]
    assert tree.labels[places].tolist() == tree.ids[places + 1].tolist()


def test_heldout_errands_repeat_themselves_and_have_their_tool() -> None:
    for task in ERRANDS:
        one, two = (heldout_errand(random.Random(f"again-{task}"), task, random_size) for _ in range(2))
        assert one[1:] == two[1:]
        assert one[0].image.tobytes() == two[0].image.tobytes()
        scene, errand, names = one
        assert errand.tool in names
        values = [value for call in errand.calls for value in call.arguments.values()]
        seen = {part for item in scene.items for part in (item.name, item.colour)}
        assert all(value in seen for value in values if isinstance(value, str))
        assert all(str(value) in errand.final for value in values)
