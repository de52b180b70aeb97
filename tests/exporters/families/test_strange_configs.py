"""Configurations that a stranger wrote: each is a checkpoint, or one sentence within seconds and little memory."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lensmith.exporters.families.families import FAMILIES
from lensmith.exporters.pipeline import Options, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.targets.errors import InputError

from tests.paths import TINY

FAMILY_NAMES = ("qwen3_vl", "qwen3_5", "llava")
SECONDS = 20  # of CPU, on a slow machine; a refusal takes a fraction of one
LONGEST = 700  # characters of a message
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 10**9, 2**31, 2**62, -(2**62), 10**40, 0.5, -0.5, 1e308, float("nan"),
    float("inf"), "", "x", "8", "\ud800", "x" * 10_000, [], [1], [None], [[1]], [0.5] * 3, {}, {"a": 1},
)  # fmt: skip
OTHERS = ("generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json",
          "video_preprocessor_config.json", "processor_config.json")  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to each value within some JSON."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def mutated(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """A copy with another value at a place; "gone" takes it away."""
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    if other == "gone":
        del inner[path[-1]]
    else:
        inner[path[-1]] = other
    return made


@st.composite
def mutations(draw: st.DrawFn, names: tuple[str, ...]) -> tuple[str, str, Any]:
    """A family, one of its files and what stands in it."""
    family = draw(st.sampled_from(FAMILY_NAMES))
    name = draw(st.sampled_from([name for name in names if (TINY / family / name).is_file()]))
    value = json.loads((TINY / family / name).read_text())
    for _ in range(draw(st.integers(1, 2))):
        value = mutated(
            value, draw(st.sampled_from(list(places(value)) or [("a",)])), draw(st.sampled_from(("gone", *VALUES)))
        )
    return family, name, value


def linked(family: str, folder: Path, name: str, value: Any) -> Path:
    """A trained checkpoint with other content of one file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in (TINY / family).iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    (folder / name).write_text(json.dumps(value))
    return folder


def check(work: Callable[[], object]) -> bool:
    """Whether the work is done; a refusal must be one sentence, and anything else that is raised fails."""
    started, sentence = time.process_time(), None
    try:
        work()
    except InputError as error:
        sentence = str(error)
    assert time.process_time() - started < SECONDS
    assert sentence is None or (0 < len(sentence) < LONGEST and "\n" not in sentence)
    return sentence is None


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutation=mutations(("config.json",)))
def test_config_json(tmp_path_factory: pytest.TempPathFactory, mutation: tuple[str, str, Any]) -> None:
    """Described or refused; what is described is prepared as a whole."""
    family, name, value = mutation
    if check(lambda: FAMILIES[family].describe(value)):
        folder = linked(family, tmp_path_factory.getbasetemp() / "mutated", name, value)
        check(lambda: prepare(folder, Options()))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutation=mutations(OTHERS))
def test_other_files(tmp_path_factory: pytest.TempPathFactory, mutation: tuple[str, str, Any]) -> None:
    folder = linked(mutation[0], tmp_path_factory.getbasetemp() / "other", *mutation[1:])
    check(lambda: prepare(folder, Options()))


ABSURD: list[tuple[str, tuple[str, ...], Any, str]] = [
    ("qwen3_vl", ("text_config", "num_hidden_layers"), 10**9, "num_hidden_layers is '1000000000'; expected a whole"),
    ("qwen3_vl", ("text_config", "num_hidden_layers"), 1000, "has 1000 layers of model.language_model.layers"),
    ("qwen3_vl", ("vision_config", "depth"), 1000, "has 1000 layers of model.visual.blocks"),
    ("llava", ("vision_config", "num_hidden_layers"), 1000, "has 999 layers of model.vision_tower.encoder.layers"),
    ("qwen3_5", ("text_config", "num_attention_heads"), 2**62, "num_attention_heads is '4611686018427387904'"),
    ("qwen3_5", ("text_config", "layer_types"), ["full_attention"] * 1025, "layer_types is .* a list of up to 1024"),
    ("qwen3_5", ("text_config", "vocab_size"), -1, "vocab_size is '-1'; expected a whole number from 1 to 16777216"),
    ("qwen3_vl", ("text_config", "rms_norm_eps"), float("nan"), "rms_norm_eps is 'nan'; expected a number above 0"),
    ("qwen3_vl", ("text_config", "rope_parameters"), [], r"rope_parameters is '\[\]'; expected an object"),
    ("qwen3_vl", ("text_config",), [1], r"text_config is '\[1\]'; expected an object"),
    ("llava", ("text_config", "model_type"), {}, "model_type is '{}'; expected a short text"),
    ("llava", ("tie_word_embeddings",), "yes", "tie_word_embeddings is 'yes'; expected true or false"),
    ("llava", ("vision_config", "patch_size"), [14, 14], "patch_size is .* expected a whole number"),
    ("llava", ("vision_feature_layer",), [[1]], "vision_feature_layer is .* or a list of up to 64"),
    ("qwen3_vl", ("image_token_id",), 2**70, "image_token_id is .* expected a whole number from 0"),
]


@pytest.mark.parametrize(("family", "path", "value", "message"), ABSURD)
def test_absurd_values_are_named(family: str, path: tuple[str, ...], value: Any, message: str, tmp_path: Path) -> None:
    config = json.loads((TINY / family / "config.json").read_text())
    folder = linked(family, tmp_path / "absurd", "config.json", mutated(config, path, value))
    with pytest.raises(InputError, match=message):
        prepare(folder, Options())


@pytest.mark.parametrize(
    ("family", "file"),
    [
        ("qwen3_vl", "preprocessor_config.json"),
        ("qwen3_5", "video_preprocessor_config.json"),
        ("llava", "preprocessor_config.json"),
    ],
)
def test_settings_that_no_bundle_has_room_for(family: str, file: str, tmp_path: Path) -> None:
    """Known before anything is written."""
    given = json.loads((TINY / family / file).read_text())
    folder = linked(family, tmp_path / "absurd", file, {**given, "image_mean": [1e7, 0.5, 0.5]})
    with pytest.raises(InputError, match=r"(image|video)\.mean\[0\]: expected .* 1000000"):
        make_plan(prepare(folder, Options()))
