"""What is given to a chat template: None and the kinds of values, name by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.prompt.template import ChatTemplate
from lensmith.runtimes.prompt.variables import checked_variables
from lensmith.targets.errors import InputError

READS = ChatTemplate("{{ x }}{{ tools }}{{ documents }}{{ enable_thinking }}{{ add_generation_prompt }}")
TOOL = {"name": "f"}


def checked(**given: Any) -> Mapping[str, Any]:
    return checked_variables(given, READS, ("images", "max_new_tokens"))


@pytest.mark.parametrize("name", ["tools", "documents", "enable_thinking"])
def test_none_stands_for_what_is_not_given(name: str) -> None:
    assert checked(**{name: None}) == {}


def test_none_may_be_the_value_of_another() -> None:
    assert checked(x=None) == {"x": None}


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [TOOL]}, {"tools": (TOOL, TOOL)}, {"tools": []}, {"documents": [{"text": "a"}]}, {"x": [print]},
        {"enable_thinking": True}, {"enable_thinking": False, "tools": [TOOL], "x": "yes"},
        {"add_generation_prompt": 5}, {"continue_final_message": "content"},  # which others look at
    ],
)  # fmt: skip
def test_right_values_are_handed_on(given: dict[str, Any]) -> None:
    assert checked(**given) == given


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"enable_thinking": "yes"}, "enable_thinking is 'yes'"),
        ({"enable_thinking": 1}, "enable_thinking is 1"),
        ({"enable_thinking": np.array([1, 2])}, "enable_thinking is"),
        ({"documents": "a"}, "documents is a str; expected a list of objects"),
        ({"documents": ["a"]}, "documents holds a str; expected objects"),
        ({"tools": TOOL}, "tools is a dict; expected a list of objects"),
        ({"tools": [TOOL, print]}, "tools holds the function 'print'"),
        ({"tools": [TOOL, {"n": {1}}]}, "tools holds what JSON cannot say"),
        ({"response_format": None}, "response_format is not supported"),
        ({"image": 1}, "'image' is neither an option nor a variable .* 'images'"),
        ({"tool": 1}, "did you mean 'tools'"),
        (
            {"quite_another": 1},
            "known: add_generation_prompt, documents, enable_thinking, images, max_new_tokens, tools, x",
        ),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        checked(**given)
