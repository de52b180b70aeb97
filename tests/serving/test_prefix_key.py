"""Turns of one conversation have one key, other conversations others."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs lensmith[serve]")
from lensmith.serving.prefix_key import prefix_key

from tests.helpers.served import about, png


def key(**body: Any) -> str:
    return prefix_key(json.dumps(body).encode())


FIRST = [{"role": "system", "content": "Be brief."}, *about(png())]
LATER = [*FIRST, {"role": "assistant", "content": "A lens."}, {"role": "user", "content": "Why?"}]


def test_turns_of_a_conversation_have_one_key() -> None:
    assert key(model="m", messages=FIRST) == key(model="m", messages=LATER, stream=True, temperature=1.0)
    assert key(model="m", instructions="x", input=FIRST) == key(input=LATER, instructions="x", model="m")
    text = "x" * 2000
    assert key(prompt=text) == key(prompt=text + "y")
    assert key(prompt=[*range(2000)]) == key(prompt=[*range(3000)])


def test_what_differs_at_the_beginning_has_another() -> None:
    others: list[dict[str, Any]] = [
        {"model": "n", "messages": FIRST}, {"model": "m", "messages": FIRST, "tools": [{}]},
        {"model": "m", "messages": FIRST, "system": "x"}, {"model": "m", "messages": FIRST[1:]},
        {"model": "m", "messages": [FIRST[0], *about(png(90))]}, {"model": "m", "messages": [FIRST[0], *about()]},
        {"model": "m", "input": "a"}, {"model": "m", "input": "b"}, {"model": "m", "prompt": "a"},
    ]  # fmt: skip
    assert len({key(model="m", messages=FIRST), *(key(**other) for other in others)}) == len(others) + 1


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"stream": true}'])
def test_bodies_that_are_no_request_have_none(body: bytes) -> None:
    assert prefix_key(body) == ""
