"""Arguments as bare text, typed by a JSON schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.runtimes.dialogue.typed_values import typed

ANY_OF: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}
ROOT: dict[str, Any] = {
    "$defs": {"Unit": {"enum": ["c", "f", "1"]}, "Count": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"},
              "a/b": {}},
    "properties": {"x": {"type": "boolean"}},
}  # fmt: skip
CASES: list[tuple[Any, str, Any]] = [
    ({"type": "integer"}, "5", 5), ({"type": "integer"}, " -5\n", -5), ({"type": "integer"}, "+5", 5),
    ({"type": "integer"}, "5.0", 5), ({"type": "integer"}, "1e300", "1e300"),
    ({"type": ["integer", "null"]}, "", None), ({"type": "integer"}, "5.5", "5.5"), ({"type": "integer"}, "5a", "5a"),
    ({"type": "integer"}, "true", "true"), ({"type": "integer"}, "1" * 5000, "1" * 5000),
    ({"type": "integer"}, "9" * 60, int("9" * 60)),
    ({"type": "number"}, "5", 5), ({"type": "number"}, "0.25", 0.25), ({"type": "number"}, "1e3", 1000.0),
    ({"type": "number"}, ".5", 0.5), ({"type": "number"}, "NaN", "NaN"), ({"type": "number"}, "1e999", "1e999"),
    ({"type": "boolean"}, "true", True), ({"type": "boolean"}, "False", False), ({"type": "boolean"}, "1", "1"),
    ({"type": "null"}, "null", None), ({"type": "null"}, "None", None),
    ({"type": "array"}, '["a", 1, true, null]', ["a", 1, True, None]), ({"type": "array"}, "['a', True]", ["a", True]),
    ({"type": "array"}, '{"a": 1}', '{"a": 1}'), ({"type": "array"}, "[1, 2", "[1, 2"),
    ({"type": "array"}, "[NaN]", "[NaN]"),
    ({"type": "array"}, "(1, 2)", "(1, 2)"), ({"type": "array"}, "[" * 60000, "[" * 60000),
    ({"type": "object"}, '{"a": {"b": [1]}}', {"a": {"b": [1]}}), ({"type": "object"}, "{1, 2}", "{1, 2}"),
    ({"type": "object"}, "{'a': b'x'}", "{'a': b'x'}"), ({"type": "object"}, "[1]", "[1]"),
    ({"type": "string"}, "5", "5"), ({"type": "string"}, "true", "true"), ({"type": "string"}, "null", "null"),
    ({"type": "string"}, '{"a": 1}', '{"a": 1}'), ({"type": "string"}, " a\n", " a\n"), ({"type": "string"}, "", ""),
    ({"type": "string"}, '"quoted"', '"quoted"'),
    ({"type": ["integer", "null"]}, "42", 42), ({"type": ["string", "null"]}, "None", None),
    ({"type": ["string", "null"]}, "x", "x"), (ANY_OF, "some text", "some text"),
    (ANY_OF, "7", 7), (ANY_OF, "null", None),
    ({"oneOf": [{"type": "array"}, {"type": "string"}]}, "[1]", [1]),
    ({"oneOf": [{"type": "array"}, {"type": "string"}]}, "a", "a"),
    ({"allOf": [{"$ref": "#/$defs/Count"}]}, "3", 3), ({"$ref": "#/$defs/Count"}, "3", 3),
    ({"$ref": "#/$defs/Unit"}, "c", "c"), ({"$ref": "#/$defs/Unit"}, "1", "1"), ({"$ref": "#/$defs/Unit"}, " f ", "f"),
    ({"$ref": "#/$defs/a~1b"}, "1", 1), ({"$ref": "#/$defs/none"}, "1", 1), ({"$ref": "#/$defs/Loop"}, "1", 1),
    ({"$ref": "#/properties/x"}, "true", True), ({"$ref": "https://example.com/x"}, "1", 1),
    ({"enum": [1, 2]}, "2", 2), ({"enum": [1, 2]}, "3", "3"), ({"enum": [True]}, "1", "1"), ({"const": "5"}, "5", "5"),
    ({"type": "string", "enum": ["1"]}, "1", "1"), ({"type": "integer", "enum": [1]}, "1", 1),
    ({}, "5", 5), ({}, '"a"', "a"), ({}, "a", "a"), ({}, "[1", "[1"), (True, "5", 5), (None, "5", 5), (7, "a", "a"),
    ({"type": 5}, "5", 5), ({"type": ["nonsense"]}, "5", "5"), ({"anyOf": 5}, "a", "a"), ({"anyOf": [5]}, "a", "a"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "text", "value"), CASES, ids=lambda each: str(each)[:40])
def test_types(schema: Any, text: str, value: Any) -> None:
    made = typed(text, schema, ROOT)
    assert made == value
    assert type(made) is type(value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8,
)  # fmt: skip
KINDS = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    str: "string",
}


@settings(max_examples=300, deadline=None)
@given(JSON_VALUES)
def test_values_of_each_type_come_back(value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    assert typed(text, {"type": KINDS[type(value)]}, {}) == value


@settings(max_examples=300, deadline=None)
@given(st.text(), st.sampled_from([*KINDS.values(), "other"]), JSON_VALUES)
def test_any_text_gives_what_json_can_say(text: str, kind: str, schema: Any) -> None:
    for each in ({"type": kind}, schema, {"anyOf": [schema, {"type": kind}]}):
        json.dumps(typed(text, each, {}), allow_nan=False)
