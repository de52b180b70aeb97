"""What graphs for GPUs are told, step by step, with an executor that writes it down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.engines.contract import Arrays, ImageFeatures, Step
from lensmith.runtimes.engines.indexed import (
    IndexedDecoder,
    IndexedVision,
    Shape,
    sized,
)
from lensmith.targets.errors import InputError
from numpy.typing import NDArray

HIDDEN, VOCAB = 4, 10
STATES: dict[str, Shape] = {"past_key_values.0.key": (1, 2, 8, 4), "past_key_values.0.value": (1, 2, 8, 4)}
RECURRENT: dict[str, Shape] = {"past.1.conv": (1, 2, 3), "past.1.recurrent": (1, 2, 2, 2)}
TOLD = ("input_ids", "past_lengths", "seqlens_k", "total_sequence_length", "logit_positions")


class Kept:
    """States that are numbers."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def read(self, name: str) -> NDArray[Any]:
        return np.array(self.values.get(name, 0.0))

    def write(self, name: str, values: NDArray[Any] | None) -> None:
        self.values[name] = 0.0 if values is None else float(values)


class Written:
    """An executor whose logits are the numbers of the positions that it is asked for."""

    def __init__(
        self, *more: str, states: Mapping[str, Shape] = STATES, axes: int = 3, outputs: tuple[str, ...] = ()
    ) -> None:
        self.inputs: dict[str, Shape] = {
            **dict.fromkeys((*TOLD, *more), (1,)), "image_features": ("n", HIDDEN),
            "position_ids": (3, 1, "s") if axes == 3 else (1, "s"), **states,
        }  # fmt: skip
        if "deepstack_features" in more:
            self.inputs["deepstack_features"] = (2, "n", HIDDEN)
        self.outputs: dict[str, Shape] = {"logits": (1, "k", VOCAB), **dict.fromkeys(outputs, (1, "h", HIDDEN))}
        self.fed: list[Arrays] = []

    def open_states(self) -> Kept:
        return Kept()

    def run(self, feed: Arrays, kept: Kept) -> dict[str, NDArray[Any]]:
        self.fed.append(feed)
        for name in self.inputs:
            if name.startswith("past."):
                kept.write(name, kept.read(name) + len(feed["input_ids"][0]))
        logits = np.repeat(np.asarray(feed["logit_positions"], np.float32)[None, :, None], VOCAB, axis=2)
        positions = np.asarray(feed.get("hidden_positions", ()), np.float32)
        hidden = np.repeat(positions[None, :, None], HIDDEN, axis=2)
        return {"logits": logits, **{name: hidden for name in self.outputs if name != "logits"}}


def step(decoder: IndexedDecoder[Kept], states: Any, tokens: int, **wanted: Any) -> NDArray[Any]:
    ids = np.arange(tokens)
    positions = np.stack([ids + 10, ids + 20, ids + 30])
    return decoder.run(states, Step(ids, positions, **wanted))


def test_what_a_step_is_told() -> None:
    executor = Written()
    decoder = IndexedDecoder(executor, capacity=100)
    assert (decoder.capacity, decoder.hidden, decoder.vocab, decoder.taps, decoder.axes) == (8, HIDDEN, VOCAB, 0, (3,))
    assert not decoder.recurrent
    states = decoder.open_states()
    assert step(decoder, states, 3, num_logits=2).tolist() == [[1.0] * VOCAB, [2.0] * VOCAB]
    assert step(decoder, states, 1).tolist() == [[0.0] * VOCAB]
    assert step(decoder, states, 2, num_logits=0).shape == (0, VOCAB)  # the graph gives one all the same
    for feed, (past, tokens, last) in zip(executor.fed, ((0, 3, [1, 2]), (3, 1, [0]), (4, 2, [1])), strict=True):
        assert feed["input_ids"].tolist() == [list(range(tokens))]
        assert feed["position_ids"].tolist() == [[[start + i for i in range(tokens)]] for start in (10, 20, 30)]
        assert feed["past_lengths"].tolist() == [past]
        assert feed["seqlens_k"].tolist() == [past + tokens - 1]
        assert feed["total_sequence_length"].tolist() == past + tokens
        assert feed["logit_positions"].tolist() == last
        assert feed["image_features"].tolist() == [[0.0] * HIDDEN]  # a row that no token asks for
        assert set(feed) == set(executor.inputs) - set(STATES)
    assert [str(executor.fed[0][name].dtype) for name in ("past_lengths", "seqlens_k", "total_sequence_length")] == [
        "int32"
    ] * 3
    with pytest.raises(InputError, match="needs 9 tokens but the context holds 8"):
        step(decoder, states, 3)


def test_tokens_with_one_position_each() -> None:
    executor = Written(axes=2)
    decoder = IndexedDecoder(executor, capacity=5)
    assert (decoder.axes, decoder.capacity) == ((), 5)
    step(decoder, decoder.open_states(), 2)
    assert executor.fed[0]["position_ids"].tolist() == [[10, 11]]


@pytest.mark.parametrize("output", ["hidden_states", "draft_hidden_states"])
def test_hidden_states_are_those_of_the_last_positions(output: str) -> None:
    """The graph takes logits among the hidden states that it keeps."""
    executor = Written("hidden_positions", outputs=(output,))
    decoder = IndexedDecoder(executor, capacity=8)
    states = decoder.open_states()
    for logits, hidden, kept, last in (
        (1, 3, [2, 3, 4], [2]),
        (2, 0, [3, 4], [0, 1]),
        (0, 0, [4], [0]),
        (0, 2, [3, 4], [1]),
    ):
        states.rewind(0)
        made = step(decoder, states, 5, num_logits=logits, num_hidden_states=hidden)
        assert made.shape == (logits, VOCAB)
        assert made[:, 0].tolist() == last[:logits]
        assert executor.fed[-1]["hidden_positions"].tolist() == kept
        assert executor.fed[-1]["logit_positions"].tolist() == last
        assert states.hidden_states.tolist() == [[float(place)] * HIDDEN for place in kept]


def test_features_and_hidden_states_are_handed_on() -> None:
    executor = Written("deepstack_features", "hidden_states")
    decoder = IndexedDecoder(executor, capacity=8)
    assert decoder.taps == 2
    rows = np.arange(12, dtype=np.float32).reshape(3, HIDDEN)
    images = ImageFeatures(rows, np.stack([rows + 100, rows + 200]))
    states = decoder.open_states()
    step(decoder, states, 3, images=images, hidden_states=rows)
    np.testing.assert_array_equal(executor.fed[0]["image_features"], rows)
    np.testing.assert_array_equal(executor.fed[0]["deepstack_features"], images.deepstack)
    np.testing.assert_array_equal(executor.fed[0]["hidden_states"], rows[None])
    for none in (None, images[:0]):
        states.rewind(0)
        step(decoder, states, 3, images=none)
        assert executor.fed[-1]["image_features"].shape == (1, HIDDEN)
        assert executor.fed[-1]["deepstack_features"].shape == (2, 1, HIDDEN)
        assert "hidden_states" not in executor.fed[-1]


def test_recurrent_states_go_back_to_a_copy_or_to_zero() -> None:
    decoder = IndexedDecoder(Written(states={**STATES, **RECURRENT}), capacity=8)
    assert decoder.recurrent
    states = decoder.open_states()
    assert states.recurrent
    step(decoder, states, 3)
    states.save()
    step(decoder, states, 2)
    assert states.copies() == dict.fromkeys(RECURRENT, 5.0)
    assert states.rewind(4) == 3  # further than it was saved there is no way back
    assert states.copies() == dict.fromkeys(RECURRENT, 3.0)
    assert states.rewind(2) == 0
    assert states.copies() == dict.fromkeys(RECURRENT, 0.0)


class Seen:
    """An executor of a vision encoder, whose features are the first numbers of the patches."""

    outputs: Mapping[str, Shape] = {}

    def __init__(self, *inputs: str, taps: bool = False) -> None:
        self.inputs: Mapping[str, Shape] = dict.fromkeys(inputs, ())
        self.taps, self.fed = taps, list[Arrays]()

    def open_states(self) -> Kept:
        return Kept()

    def run(self, feed: Arrays, kept: Kept) -> dict[str, NDArray[Any]]:
        self.fed.append(feed)
        rows = feed["pixel_values"][:, :1]
        return {"image_features": rows} | ({"deepstack_features": np.stack([rows, rows + 100])} if self.taps else {})


@pytest.mark.parametrize("by_frame", [False, True])
@pytest.mark.parametrize("taps", [False, True])
def test_frames_are_encoded_one_by_one_where_the_graph_knows_no_others(by_frame: bool, taps: bool) -> None:
    executor = Seen("pixel_values", "image_grid_thw", "rows", taps=taps)
    asked: list[Any] = []

    def index(grid: Any) -> dict[str, NDArray[Any]]:
        asked.append(grid)
        return {"rows": np.array(grid), "x": np.array(0)}

    vision = IndexedVision(executor, index, by_frame=by_frame)
    patches = np.arange(24, dtype=np.float32).reshape(12, 2)
    made = vision(patches, (3, 2, 2))
    np.testing.assert_array_equal(made.features, patches[:, :1])
    if taps:
        np.testing.assert_array_equal(made.deepstack, np.stack([patches[:, :1], patches[:, :1] + 100]))
    else:
        assert made.deepstack is None
    grids = [(1, 2, 2)] * 3 if by_frame else [(3, 2, 2)]
    assert asked == grids
    assert [feed["image_grid_thw"].tolist() for feed in executor.fed] == [[list(grid)] for grid in grids]
    assert [feed["pixel_values"].shape[0] for feed in executor.fed] == ([4] * 3 if by_frame else [12])
    assert all(set(feed) == {"pixel_values", "image_grid_thw", "rows"} for feed in executor.fed)


def test_images_of_one_size_are_pixels_alone() -> None:
    executor = Seen("pixel_values")
    pixels = np.ones((1, 3, 2, 2), np.float32)
    IndexedVision(executor, lambda grid: pytest.fail("no index is needed"), by_frame=True)(pixels, (1, 2, 2))
    assert [set(feed) for feed in executor.fed] == [{"pixel_values"}]


def test_open_capacities_are_filled_in() -> None:
    assert sized([1, 2, "capacity", "seq", 0], 7) == (1, 2, 7, "seq", 0)
