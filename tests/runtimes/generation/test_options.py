"""Options of answers: obeyed, or refused in one sentence that names the closest."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.generation.model import Model
from lensmith.runtimes.generation.options import CHOOSING, GenerationOptions, with_options
from lensmith.runtimes.generation.sampling import SamplingOptions
from lensmith.targets.errors import InputError
from PIL import Image

CONFIG = {"do_sample": False, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
SAMPLING_CONFIG = {**CONFIG, "do_sample": True}
GREEDY = {"do_sample": False, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
          "seed": None}  # fmt: skip
WARM = {**GREEDY, "do_sample": True, "temperature": 1.0}
USUAL = {**WARM, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(open_bundle(tiny_bundle), threads=1, context=512)


ALONE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, GREEDY), ({"temperature": 0}, GREEDY), ({"do_sample": False}, GREEDY), ({"do_sample": True}, WARM),
    ({"temperature": 5}, {**WARM, "temperature": 5.0}), ({"top_k": 3}, {**WARM, "top_k": 3}),
    ({"top_p": 0.5}, {**WARM, "top_p": 0.5}), ({"min_p": 0.1}, {**WARM, "min_p": 0.1}),
    ({"top_p": 1, "top_k": 0, "min_p": 0}, GREEDY),
    ({"repetition_penalty": 1.2}, {**GREEDY, "repetition_penalty": 1.2}),
    ({"temperature": 1}, WARM), ({"temperature": 1, "seed": 3}, {**WARM, "seed": 3}),
    ({"temperature": 0, "seed": 3}, {**GREEDY, "seed": 3}),
    ({"do_sample": np.bool_(True), "top_k": np.int32(7)}, {**WARM, "top_k": 7}),
    ({"temperature": np.float64(0.25), "seed": np.uint8(7)}, {**WARM, "temperature": 0.25, "seed": 7}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "expected"), ALONE)
def test_what_means_sampling(options: dict[str, Any], expected: dict[str, Any]) -> None:
    found = asdict(SamplingOptions(**options))
    assert found == expected
    assert all(type(value) is type(expected[name]) for name, value in found.items())


CONTRADICTIONS: list[dict[str, Any]] = [
    {"temperature": 0, "do_sample": True}, {"do_sample": False, "temperature": 5}, {"do_sample": False, "top_p": 0.5},
    {"temperature": 0, "top_k": 5}, {"temperature": 0.0, "min_p": 0.5}, {"seed": 1}, {"seed": 1, "top_p": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("options", CONTRADICTIONS)
def test_what_would_have_no_effect_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="has no effect"):
        SamplingOptions(**options)
    with pytest.raises(InputError, match="has no effect"):
        with_options(GenerationOptions(), options, {})


JOINED: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    # over greedy decoding, the default of ask
    ({}, {}, GREEDY), ({}, {"temperature": 0.3}, {**USUAL, "temperature": 0.3}), ({}, {"do_sample": True}, USUAL),
    ({}, {"top_p": 0.5, "seed": 4}, {**USUAL, "top_p": 0.5, "seed": 4}), ({}, {"top_p": 1.0}, GREEDY),
    ({}, {"repetition_penalty": 2}, {**GREEDY, "repetition_penalty": 2.0}),
    ({"repetition_penalty": 2}, {"temperature": 1}, {**USUAL, "temperature": 1.0, "repetition_penalty": 2.0}),
    ({"repetition_penalty": 2}, {"temperature": 0}, {**GREEDY, "repetition_penalty": 2.0}),
    # over sampling
    ({"temperature": 2, "top_k": 9}, {}, {**WARM, "temperature": 2.0, "top_k": 9}),
    ({"temperature": 2, "top_k": 9}, {"seed": 1}, {**WARM, "temperature": 2.0, "top_k": 9, "seed": 1}),
    ({"temperature": 2, "top_k": 9}, {"top_k": 0}, {**WARM, "temperature": 2.0}),
    ({"temperature": 2, "top_k": 9}, {"temperature": 1, "top_p": 0.9}, {**WARM, "top_k": 9, "top_p": 0.9}),
    ({"temperature": 2, "top_k": 9}, {"temperature": 0}, GREEDY),
    ({"temperature": 2, "top_k": 9, "seed": 3}, {"do_sample": False}, GREEDY),
    ({"temperature": 2}, {"do_sample": True, "seed": None}, {**WARM, "temperature": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize(("base", "options", "expected"), JOINED)
def test_direct_options_count_over_an_object(base: Any, options: dict[str, Any], expected: dict[str, Any]) -> None:
    made = with_options(GenerationOptions(7, sampling=SamplingOptions(**base)), options, CONFIG)
    assert asdict(made.sampling) == expected
    assert made.max_new_tokens == 7


def test_the_checkpoints_own_sampling(model: Model) -> None:
    for config, expected in ((CONFIG, {**GREEDY, "repetition_penalty": 1.05}), (SAMPLING_CONFIG, USUAL)):
        assert asdict(SamplingOptions.from_generation_config(config)) == expected
    made = model.default_options(max_new_tokens=5, temperature=0.5, stop=["a"])
    assert (made.max_new_tokens, made.stop, made.sampling.temperature) == (5, ("a",), 0.5)
    with pytest.raises(InputError, match="'max_new_tokens'"):
        model.default_options(max_tokens=5)


BAD: dict[str, list[Any]] = {
    "max_new_tokens": [-1, 0, 10**12, 1e12, 5.0, math.nan, math.inf, "5", True, [5], None.__class__, np.array([5])],
    "stop": ["###", [""], [3], {"a"}, "", 3, b"a", [b"a"], ["a", None]],
    "ignore_eos": ["yes", 1, 0.0, []],
    "do_sample": ["no", 1, 0],
    "temperature": [-1, math.nan, math.inf, 1e12, "0.5", True, [1]],
    "top_k": [-1, 1.5, 10**12, math.nan, "5", True],
    "top_p": [-0.1, 0, 1.1, math.nan, math.inf, "1", True],
    "min_p": [-0.1, 1.1, math.nan, "0"],
    "repetition_penalty": [0, -1, math.nan, math.inf, 1e12, "1"],
    "seed": [-1, 1.5, math.nan, "1", True, 1 << 64],
    "min_pixels": [-1, 0, 1e12, math.nan, "9", True, 10**12],
    "max_pixels": [-1, 0, 1e12, math.inf, "9", False, 10**12],
    "max_video_pixels": ["9", 4096],  # there is no video
    "enable_thinking": [True],  # this template reads none
    "tools": ["zoom", {"name": "zoom"}],
    "images": ["a.png", 3, b"a", Image.new("RGB", (9, 9)), np.zeros((9, 9, 3), np.uint8), Path("a.png")],
    "videos": ["a.mp4", 3],
    "fps": [1],  # there is no video
    "options": [{"temperature": 1}, 5],
    "add_generation_prompt": ["yes", 1],
    "continue_final_message": [1, True],  # a question has nothing to continue but itself
    "response_format": [{"type": "json_object"}],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_end_in_one_sentence(name: str, model: Model) -> None:
    for value in BAD[name]:
        extra: dict[str, Any] = {"images": [Image.new("RGB", (64, 64))]} if name.endswith("_pixels") else {}
        extra |= {"add_generation_prompt": True} if name == "continue_final_message" else {}
        with pytest.raises(InputError, match=f"{name}|{name.rstrip('s')}|has no effect|GenerationOptions") as caught:
            model.ask("Hi", **{**extra, name: value})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "closest"),
    [("image", "images"), ("max_tokens", "max_new_tokens"), ("max_pixel", "max_pixels"), ("temprature", "temperature"),
     ("stops", "stop"), ("video", "videos"), ("tool", "tools"), ("add_vision_ids", "add_vision_id"), ("topk", "top_k")],
)  # fmt: skip
def test_unknown_names_end_with_the_closest(name: str, closest: str, model: Model) -> None:
    unknown: dict[str, Any] = {name: 1}
    with pytest.raises(InputError, match=f"{name!r} is neither .* did you mean {closest!r}"):
        model.ask("Hi", **unknown)
    with pytest.raises(InputError, match=f"{name!r} is neither"):
        model.generate("Hi", **unknown)


def test_prompts_take_no_options_of_answers(model: Model) -> None:
    with pytest.raises(InputError, match="'temperature' is neither") as caught:
        model.prepare("Hi", temperature=1)
    assert "mean 'temperature'" not in str(caught.value)


def test_options_are_obeyed(model: Model) -> None:
    plain = model.ask("What?", max_new_tokens=12, ignore_eos=True)
    plain.read()
    assert (len(plain.ids), plain.finish_reason) == (12, "length")
    same = model.ask(
        "What?", options=GenerationOptions(max_new_tokens=3, ignore_eos=True), max_new_tokens=12, temperature=0
    )
    same.read()
    assert same.ids == plain.ids
    hot: dict[str, Any] = {
        "temperature": 50.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": np.int64(12),
        "ignore_eos": True,
    }
    drawn = [model.ask("What?", **{**hot, "seed": seed}) for seed in (1, 1, 2)]
    texts = []
    for answer in drawn:
        answer.read()
        texts.append(answer.ids)
    assert texts[0] == texts[1] != texts[2]
    assert plain.ids not in texts
    stopped = model.ask("What?", max_new_tokens=12, ignore_eos=True, stop=[plain.text[3:5]])
    assert stopped.read() == plain.text[: plain.text.index(plain.text[3:5])]
    assert stopped.finish_reason == "stop"


def test_more_tokens_than_the_context_holds(model: Model) -> None:
    answer = model.ask("What?", max_new_tokens=1 << 24, ignore_eos=True)
    answer.read()
    assert answer.finish_reason == "context"


def test_the_words_of_ask(model: Model) -> None:
    with pytest.raises(InputError, match="the question is a list"):
        model.ask(["Hi"])  # type: ignore[arg-type]
    one, other = model.prepare("Hi"), model.prepare([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    assert one.prompt.ids.tolist() == other.prompt.ids.tolist()
    told = model.prepare(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am"}], continue_final_message=True
    )
    assert model.prompts.tokenizer.decode(told.prompt.ids.tolist(), skip_special_tokens=False).endswith("I am")
    pictures = (Image.new("RGB", (64, 64)) for _ in range(2))  # any iterable
    assert len(model.prepare([{"role": "user", "content": "a"}]).images) == 0
    assert model.ask("Hi", pictures, max_new_tokens=1).timings.image_tokens > 0


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a machine that does other work too
@given(st.dictionaries(st.sampled_from(CHOOSING), st.one_of(
    st.none(), st.booleans(), st.integers(-2, 200), st.floats(), st.text(max_size=2), st.just([1])), max_size=4),
    st.booleans())  # fmt: skip
def test_options_are_a_choice_or_a_refusal(options: dict[str, Any], sampling: bool) -> None:
    """Whatever is given: greedy decoding without any filter, or sampling with all that was given."""
    base = GenerationOptions(sampling=SamplingOptions(do_sample=sampling))
    try:
        made = with_options(base, options, CONFIG).sampling
    except InputError:
        return
    chosen = {name: value for name, value in options.items() if value is not None}
    if made.do_sample:
        assert {name: getattr(made, name) for name in chosen} == chosen
        assert made.temperature
        assert made.temperature > 0
    else:
        assert asdict(made) == {**GREEDY, **{k: v for k, v in chosen.items() if k in ("repetition_penalty", "seed")}}
        assert not chosen.get("temperature")
